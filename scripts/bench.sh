#!/usr/bin/env bash
# Measures this build: server and load on processors of their own, each line several times, with its peer in turn
# where it has one. Raw figures go to target/bench, medians and spread to standard output.
#
#   usage: scripts/bench.sh [--quick] [--repeat N] [QUESTION...]      all of BENCHMARKS.md, hours, without a name
#
# What a line needs and is not installed skips it, with a word; scripts/compare.sh installs the peers first.
# SERVER_CPUS and LOAD_CPUS choose the processors (0 and 1), RINGKEEP_BENCH_DIR the device (target/bench/data).
set -euo pipefail
cd "$(dirname "$0")/.."

command -v python3 >/dev/null || { echo "python3 is needed"; exit 1; }
[ "$(nproc)" -ge 2 ] || { echo "two processors are needed: one for the server, one for the load"; exit 1; }
cargo build --locked --release
python3 -B scripts/bench/questions.py "$@"
python3 -B scripts/bench/report.py --print
