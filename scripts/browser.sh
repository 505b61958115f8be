#!/usr/bin/env bash
# Hostile web pages in a real browser: headless Chromium opens pages of other sites that try to set, delete, stop and read.
# Prints what each of them sent and what it got; fails if one of them changed anything or saw a value. Needs chromium.
#
#   usage: scripts/browser.sh [flags of the ringkeep server]
#   RINGKEEP=path of the binary; default: target/release/ringkeep
set -euo pipefail

if ! command -v python3 >/dev/null; then
    echo "browser: skipped, because python3 is not installed"
    exit 0
fi
exec python3 -B "$(dirname "$0")/edge/browser.py" "$@"
