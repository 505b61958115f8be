#!/usr/bin/env bash
# What slow clients cost the others: slowhttptest holds 1,000 connections with slow heads, slow bodies, and slow readers
# of a value of 1 MiB. Meanwhile `ringkeep bench` sends GETs and SETs on connections of its own, at a fixed rate. Each
# measurement with slow clients has one without them right before it. And the server has to end every slow connection.
#
#   usage: scripts/slow_clients.sh [ROUNDS, default 5]
#
# RINGKEEP names the binary (default: target/release/ringkeep). The server runs on processor 0, everything else on 1. It
# takes about five minutes. Status 1 if the slow clients more than double a 99th percentile. Without slowhttptest the
# script is skipped.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v python3 >/dev/null || { echo "slow_clients: skipped, because python3 is not installed"; exit 0; }
exec python3 -B scripts/edge/slow_clients.py "$@"
