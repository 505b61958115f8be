#!/usr/bin/env bash
# Holds a server against its own description: schemathesis reads /openapi.yaml, makes requests that keep to it and
# requests that do not, and compares every reply with it.
#
#   usage: scripts/openapi.sh [examples of each operation; default: 1800, more than 10,000 in all] [seed]
#
# schemathesis is installed from PyPI into a temporary folder, unless the command `schemathesis` is there.
set -euo pipefail
cd "$(dirname "$0")/.."

examples=${1:-1800}
seed=${2:-$RANDOM}
binary=$(realpath "${RINGKEEP:-target/release/ringkeep}")
[ -x "$binary" ] || { echo "openapi: $binary does not exist: build it with \`cargo build --release\`" >&2; exit 1; }

work=$(mktemp -d)
server=
finish() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    wait
    rm -rf "$work"
}
trap finish EXIT
if ! command -v schemathesis >/dev/null; then
    if ! { python3 -m venv "$work/venv" && "$work/venv/bin/pip" install -q schemathesis==4.32.5; }; then
        echo "openapi: skipped, because schemathesis cannot be installed"
        exit 0
    fi
    PATH=$work/venv/bin:$PATH
fi

# Its own requests would stop the server.
"$binary" --data-dir "$work/data" --listen 127.0.0.1:0 --shutdown off >"$work/out" 2>"$work/log" &
server=$!
for _ in $(seq 600); do
    url=$(sed -n 's/^listening on //p' "$work/out")
    [ -z "$url" ] || break
    kill -0 "$server" || { cat "$work/log" >&2; exit 1; }
    sleep 0.05
done

# A range that is well formed may lie outside the value.
cat >"$work/schemathesis.toml" <<'END'
[checks.positive_data_acceptance]
expected-statuses = ["2xx", 401, 403, 404, 416, 503]
END
cd "$work" # schemathesis leaves its cache in the current folder
echo "openapi: seed $seed, $examples examples"
schemathesis --config-file "$work/schemathesis.toml" run "$url/openapi.yaml" --checks all --max-examples "$examples" --seed "$seed" --no-color \
    --continue-on-failure --suppress-health-check all
kill -0 "$server" || { echo "openapi: the server has ended:" >&2; cat "$work/log" >&2; exit 1; }
