#!/usr/bin/env bash
# Holds programs for aarch64, run under emulation, against this machine's: what the bundles' makers
# computed, what this machine computes of the same pictures and features, and answers between a
# client and a server of which one or both are emulated.
#
#     deploy/cross.sh aarch64-unknown-linux-gnu
#     cargo build --release
#     deploy/test-aarch64.sh [FRAMES [PICTURES]]
#
# FRAMES pictures (512) are the built-in camera's, or from the folder PICTURES, spread evenly over it.
#
# Needs qemu-user-static, or a RUNNER of its own; the programs are in BIN (target/release) and CROSS
# (target/aarch64-unknown-linux-gnu/release). It takes long: emulated speed says nothing of a board's.
set -euo pipefail
cd "$(dirname "$0")/.."

BIN=${BIN:-target/release}
CROSS=${CROSS:-target/aarch64-unknown-linux-gnu/release}
# A board's processor: qemu's own default computes with SVE, which neither a Raspberry Pi nor a Jetson
# Orin has, and tract has other kernels for that.
RUNNER=${RUNNER-qemu-aarch64-static -cpu cortex-a76}
FRAMES=${1:-512}
PICTURES=${2-}
ROUND_TRIPS=$((FRAMES < 32 ? FRAMES : 32))

work=$(mktemp -d)
server=

finish() {
    if [[ -n $server ]]; then kill "$server"; fi
    rm -rf "$work"
}
trap finish EXIT

fail() {
    echo "test-aarch64: $*" >&2
    exit 1
}
emulated() { $RUNNER "$CROSS/$1" "${@:2}"; }
native() { "$BIN/$1" "${@:2}"; }

for program in head-client tail-server bundle; do
    file=$CROSS/$program
    readelf -h "$file" | grep -q 'Machine: *AArch64' || fail "$file is not for aarch64"
    echo "$file: $(stat -c %s "$file") bytes, $(readelf -d "$file" | grep -q NEEDED && echo dynamic || echo static)"
done

# What the bundles' makers computed with ONNX Runtime and a codec of their own.
for bundle in models/bundles/*/; do emulated bundle verify "$bundle"; done

# The same features, and the same pictures.
native simulator camera --out "$work/frames" --count "$FRAMES" > /dev/null
for bundle in models/bundles/*/; do
    native bundle record "$bundle" --images "${PICTURES:-$work/frames}" --limit "$FRAMES" \
        --out "$work/record" > /dev/null
    started=$SECONDS
    emulated bundle replay "$bundle" "$work/record"
    echo "$(basename "$bundle"): replayed in $((SECONDS - started)) s"
    rm "$work/record"
done

# Round trips. start WHERE: a server; answer WHERE TRANSPORT: what a client gets of it.
start() {
    local program=("$BIN/tail-server")
    if [[ $1 == emulated ]]; then program=($RUNNER "$CROSS/tail-server"); fi
    "${program[@]}" --model-repository models/bundles --address 127.0.0.1 --quic-port 0 --grpc-port 0 \
        --http-port 0 --metrics-port 0 --tls-dir "$work/tls" > "$work/server" 2> "$work/server.log" &
    server=$!
    for ((i = 0; i < 1200; i++)); do
        grep -qx ready "$work/server" && return
        sleep 0.1
    done
    cat "$work/server.log" >&2
    fail "the $1 server is not ready after 120 s"
}
stop() {
    kill "$server"
    wait "$server"
    server=
}
answer() {
    "$1" head-client run --server "$2://$(sed -n "s/^$2 //p" "$work/server")" \
        --server-fingerprint "$(sed -n 's/^certificate sha256 //p' "$work/server")" \
        --bundle models/bundles/street --input "$work/frames" --limit "$ROUND_TRIPS" \
        --deadline-ms 60000 --connect-timeout-ms 60000 --format json |
        grep -o '"frame":[0-9]*,\|"label":"[^"]*"\|"arm":"[^"]*"\|"bytes":[0-9]*' | paste -sd ' '
}
start native
expected=$(answer native quic)
got=$(grep -o '"arm":"split"' <<< "$expected" | wc -l)
((got == ROUND_TRIPS)) || fail "this machine's server answered $got of $ROUND_TRIPS frames"
check() {
    [[ $(answer "$2" "$3") == "$expected" ]] || fail "$2 client, $1 server over $3: other answers"
    echo "$2 client, $1 server over $3: the same $ROUND_TRIPS answers and sizes"
}
for transport in quic grpc; do check native emulated "$transport"; done
stop
start emulated
for transport in quic grpc; do check emulated native "$transport"; done
check emulated emulated quic
stop
