#!/usr/bin/env bash
# TLS as clients see it that share no code with ringkeep: curl, openssl, wrk and testssl.sh. And as clients see it that
# do not keep to the protocol: records that are cut, empty, too long, forged, or too many.
#
#   usage: scripts/tls.sh
#
# RINGKEEP names the binary (default: target/release/ringkeep). One line for each check; status 1 if one fails. It takes
# about two minutes. Without testssl its check is left out; without one of the others the script is skipped.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v python3 >/dev/null || { echo "tls: skipped, because python3 is not installed"; exit 0; }
exec python3 -B scripts/edge/tls.py "$@"
