#!/usr/bin/env bash
# Asks every question of the dashboard of a real Prometheus that watches a server and a device under
# load, as deploy/prometheus.yaml has it: each has to be answered with a number.
#
#     deploy/check-dashboard.sh
#
# Needs prometheus, curl and jq, and head-client, tail-server and simulator (BIN, default target/release).
set -euo pipefail
cd "$(dirname "$0")/.."

BIN=${BIN:-target/release}
# Seconds of load; Grafana asks for rates over four scrapes at least.
LOAD=20
RATE_INTERVAL=10s

work=$(mktemp -d)
programs=()

finish() {
    kill "${programs[@]}" 2> /dev/null || true
    wait
    rm -rf "$work"
}
trap finish EXIT

fail() {
    echo "check-dashboard: $*" >&2
    exit 1
}

# told FILE REGEX: what the group matched in what a program has written, as soon as it has.
told() {
    local i
    for ((i = 0; i < 600; i++)); do
        sed -nE "s/$2/\1/p" "$1" | grep -m1 . && return
        sleep 0.1
    done
    tail -20 "$1" >&2
    fail "$1 has no $2 after 60 s"
}

"$BIN/tail-server" --model-repository models/bundles --address 127.0.0.1 --quic-port 0 --transports quic \
    --http-port 0 --metrics-port 0 --tls-dir "$work/tls" > "$work/server" 2> "$work/server.log" &
programs+=($!)
told "$work/server" '^(ready)$' > /dev/null
"$BIN/head-client" run --server "quic://$(told "$work/server" '^quic (.*)')" --bundle models/bundles/street \
    --server-fingerprint "$(told "$work/server" '^certificate sha256 (.*)')" --controller mpc \
    --input - --metrics-port 0 --log info --format json \
    < <(exec "$BIN/simulator" camera --stream mjpeg --rate 20 2> /dev/null) \
    > "$work/answers" 2> "$work/client.log" &
programs+=($!)

# The file as it is, but for the targets, the devices' job, which it has as a comment, and the pace.
sed -e "s/tail-server:8002/$(told "$work/server" '^metrics (.*)')/" \
    -e "s/DEVICE:8003/$(told "$work/client.log" '.*metrics address=(.*)')/" \
    -e 's/^  # \( *-\? [a-z_-]*: \|  static_configs:\)/  \1/;s/^  # \( *- [a-z]*:\)/  \1/' \
    -e 's/scrape_interval: .*/scrape_interval: 1s/' deploy/prometheus.yaml > "$work/prometheus.yaml"
promtool check config "$work/prometheus.yaml" > /dev/null
prometheus --config.file="$work/prometheus.yaml" --storage.tsdb.path="$work/data" \
    --web.listen-address=127.0.0.1:0 > "$work/prometheus.log" 2>&1 &
programs+=($!)
prometheus=http://$(told "$work/prometheus.log" '.*"Listening on" address=(.*)')
sleep "$LOAD"

up=$(curl --fail --silent "$prometheus/api/v1/query?query=sum(up)" | jq -r '.data.result[0].value[1]')
[[ $up == 2 ]] || fail "Prometheus reaches $up of server and client"

# ask EXPRESSION: its values, one a line.
ask() {
    curl --silent --get --data-urlencode "query=${1//\$__rate_interval/$RATE_INTERVAL}" \
        "$prometheus/api/v1/query" | jq -r 'if .status == "success" then .data.result[].value[1] else .error end'
}
asked=0
while IFS=$'\t' read -r panel expression; do
    values=$(ask "$expression")
    grep -qE '^[0-9.e+-]+$' <<< "$values" || fail "$panel: ${values:-no data} for $expression"
    ! grep -qvE '^([0-9.e+-]+|NaN)$' <<< "$values" || fail "$panel: $values for $expression"
    echo "$panel: $(paste -sd ' ' <<< "$values")"
    asked=$((asked + 1))
done < <(jq -r '.panels[] | .title as $title | .targets[]? | [$title, .expr] | @tsv' deploy/grafana/isthmus.json)
((asked > 0)) || fail "the dashboard asks nothing"

# A rate of a network is told in bits.
for page in "$(told "$work/server" '^metrics (.*)')" "$(told "$work/client.log" '.*metrics address=(.*)')"; do
    found=$(curl --fail --silent "http://$page/metrics" | promtool check metrics 2>&1 |
        grep -v '^isthmus_client_bandwidth_bits_per_second use base unit' || true)
    [[ -z $found ]] || fail "metrics: $found"
done
echo "all $asked queries of the dashboard were answered"
