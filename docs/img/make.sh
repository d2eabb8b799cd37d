#!/usr/bin/env bash
# Makes the pictures of the pages from what is in the repository:
#
#     docs/img/make.sh [rate-accuracy] [demo]
#
#   rate-accuracy.svg   accuracy over bytes, from the record of outcomes of models/bundles/photos
#   demo.png            the page that `simulator demo` writes, of the built-in camera
#
# architecture.svg is drawn by hand. Needs python3 ≥ 3.11 and zstd; for the demonstration a minute,
# target/release/simulator (or SIMULATOR), and Chromium (or CHROMIUM).
set -euo pipefail
shopt -s nullglob
cd "$(dirname "$0")/../.."

SIMULATOR=${SIMULATOR:-target/release/simulator}
CHROMIUM=${CHROMIUM:-chromium}
LARGEST=300000 # bytes of a picture

rate_accuracy() {
    docs/img/rate-accuracy.py models/bundles/photos > docs/img/rate-accuracy.svg
}

# The page down to the end of the first run's plots.
demo() {
    local page
    page=$(mktemp -d)
    trap 'rm -rf "$page"' RETURN
    "$SIMULATOR" demo --report "$page/report.html"
    "$CHROMIUM" --headless --no-sandbox --disable-gpu --hide-scrollbars --user-data-dir="$page/profile" \
        --window-size="${DEMO_SIZE:-1000,1085}" --screenshot="$PWD/docs/img/demo.png" \
        "file://$page/report.html" 2> "$page/log" || { cat "$page/log" >&2; return 1; }
}

[ $# -gt 0 ] || set -- rate-accuracy demo
for name in "$@"; do
    case $name in
        rate-accuracy) rate_accuracy ;;
        demo) demo ;;
        *)
            echo "make.sh: unknown picture $name; expected rate-accuracy or demo" >&2
            exit 2
            ;;
    esac
done

for file in docs/img/*.svg docs/img/*.png; do
    if [ "$(stat -c %s "$file")" -gt $LARGEST ]; then
        echo "make.sh: $file is larger than $LARGEST bytes" >&2
        exit 1
    fi
done
