#!/usr/bin/env bash
# Fuzzes every decoder of bytes from disk and wire with libFuzzer, and watches what each allocates.
#
#   usage: scripts/fuzz.sh [SECONDS for each target, default 60] [TARGET...]
#
# The committed corpus is where it begins; what it finds is kept only if it is a crash (fuzz/artifacts). Needs a C++
# compiler for libFuzzer. With RINGKEEP_REPORT set, a line for the reliability table goes there.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"

seconds=${1:-60}
shift || true
command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(cargo fuzz list)
[ ${#targets[@]} -gt 0 ] || { echo "there are no fuzz targets"; exit 1; }

# No sanitizer: the decoders are safe Rust, and so the stable compiler will do.
cargo fuzz build --sanitizer none
begin=$SECONDS
total=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for target in "${targets[@]}"; do
    mkdir -p "$work/$target"
    # New inputs go to the first folder; the committed corpus is read.
    if ! cargo fuzz run --sanitizer none "$target" "$work/$target" "corpus/$target" -- \
        -max_total_time="$seconds" -max_len=4096 -timeout=10 -seed="${RINGKEEP_SEED:-7}" -print_final_stats=1 \
        >"$work/log" 2>&1; then
        grep -a -A 2 "panicked at" "$work/log" || true # far above the end, and not there after a time-out
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
