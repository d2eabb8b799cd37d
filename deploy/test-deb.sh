#!/usr/bin/env bash
# Makes the packages and installs, runs, upgrades, removes and purges them in a clean Debian.
#
#     deploy/test-deb.sh HEAD_CLIENT MANUAL        (as deploy/package-deb.sh takes them)
#
# Needs root, mmdebstrap, and tail-server and simulator (BIN, default target/release).
set -euo pipefail

BIN=$(realpath "${BIN:-target/release}")
MAX_BYTES=15000000
FRAMES=20

program=$(realpath "$1") manual=$(realpath "$2")
cd "$(dirname "$0")/.."
work=$(mktemp -d)
root=$work/root
server=

finish() {
    if [[ -n $server ]]; then kill "$server"; fi
    rm -rf "$work"
}
trap finish EXIT

fail() {
    echo "test-deb: $*" >&2
    exit 1
}
in_root() { chroot "$root" "$@"; }

deploy/package-deb.sh "$work" "$program" "$manual" models/bundles/street
deb=$(echo "$work"/isthmus-head_*.deb)
(($(stat -c %s "$deb") <= MAX_BYTES)) || fail "the package is larger than $MAX_BYTES bytes"

mmdebstrap --quiet --variant=minbase --include=systemd bookworm "$root"
cp "$work"/*.deb "$root/tmp"

# Install.
in_root sh -c 'dpkg --install /tmp/isthmus-*.deb' > /dev/null
for file in usr/bin/head-client usr/share/man/man1/head-client.1.gz usr/share/man/man1/head-client-run.1.gz \
    usr/share/bash-completion/completions/head-client etc/isthmus/client.toml etc/isthmus/camera \
    usr/lib/systemd/system/isthmus-head.service usr/share/isthmus/bundles/street/manifest.toml; do
    [[ -f $root/$file ]] || fail "/$file was not installed"
done
version=$(in_root head-client --version)
[[ $version == "head-client $(in_root dpkg --status isthmus-head | sed -n 's/^Version: //p')" ]] ||
    fail "$version is not the package's version"
in_root systemd-analyze verify --man=no isthmus-head.service || fail "the service is not well-formed"
echo "installed: $version; $(in_root systemd-analyze security --offline=yes --no-pager isthmus-head.service | tail -1)"

# Run what the service runs, without root's rights, on the stream of a camera.
"$BIN/tail-server" --model-repository models/bundles --address 127.0.0.1 --quic-port 0 --transports quic \
    --tls-dir "$work/tls" > "$work/server" 2> "$work/server.log" &
server=$!
for ((i = 0; i < 300; i++)); do
    grep -qx ready "$work/server" && break
    sleep 0.1
done
"$BIN/simulator" camera --stream mjpeg --count "$FRAMES" > "$root/stream.mjpeg"
printf '#!/bin/sh\nexec cat /stream.mjpeg\n' > "$root/etc/isthmus/camera"
{
    echo "server = \"quic://$(sed -n 's/^quic //p' "$work/server")\""
    echo "server_fingerprint = \"$(sed -n 's/^certificate sha256 //p' "$work/server")\""
    echo "every_frame = true"
    echo "deadline_ms = 5000"
    grep -v '^\(every_frame\|deadline_ms\) ' "$root/etc/isthmus/client.toml"
} > "$work/client.toml"
cp "$work/client.toml" "$root/etc/isthmus/client.toml"
command=$(sed -n "s|^ExecStart=/bin/sh -c '\(.*\)'$|\1|p" "$root/usr/lib/systemd/system/isthmus-head.service")
chroot --userspec=65534:65534 "$root" sh -c "$command" > "$work/answers"
answers=$(grep -c '"arm":"split"' "$work/answers" || true)
((answers == FRAMES)) || fail "the server answered $answers of $FRAMES frames"
echo "ran the service's command: $answers of $FRAMES frames answered by the server"

# Upgrade to a package that ships another configuration: the user's is kept.
dpkg-deb --raw-extract "$deb" "$work/next"
sed -i 's/^Version: .*/Version: 99/' "$work/next/DEBIAN/control"
echo '# new' >> "$work/next/etc/isthmus/client.toml"
dpkg-deb --build --root-owner-group "$work/next" "$root/tmp/next.deb" > /dev/null
in_root dpkg --force-confold --install /tmp/next.deb > /dev/null 2>&1 || fail "the upgrade failed"
cmp "$work/client.toml" "$root/etc/isthmus/client.toml" || fail "the upgrade changed the configuration"
[[ -f $root/etc/isthmus/client.toml.dpkg-dist ]] || fail "the upgrade hid the new configuration"
echo "upgraded: configuration kept"

# Remove keeps the configuration, purge does not.
in_root dpkg --remove isthmus-head > /dev/null 2>&1
[[ ! -e $root/usr/bin/head-client ]] || fail "the program was not removed"
[[ -f $root/etc/isthmus/client.toml ]] || fail "the removal took the configuration away"
in_root dpkg --purge isthmus-head isthmus-bundle-street > /dev/null 2>&1
left=$(find "$root" -xdev \( -name '*isthmus*' -o -name '*head-client*' \) -not -path "$root/tmp/*")
[[ -z $left ]] || fail "left after the purge: $left"
echo "removed and purged: nothing left"
