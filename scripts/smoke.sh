#!/usr/bin/env bash
# The main job on real input: stores every package of this machine's dpkg database, reads all packages back, and
# compares them, across a kill -9, deletes, and two restarts. Prints counts; fails at the first difference.
#
#   usage: scripts/smoke.sh [path to the ringkeep binary; default: target/release/ringkeep]
set -euo pipefail

binary=${1:-"$(dirname "$0")/../target/release/ringkeep"}
for tool in curl dpkg-query cmp; do
    if ! command -v "$tool" >/dev/null; then
        echo "smoke: skipped, because $tool is not installed"
        exit 0
    fi
done

work=$(mktemp -d)
server=
finish() {
    [ -z "$server" ] || kill -9 "$server" 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT

start() {
    "$binary" --data-dir "$work/data" --listen 127.0.0.1:0 --memtable-size 1MiB --max-value-size 4MiB \
        --cache-size 16MiB >"$work/out" 2>>"$work/log" &
    server=$!
    for _ in $(seq 600); do
        url=$(sed -n 's/^listening on //p' "$work/out")
        [ -z "$url" ] || return 0
        kill -0 "$server" 2>/dev/null || break
        sleep 0.05
    done
    echo "smoke: the server did not start:" >&2
    cat "$work/log" >&2
    exit 1
}

# Package names need no escapes except for `+`, which a query reads as a space.
escape() { printf '%s' "${1//+/%2B}"; }

# One file per package holds its stanza. One curl configuration per pass sends thousands of requests over a few
# connections. Values go in the body; short values also go in the query, under another key.
mkdir "$work/stanzas"
dpkg-query -W -f='${Package}\n' | sort -u >"$work/names"
while read -r name; do
    dpkg-query -s "$name" >"$work/stanzas/$name" 2>/dev/null
done <"$work/names"
count=$(wc -l <"$work/names")
[ "$count" -gt 50 ] || { echo "smoke: only $count packages are installed, which is too few for a test" >&2; exit 1; }

begin_pass() {
    rm -rf "$work/replies" "$work/pass"
    mkdir "$work/replies"
}
ask() { # method, target, reply file, further configuration lines
    [ ! -s "$work/pass" ] || echo next >>"$work/pass"
    {
        printf 'silent\nshow-error\nmax-time = 60\nretry = 30\nrequest = "%s"\nurl = "%s%s"\noutput = "%s"\n%s\n' \
            "$1" "$url" "$2" "$work/replies/$3" "${4-}"
        printf 'write-out = "%%{http_code} %s\\n"\n' "$3"
    } >>"$work/pass"
}
run_pass() { # expected status
    curl -K "$work/pass" >"$work/statuses"
    if grep -qv "^$1 " "$work/statuses"; then
        echo "smoke: expected $1, got:" >&2
        grep -v "^$1 " "$work/statuses" | head -5 >&2
        exit 1
    fi
}

load() {
    begin_pass
    while read -r name; do
        ask POST "/set?key=$(escape "$name")" "$name" "data-binary = \"@$work/stanzas/$name\""
    done <"$work/names"
    run_pass 200
    begin_pass
    while read -r name; do
        # The same stanza in the query, with every byte escaped.
        value=$(od -An -v -tx1 "$work/stanzas/$name" | tr -d '\n' | tr ' ' '%')
        ask PUT "/set?key=query/$(escape "$name")&value=$value" "$name"
    done < <(while read -r name; do
        [ "$(stat -c %s "$work/stanzas/$name")" -gt 40000 ] || echo "$name"
    done <"$work/names" | tee "$work/in_query")
    run_pass 200
}

compare() { # list of names, key prefix
    begin_pass
    while read -r name; do
        ask GET "/get?key=$2$(escape "$name")" "$name"
    done <"$1"
    [ -s "$1" ] || return 0
    run_pass 200
    while read -r name; do
        cmp "$work/stanzas/$name" "$work/replies/$name"
    done <"$1"
}
compare_all() {
    compare "$work/there" ""
    compare "$work/in_query" "query/"
    echo "smoke: $1: $(wc -l <"$work/there") by body and $(wc -l <"$work/in_query") by query, all bytes equal"
}

start
load
cp "$work/names" "$work/there"
compare_all "loaded"

kill -9 "$server"
wait "$server" 2>/dev/null || true
start
compare_all "after kill -9"

awk 'NR % 3 == 0' "$work/names" >"$work/deleted"
awk 'NR % 3 != 0' "$work/names" >"$work/there"
begin_pass
while read -r name; do ask DELETE "/del?key=$(escape "$name")" "$name"; done <"$work/deleted"
run_pass 200
curl -sS -m 60 -X GET "$url/shutdown" | sed 's/^/smoke:   /'
wait "$server"
server=
start
compare_all "after a clean stop"
begin_pass
while read -r name; do ask GET "/get?key=$(escape "$name")" "$name"; done <"$work/deleted"
run_pass 404
echo "smoke: $(wc -l <"$work/deleted") deleted, all of them not found"
curl -sS -m 60 -X POST "$url/shutdown" >/dev/null
wait "$server"
server=
echo "smoke: passed with $count packages"
