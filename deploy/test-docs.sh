#!/usr/bin/env bash
# Runs the shell blocks of pages on how to install something, in the order of the page:
#
#     deploy/test-docs.sh docs/device.md docs/server.md
#
# A block whose fence says `sh host` is run on this machine in the repository, `sh device` and
# `sh server` on a clean Debian, one for each page, that systemd has booted in a container on this
# machine's network; `sh` alone is not run. Each block has to end well; one with
# `until=REGEX` is left to run as soon as it has printed a match.
#
# What cannot be had is put in place: HOST, HEX (a server's fingerprint, as the page's own server has
# printed it), DEVICE and SERVER with scp, which copies into the container, and CAMERA, the built-in one's stream.
#
# Needs root, mmdebstrap, systemd-nspawn, and what was built in target/release.
set -euo pipefail
cd "$(dirname "$0")/.."
source deploy/board.sh

PATIENCE=120

work=$(mktemp -d)
running=()

untracked() { git ls-files --others --exclude-standard --directory | sort; }
before=$(untracked)

finish() {
    for pid in "${running[@]}"; do kill -- "-$pid" 2> /dev/null || true; done
    running=()
    board_halt
    # What blocks have left in the repository.
    comm -13 <(echo "$before") <(untracked) | tr '\n' '\0' | xargs -0 --no-run-if-empty rm -r
}
trap 'finish; rm -rf "$work"' EXIT

fail() {
    echo "test-docs: $*" >&2
    exit 1
}

board_debian "$work/clean.tar" "" curl

# What blocks on this machine may call, besides what is installed.
mkdir "$work/bin"
cat > "$work/bin/scp" << 'SCP'
#!/usr/bin/env bash
exec cp -r "${@:1:$#-1}" "$BOARD/root/"
SCP
chmod +x "$work/bin/scp"

# run_block WHERE UNTIL FILE: the block in this file.
run_block() {
    local where=$1 until=$2 block=$3 shell=(bash -euo pipefail)
    sed -i -e 's|\bHOST\b|127.0.0.1|g' -e "s|\bHEX\b|$(cat "$work/fingerprint")|g" \
        -e 's/^CAMERA |/simulator camera --stream mjpeg --rate 10 |/' "$block"
    echo "$where: $(paste -sd ' ' "$block")"
    # What a block has set is there in the next one of its place.
    { cat "$work/$where.set"; cat "$block"; } > "$block.sh"
    grep -x '[a-z]*=[^ ]*' "$block" >> "$work/$where.set" || true
    case $where in
        host) shell=(env "PATH=$work/bin:$PATH" "BOARD=$work/root" "${shell[@]}") ;;
        *) shell=(nsenter --target "$init" --all -- env HOME=/root "${shell[@]}") ;;
    esac
    if [[ -z $until ]]; then
        "${shell[@]}" < "$block.sh" > "$block.out" 2>&1 || { tail -20 "$block.out" >&2; fail "the block failed"; }
        return
    fi
    set -m
    "${shell[@]}" < "$block.sh" > "$block.out" 2>&1 &
    set +m
    running+=($!)
    local i
    for ((i = 0; i < 10 * PATIENCE; i++)); do
        if grep -qE "$until" "$block.out"; then
            if grep -q '^certificate sha256 ' "$block.out"; then
                sed -n 's/^certificate sha256 //p' "$block.out" > "$work/fingerprint"
            fi
            return
        fi
        kill -0 "$!" 2> /dev/null || break
        sleep 0.1
    done
    tail -20 "$block.out" >&2
    fail "the block has not printed $until"
}

for page; do
    echo "== $page"
    mkdir "$work/root"
    tar --extract --file "$work/clean.tar" --directory "$work/root"
    # The built-in camera stands in for a camera: it is there as a camera is.
    install target/release/simulator -t "$work/root/usr/local/bin"
    board_boot "$work/root"
    : > "$work/fingerprint"
    : > "$work/host.set"
    for where in device server; do echo cd > "$work/$where.set"; done
    awk -v work="$work" '
        /^```sh (host|device|server)/ { n++; file = sprintf("%s/block-%03d", work, n); print $0 > (file ".fence"); inside = 1; next }
        /^```/ { if (inside) { close(file); close(file ".fence") }; inside = 0 }
        inside { print > file }' "$page"
    for fence in "$work"/block-*.fence; do
        read -r _ where until < "$fence"
        run_block "$where" "${until#until=}" "${fence%.fence}"
    done
    finish
    rm -rf "$work/root" "$work"/block-*
done
echo "every marked block ran"
