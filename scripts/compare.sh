#!/usr/bin/env bash
# The same work against what people would use instead: Redis with `appendfsync always`, Webdis in front of it, nginx
# without a store, RocksDB in the process of its load, and the bare device. Durability is the same but for the fill, where
# RocksDB never syncs and ringkeep does every 100 ms.
#
#   usage: scripts/compare.sh [--quick] [--repeat N]
#
# As root it installs the peers from Debian's packages; what is missing afterwards is skipped, with a word.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(wrk redis-server webdis nginx-light rocksdb-tools fio)
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq || echo "the package lists could not be renewed"
    for package in "${packages[@]}"; do
        # No server starts by itself: the policy forbids it.
        dpkg -s "$package" >/dev/null 2>&1 ||
            RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$package" >/dev/null ||
            echo "$package could not be installed; its lines are skipped"
    done
else
    echo "not root: only peers that are installed are compared (${packages[*]})"
fi
exec scripts/bench.sh "$@" gets sets rocksdb_sync cold_reads fill
