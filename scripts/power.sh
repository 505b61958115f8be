#!/usr/bin/env bash
# Power cuts and full disks on the real kernel, on loop-mounted ext4 and XFS images. Needs root and loop devices;
# without them it says so and ends with exit status 0. RINGKEEP_CUTS is the number of cuts for each file system (default
# 20), RINGKEEP_SEED the seed.
#
#   usage: scripts/power.sh [FOLDER for the images, on a disk with 1 GiB free; default: target/power]
set -euo pipefail
cd "$(dirname "$0")/.."

skip() { echo "skipped: power cuts and full disks need $1"; exit 0; }

[ "$(id -u)" = 0 ] || skip "root"
[ -e /dev/loop-control ] || skip "loop devices"
if ! command -v mkfs.xfs >/dev/null || ! command -v xfs_io >/dev/null; then
    command -v apt-get >/dev/null || skip "xfsprogs"
    { apt-get update -qq && apt-get install -y -qq xfsprogs; } >/dev/null || skip "xfsprogs"
fi
folder=${1:-target/power}
mkdir -p "$folder"
RINGKEEP_POWER=$(cd "$folder" && pwd)
export RINGKEEP_POWER

# After an interrupted run, nothing stays mounted.
trap 'umount -l "$folder"/ext4 "$folder"/xfs "$folder"/probe 2>/dev/null || true' EXIT

# Find out whether this kernel allows mounts at all: in a container it often does not.
mkdir -p "$folder/probe"
for kind in ext4 xfs; do
    rm -f "$folder/probe.img"
    truncate -s 320M "$folder/probe.img"
    "mkfs.$kind" -q "$folder/probe.img"
    if ! mount -o loop "$folder/probe.img" "$folder/probe" 2>/dev/null; then skip "the right to mount $kind"; fi
    umount "$folder/probe"
done
rm -rf "$folder/probe" "$folder/probe.img"

# A server whose power is cut logs several lines each time.
export RINGKEEP_LOG=${RINGKEEP_LOG:-off}
cargo test --locked --profile campaign --test server power:: -- --ignored --nocapture --test-threads 1
rm -f "$folder"/*.img
