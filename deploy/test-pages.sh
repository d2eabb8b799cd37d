#!/usr/bin/env bash
# Runs the shell blocks of pages, in their order, so that no command that a page shows is stale:
#
#     deploy/test-pages.sh [docs/own-model.md ...]
#
# Without a page, those of all pages that show commands, as before a release; CI runs those that take no
# minutes.
#
# A page's blocks run one after the other in a new folder, in which the repository's own (target,
# models, configs, ...) lie as links: what a block writes to the folder is the next one's. python and
# pip, where a block calls them, are those of a new virtual environment. Each block has to end well. In the page itself:
#
#   ```sh                        the block is run
#   ```sh until=REGEX            it is left to run as soon as it has printed a match, to the page's end
#   ```sh host | device | server it is deploy/test-docs.sh's, and left out here
#   <!-- not run: REASON -->     above a block: it is left out, and counted with its reason
#   <!-- run:                    a block that readers do not see, for what the next ones need;
#   COMMANDS -->                 it is run as they are
#
# HEX in a block is the fingerprint that a server before it has printed.
#
# Needs what was built in target/release (cargo build --release), and Python 3.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD

# Seconds that a block may take.
LIMIT=900

work=$(mktemp -d)
running=()

halt() {
    for pid in "${running[@]}"; do kill -- "-$pid" 2> /dev/null || true; done
    running=()
}
trap 'halt; rm -rf "$work"' EXIT

fail() {
    echo "test-pages: $*" >&2
    exit 1
}

# blocks PAGE: its blocks as files NNN, with NNN.line (where it begins) and one of NNN.until (a
# regular expression, or nothing) and NNN.skip (why it is not run).
blocks() {
    awk -v out="$work/blocks" '
        function begin() { n++; file = sprintf("%s/%03d", out, n); print NR > (file ".line"); printf "" > file }
        function end() { close(file); file = "" }
        hidden && /-->/ { sub(/[ ]*-->.*/, ""); if ($0 != "") print > file; hidden = 0; end(); next }
        hidden || (inside && !/^ *```/) { print > file; next }
        inside { inside = 0; end(); reason = ""; next }
        other { if (/^ *```/) other = 0; next }
        /^<!-- not run: .* -->$/ { reason = $0; sub(/^<!-- not run: /, "", reason); sub(/ -->$/, "", reason); next }
        /^<!-- run:/ { begin(); print "" > (file ".until"); hidden = 1; next }
        /^ *```sh *$/ || /^ *```sh until=/ {
            begin(); inside = 1
            until = $0; if (!sub(/.*until=/, "", until)) until = ""
            if (reason != "") print reason > (file ".skip"); else print until > (file ".until")
            next
        }
        /^ *```sh / { begin(); inside = 1; print "deploy/test-docs.sh runs it" > (file ".skip"); next }
        /^ *```/ { other = 1; next }
        /[^ ]/ { reason = "" }
    ' "$1"
}

# run_block FILE UNTIL: the block in this file.
run_block() {
    local block=$1 until=$2 out=$1.out
    local path=$work/venv/bin:$root/target/release:$PATH
    local shell=(env "PATH=$path" "VIRTUAL_ENV=$work/venv" bash -euo pipefail)
    if [[ -f $work/fingerprint ]]; then
        sed -i "s|\bHEX\b|$(cat "$work/fingerprint")|g" "$block"
    fi
    if [[ -z $until ]]; then
        (cd "$work/folder" && timeout "$LIMIT" "${shell[@]}" "$block") > "$out" 2>&1 < /dev/null
        return
    fi
    : > "$out"
    set -m
    (cd "$work/folder" && exec "${shell[@]}" "$block") > "$out" 2>&1 < /dev/null &
    set +m
    running+=($!)
    local i
    for ((i = 0; i < 10 * LIMIT; i++)); do
        if grep -qE -- "$until" "$out"; then
            sed -n 's/^certificate sha256 //p' "$out" > "$work/fingerprint"
            return 0
        fi
        kill -0 "$!" 2> /dev/null || break
        sleep 0.1
    done
    echo "it has not printed $until" >> "$out"
    return 1
}

if [[ $# -eq 0 ]]; then
    mapfile -t pages < <(grep -lE '^ *```sh' *.md docs/*.md models/*.md models/training/*.md)
    set -- "${pages[@]}"
fi
[[ -d target/release ]] || fail "target/release: cargo build --release has to come first"
for page; do
    [[ -f $page ]] || fail "$page: there is no such page"
    mkdir "$work/blocks" "$work/folder"
    for entry in target models configs deploy docs; do ln -s "$root/$entry" "$work/folder/$entry"; done
    blocks "$page"
    ran=0
    skipped=0
    for line in "$work"/blocks/*.line; do
        [[ -e $line ]] || fail "$page: no block"
        block=${line%.line}
        at="$page:$(cat "$line")"
        if [[ -f $block.skip ]]; then
            skipped=$((skipped + 1))
            echo "$at: not run: $(cat "$block.skip")"
            continue
        fi
        echo "$at: $(head -1 "$block")"
        if [[ ! -d $work/venv ]] && grep -qwE 'python|pip' "$block"; then python3 -m venv "$work/venv"; fi
        if ! run_block "$block" "$(cat "$block.until")"; then
            cat "$block" >&2
            tail -20 "$block.out" >&2
            fail "$at: the block failed"
        fi
        ran=$((ran + 1))
    done
    halt
    rm -rf "$work/blocks" "$work/folder" "$work/fingerprint" "$work/venv"
    echo "$page: $ran blocks ran, $skipped did not"
done
