#!/usr/bin/env bash
# Starts a server by a command line, uses it, stops it, starts it again: what was written is there. Called by
# scripts/package.sh, in a network of its own.
#
#   usage: use.sh FOLDER PROGRAM... -- ARGUMENT...      with these arguments the program serves on 127.0.0.1:8080; the last
#                                                       one is its data directory, which is FOLDER outside of its chroot
set -euo pipefail

folder=$1
shift
program=()
while [ "$1" != -- ]; do
    program+=("$1")
    shift
done
shift
data=${!#}
log=$(mktemp)
pid=

end() {
    [ -z "$pid" ] || kill -KILL "$pid" 2>/dev/null || true
    rm -f "$log"
}
trap end EXIT

fail() { echo "use: $*"; cat "$log"; exit 1; }

start() {
    "${program[@]}" "$@" >"$log" 2>&1 &
    pid=$!
    for _ in $(seq 300); do
        grep -q '^listening on http://127.0.0.1:8080' "$log" && return
        kill -0 "$pid" 2>/dev/null || fail "the server has ended"
        sleep 0.1
    done
    fail "the server does not start"
}

stop() {
    kill -TERM "$pid"
    wait "$pid" || fail "the server ends with status $?"
    pid=
}

if "${program[@]}" health >>"$log" 2>&1; then fail "a server is healthy before it was started"; fi
start "$@"
[ "$(curl -sS -X POST 'http://127.0.0.1:8080/set?key=k&value=v')" = OK ] || fail "no OK"
[ "$("${program[@]}" health)" = OK ] || fail "not healthy"
stop
start "$@"
[ "$(curl -sS 'http://127.0.0.1:8080/get?key=k')" = v ] || fail "the value is not there"
stop
"${program[@]}" check "$data" >>"$log" 2>&1 || fail "check ends with status $?"
"${program[@]}" inspect "$data" >>"$log" 2>&1 || fail "inspect ends with status $?"
[ -n "$(ls "$folder")" ] || fail "there is nothing in $folder"
echo "used: ${program[*]}"
