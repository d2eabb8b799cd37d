#!/usr/bin/env bash
# Makes the packages and installs, runs, upgrades, removes and purges them in a clean Debian.
#
#     deploy/test-deb.sh HEAD_CLIENT MANUAL        (as deploy/package-deb.sh takes them)
#
# The Debian has the program's architecture. Of this machine's it is booted, and the service is started
# by its own systemd; of another's, which Linux runs through binfmt_misc with qemu-user, the service's
# command is run.
#
# Needs root, mmdebstrap, systemd-nspawn, and tail-server and simulator (BIN, default target/release).
set -euo pipefail

BIN=$(realpath "${BIN:-target/release}")
MAX_BYTES=15000000
FRAMES=20

program=$(realpath "$1") manual=$(realpath "$2")
cd "$(dirname "$0")/.."
source deploy/board.sh
work=$(mktemp -d)
root=$work/root
server=

finish() {
    board_halt
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

arch=$(dpkg-deb --field "$deb" Architecture)
board_debian "$root" "$arch"
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
if [[ $arch == "$(dpkg --print-architecture)" ]]; then
    # The stream again and again, as the service is started again and again.
    mkdir -p "$root/etc/systemd/system/isthmus-head.service.d"
    printf '[Service]\nWatchdogSec=5\nRestartSec=1\n' > "$root/etc/systemd/system/isthmus-head.service.d/test.conf"
    printf '#!/bin/sh\ncat /stream.mjpeg\nexec sleep infinity\n' > "$root/etc/isthmus/camera"
    board_boot "$root"
    on_board systemctl start isthmus-head || fail "the service does not start"
    journal() { on_board journalctl --output cat --unit isthmus-head; }
    answers() { journal | grep -c '"arm":"split"' || true; }
    # wait_for SECONDS WHAT COMMAND…
    wait_for() {
        local until=$((SECONDS + $1)) what=$2
        shift 2
        until "$@"; do
            ((SECONDS < until)) || { journal | tail -20 >&2; fail "$what"; }
            sleep 0.2
        done
    }
    all_answered() { (($(answers) >= FRAMES)); }
    wait_for 60 "the server answered $(answers) of $FRAMES frames" all_answered
    echo "the service: $(answers) of $FRAMES frames answered by the server"
    # The camera says nothing more: neither does the client, and both are started again.
    bitten() { journal | grep -q 'Watchdog timeout'; }
    wait_for 60 "the watchdog does not bite" bitten
    again() { (($(answers) >= 2 * FRAMES)); }
    wait_for 60 "the service was not started again" again
    echo "a still camera: the watchdog started the service again"
    on_board systemctl stop isthmus-head
    [[ $(on_board systemctl show --property Result --value isthmus-head) =~ ^(success|watchdog)$ ]] ||
        fail "the service does not stop well"
    board_halt
    rm -r "$root/etc/systemd/system/isthmus-head.service.d"
else
    command=$(sed -n "s|^ExecStart=/bin/sh -c '\(.*\)'$|\1|p" "$root/usr/lib/systemd/system/isthmus-head.service")
    chroot --userspec=65534:65534 "$root" sh -c "$command" > "$work/answers"
    answers=$(grep -c '"arm":"split"' "$work/answers" || true)
    ((answers == FRAMES)) || fail "the server answered $answers of $FRAMES frames"
    echo "ran the service's command: $answers of $FRAMES frames answered by the server"
fi

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
