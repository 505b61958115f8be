#!/usr/bin/env bash
# Does the same work with the servers that people would use instead: Redis with `appendfsync always`, Webdis in front of
# it, nginx without a store, RocksDB in the process of its load, and the bare device. Durability is the same for all,
# except in the fill: there RocksDB never syncs, and ringkeep syncs every 100 ms.
#
#   usage: scripts/compare.sh [--quick] [--repeat N]
#
# As root it installs the peers from Debian's packages. Questions whose peer is still missing are skipped, with a
# message.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(wrk redis-server webdis nginx-light rocksdb-tools fio)
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq || echo "the package lists could not be updated; the old lists are used"
    for package in "${packages[@]}"; do
        # RUNLEVEL=1 keeps the packages from starting their servers.
        dpkg -s "$package" >/dev/null 2>&1 ||
            RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$package" >/dev/null ||
            echo "$package could not be installed; the questions that need it are skipped"
    done
else
    echo "not root: only peers that are already installed are compared (of ${packages[*]})"
fi
exec scripts/bench.sh "$@" gets sets rocksdb_sync cold_reads fill
