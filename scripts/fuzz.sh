#!/usr/bin/env bash
# Fuzzes every decoder of bytes from disk and network with libFuzzer, and watches how much memory each decoder
# allocates.
#
#   usage: scripts/fuzz.sh [SECONDS for each target, default 60] [TARGET...]
#          Example: scripts/fuzz.sh 600 record wal_group
#
# Fuzzing starts from the committed corpus. New inputs are thrown away, except those that crash a decoder (in
# fuzz/artifacts). libFuzzer needs a C++ compiler. With RINGKEEP_REPORT set, the script appends a line for the
# reliability table to that file.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"

seconds=${1:-60}
shift || true
command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(cargo fuzz list)
[ ${#targets[@]} -gt 0 ] || { echo "cargo fuzz list names no fuzz targets"; exit 1; }

# The decoders are safe Rust and need no sanitizer, so the stable compiler is enough.
cargo fuzz build --sanitizer none
begin=$SECONDS
total=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for target in "${targets[@]}"; do
    mkdir -p "$work/$target"
    # libFuzzer writes new inputs to the first folder; the committed corpus is only read.
    if ! cargo fuzz run --sanitizer none "$target" "$work/$target" "corpus/$target" -- \
        -max_total_time="$seconds" -max_len=4096 -timeout=10 -seed="${RINGKEEP_SEED:-7}" -print_final_stats=1 \
        >"$work/log" 2>&1; then
        grep -a -A 2 "panicked at" "$work/log" || true # a panic is far above the end of the log; a time-out has none
        tail -n 40 "$work/log"
        exit 1
    fi
    executed=$(awk '/stat::number_of_executed_units/ { print $2 }' "$work/log")
    total=$((total + executed))
    echo "$target: $executed executions in $seconds s"
done
if [ -n "${RINGKEEP_REPORT:-}" ]; then
    printf 'fuzzed decoders\t%s\t0\t0\t0\t0\t%s\n' "$total" "$((SECONDS - begin))" >>"$RINGKEEP_REPORT"
fi
