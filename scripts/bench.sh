#!/usr/bin/env bash
# Measures this build. The server and the load run on processors of their own. Each line is measured several times, in
# turn with its peer if it has one. Raw figures go to target/bench, medians and spread to standard output.
#
#   usage: scripts/bench.sh [--quick] [--repeat N] [QUESTION...]
#          Without a QUESTION it answers all questions of BENCHMARKS.md, which takes hours. --quick tries the scripts.
#          Example: scripts/bench.sh --repeat 5 sets
#
# A question is skipped, with a message, if a program that it needs is not installed; scripts/compare.sh installs the
# peers. SERVER_CPUS and LOAD_CPUS choose the processors (default 0 and 1), RINGKEEP_BENCH_DIR the device (default:
# target/bench/data).
set -euo pipefail
cd "$(dirname "$0")/.."

command -v python3 >/dev/null || { echo "python3 is not installed: install it first"; exit 1; }
[ "$(nproc)" -ge 2 ] || { echo "two processors are needed, one for the server and one for the load"; exit 1; }
cargo build --locked --release
python3 -B scripts/bench/questions.py "$@"
python3 -B scripts/bench/report.py --print
