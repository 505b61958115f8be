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
# shellcheck source=scripts/package/server.sh
. "$(dirname "$0")/server.sh"

end() {
    kill_server
    rm -f "$log"
}
trap end EXIT

fail() { echo "use: $*"; cat "$log"; exit 1; }

if "${program[@]}" health >>"$log" 2>&1; then fail "a server is healthy before it was started"; fi
start "${program[@]}" "$@"
[ "$(curl -sS -X POST 'http://127.0.0.1:8080/set?key=k&value=v')" = OK ] || fail "no OK"
[ "$("${program[@]}" health)" = OK ] || fail "not healthy"
stop
start "${program[@]}" "$@"
[ "$(curl -sS 'http://127.0.0.1:8080/get?key=k')" = v ] || fail "the value is not there"
stop
"${program[@]}" check "$data" >>"$log" 2>&1 || fail "check ends with status $?"
"${program[@]}" inspect "$data" >>"$log" 2>&1 || fail "inspect ends with status $?"
[ -n "$(ls "$folder")" ] || fail "there is nothing in $folder"
echo "used: ${program[*]}"
