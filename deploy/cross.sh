#!/usr/bin/env bash
# Builds head-client, tail-server and bundle for Linux machines of an architecture, this one's or
# another.
#
#     deploy/cross.sh TARGET [--dynamic]
#
# TARGET is Rust's name for it: aarch64-unknown-linux-gnu for Raspberry Pi and Jetson,
# x86_64-unknown-linux-gnu for PCs. The programs go to target/TARGET/release. They are static and run
# whatever C library the machine has. With --dynamic they are linked as usual, can load an installed
# ONNX Runtime (`--engine ort`), need a C library as new as this machine's, and go to
# target/dynamic/TARGET/release.
#
# Needs rustup, or else a Rust that has TARGET's standard library, and a C and C++ compiler for it;
# for aarch64 on Debian: apt-get install gcc-aarch64-linux-gnu g++-aarch64-linux-gnu libc6-dev-arm64-cross
set -euo pipefail
cd "$(dirname "$0")/.."

(($# == 1)) || [[ $# == 2 && $2 == --dynamic ]] || { sed -n '5,16s/^# \?//p' "$0" >&2; exit 2; }
target=$1

if command -v rustup > /dev/null; then rustup target add "$target"; fi
if [[ $target != "$(rustc -vV | sed -n 's/^host: //p')" ]]; then
    # GNU's name for it has no vendor.
    gnu=${target/-unknown-/-}
    for compiler in gcc g++; do
        command -v "$gnu-$compiler" > /dev/null || { echo "cross: there is no $gnu-$compiler" >&2; exit 1; }
    done
    under=${target//-/_}
    export "CC_$under=$gnu-gcc" "CXX_$under=$gnu-g++" "CARGO_TARGET_${under^^}_LINKER=$gnu-gcc"
fi

build=(cargo build --release --locked --target "$target" --bins
    -p isthmus-head-client -p isthmus-tail-server -p isthmus-models)
if (($# == 2)); then
    exec "${build[@]}" --target-dir target/dynamic --features isthmus-head-client/ort,isthmus-tail-server/ort
fi
RUSTFLAGS='-C target-feature=+crt-static' exec "${build[@]}"
