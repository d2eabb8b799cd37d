#!/usr/bin/env bash
# Checks the Kubernetes objects against their schemas, and the Compose file with Compose itself.
# Needs Python 3, and `docker compose` or docker-compose.
set -euo pipefail
cd "$(dirname "$0")"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet kubernetes-validate
"$work/venv/bin/kubernetes-validate" --strict kubernetes/*.yaml

if docker compose version > /dev/null 2>&1; then
    docker compose --file compose.yaml config --quiet
else
    docker-compose --file compose.yaml config --quiet
fi
python3 -m json.tool grafana/isthmus.json > /dev/null
echo "deploy: all files are well-formed"
