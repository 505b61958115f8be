#!/usr/bin/env bash
# Sends the cases of tests/http_cases.json to ringkeep directly, and through nginx, HAProxy, Apache and Node as reverse
# proxies that keep their connections to ringkeep, each as it is by default and as lenient as it can be set. A case in
# which a proxy and ringkeep count different numbers of requests is a failure: there a request could be smuggled. So is
# another client that gets a wrong answer through the same proxy. RINGKEEP names another binary than
# target/release/ringkeep. Proxies that are not installed are skipped, with a message. It takes about a minute.
#
#   usage: scripts/http_diff.sh [--list] [--case TEXT] [nginx] [haproxy] [apache] [node]
#
# --list also prints every case that is answered otherwise than directly; --case takes only cases with TEXT in the name.
set -euo pipefail
exec python3 -B "$(dirname "$0")/edge/http_diff.py" "$@"
