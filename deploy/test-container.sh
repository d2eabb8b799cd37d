#!/usr/bin/env bash
# Builds the server's image and puts it through what a container has to bear: a root that cannot be
# written, no root's rights, little memory, frames over QUIC and gRPC, and a stop under load.
#
#     deploy/test-container.sh [STATIC_TAIL_SERVER]
#
# With a static program given it is packed as it is, otherwise the image's builder compiles one.
# Needs head-client and simulator (BIN, default target/release) and docker (DOCKER); where no
# daemon answers, root can start one for the test alone.
set -euo pipefail
cd "$(dirname "$0")/.."

BIN=${BIN:-target/release}
IMAGE=isthmus-tail-server:test
MAX_BYTES=40000000
FRAMES=100

work=$(mktemp -d)
container=
daemon=

docker() { command "${DOCKER:-docker}" "$@"; }

fail() {
    echo "test-container: $*" >&2
    if [[ -n $container ]]; then docker logs "$container" 2>&1 | tail -20 >&2; fi
    exit 1
}

finish() {
    kill -INT "${clients[@]}" 2> /dev/null || true
    if [[ -n $container ]]; then docker rm --force --volumes "$container" > /dev/null || true; fi
    if [[ -n $daemon ]]; then
        kill "$daemon"
        wait "$daemon" || true
    fi
    rm -rf "$work"
}
clients=()
trap finish EXIT

# wait_for SECONDS COMMAND…: until it succeeds.
wait_for() {
    local until=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < until)) || return 1
        sleep 0.1
    done
}

if ! docker info > /dev/null 2>&1; then
    echo "no daemon answers: starting one"
    export DOCKER_HOST=unix://$work/docker.sock
    dockerd --data-root "$work/data" --exec-root "$work/exec" --pidfile "$work/pid" \
        --host "$DOCKER_HOST" > "$work/dockerd.log" 2>&1 &
    daemon=$!
    docker_answers() { docker info > /dev/null 2>&1; }
    wait_for 30 docker_answers || { tail "$work/dockerd.log" >&2; fail "dockerd does not start"; }
fi

# The image.
export DOCKER_BUILDKIT=1
if (($#)); then
    mkdir "$work/context"
    cp "$1" "$work/context/tail-server"
    build=(--build-arg PROGRAM=prebuilt "$work/context")
else
    build=(.)
fi
docker build --quiet --file Containerfile --tag "$IMAGE" "${build[@]}" > /dev/null
bytes=$(docker image inspect --format '{{.Size}}' "$IMAGE")
echo "image size: $bytes bytes"
((bytes <= MAX_BYTES)) || fail "the image is larger than $MAX_BYTES bytes"

# Started to ready.
container=$(docker run --detach --read-only --memory 512m --cap-drop ALL \
    --security-opt no-new-privileges \
    --publish 127.0.0.1::4433/udp --publish 127.0.0.1::8000 \
    --publish 127.0.0.1::8001 --publish 127.0.0.1::8002 \
    --volume "$PWD/models/bundles:/models:ro" "$IMAGE")
is_ready() { docker logs "$container" 2> /dev/null | grep -x ready > /dev/null; }
wait_for 60 is_ready || fail "the server is not ready after 60 s"
# Instants of the daemon's clock, in ms.
started=$(date -d "$(docker inspect --format '{{.State.StartedAt}}' "$container")" +%s%3N)
ready=$(date -d "$(docker logs --timestamps "$container" 2> /dev/null |
    sed -n 's/ ready$//p')" +%s%3N)
echo "start to ready: $((ready - started)) ms"
[[ $(docker top "$container" -eo pid,uid | awk 'END { print $2 }') == 65532 ]] ||
    fail "the server does not run as user 65532"

published() { docker port "$container" "$1" | sed -n 1p; }
fingerprint() { docker logs "$container" 2> /dev/null | sed -n 's/^certificate sha256 //p' | tail -1; }
client=("$BIN/head-client" run --server-fingerprint "$(fingerprint)" --bundle models/bundles/street
    --format json --deadline-ms 20000)
# Of the clients' answers, the server's.
answers() { cat "$work"/*.json | grep -c '"arm":"split"' || true; }
quic=quic://$(published 4433/udp)
grpc=grpc://$(published 8001/tcp)

# Frames over both transports.
"$BIN/simulator" camera --out "$work/frames" --count "$FRAMES" > /dev/null
"${client[@]}" --server "$quic" --input "$work/frames" > "$work/quic.json"
"${client[@]}" --server "$grpc" --input "$work/frames" > "$work/grpc.json"
(($(answers) == 2 * FRAMES)) || fail "of $((2 * FRAMES)) frames, the server answered $(answers)"
echo "answered over QUIC and gRPC: $(answers) of $((2 * FRAMES))"

# Stopped under load: what was accepted is answered, the rest is refused, nothing is dropped.
for server in "$quic" "$grpc"; do
    "${client[@]}" --server "$server" --input - --every-frame --in-flight 8 \
        < <("$BIN/simulator" camera --stream mjpeg 2> /dev/null) \
        > "$work/load-${server%%:*}.json" 2> "$work/load-${server%%:*}.log" &
    clients+=($!)
done
busy() { (($(answers) > 2 * FRAMES + 40)); }
wait_for 60 busy || fail "no answers under load"
docker stop --time 40 "$container" > /dev/null
exit_code=$(docker inspect --format '{{.State.ExitCode}}' "$container")
((exit_code == 0)) || fail "the stopped server's exit code is $exit_code"
sleep 1
kill -INT "${clients[@]}"
for pid in "${clients[@]}"; do wait "$pid" || fail "a client failed"; done
clients=()
stopped=$(docker logs "$container" 2>&1 | grep -o 'stopped arrived=.*') || fail "no account of the frames"
echo "stopped under load; the server: ${stopped#stopped }; the clients: $(answers) answers"
[[ $stopped == *"dropped={}"* ]] || fail "the server dropped accepted frames"
[[ $stopped == *"answered=$(answers) "* ]] || fail "the clients got $(answers) answers"

# Started again: the same certificate, healthy, and metrics.
before=$(fingerprint)
docker start "$container" > /dev/null
is_healthy() { [[ $(docker inspect --format '{{.State.Health.Status}}' "$container") == healthy ]]; }
wait_for 60 is_healthy || fail "the server is not healthy"
[[ $(fingerprint) == "$before" ]] || fail "the certificate did not outlive the restart"
curl --silent --fail "http://$(published 8000/tcp)/v2/health/ready" > /dev/null || fail "not ready over HTTP"
"${client[@]}" --server "quic://$(published 4433/udp)" --input "$work/frames" > "$work/again.json"
curl --silent --fail "http://$(published 8002/tcp)/metrics" | grep '^isthmus_requests_total' > /dev/null ||
    fail "no metrics"
echo "restarted: same certificate, healthy, metrics served"
