#!/usr/bin/env bash
# Runs every command under deploy/seccomp.json, where a system call that the profile does not name ends the process. Called
# by scripts/package.sh, in a network of its own.
#
#   usage: profile.sh BINARY
set -euo pipefail
cd "$(dirname "$0")/../.."

binary=$1
work=$(mktemp -d)
log=$work/server.log
# shellcheck source=scripts/package/server.sh
. scripts/package/server.sh
end() {
    kill_server
    rm -rf "$work"
}
trap end EXIT

fail() { echo "profile: $*"; tail -n 20 "$work"/*.log; exit 1; }
under() { /usr/bin/python3 -B scripts/package/under_profile.py "$@"; }
ringkeep() { under --strict deploy/seccomp.json "$binary" "$@" >>"$work/commands.log" 2>&1 || fail "$1 ends with status $?"; }

# The filter is there at all: a call that is not named is refused, or ends the process.
if under deploy/seccomp.json /usr/bin/unshare -U /bin/true 2>/dev/null; then fail "a namespace could be made"; fi
status=0
{ under --strict deploy/seccomp.json /usr/bin/unshare -U /bin/true || status=$?; } 2>/dev/null
[ "$status" = 159 ] || fail "a call that is not named ends with status $status, not by SIGSYS"

serve() {
    start /usr/bin/python3 -B scripts/package/under_profile.py --strict deploy/seccomp.json "$binary" serve \
        --data-dir "$work/data" --memtable-size 1MiB --cache-size 8MiB --threads 2 "$@"
}

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$work/key.pem" -out "$work/cert.pem" \
    -days 1 -subj /CN=localhost 2>/dev/null
echo "a admin admin-secret-0123" >"$work/tokens"
chmod 600 "$work/key.pem" "$work/tokens"

serve --listen 127.0.0.1:8080 --listen "unix:$work/socket" --socket-mode 660 --socket-group root
ringkeep bench fill-unique,ycsb-a,read --key-count 20000 --connections 50 --duration 2s --value-size 16..20000
ringkeep health
ringkeep health --url "unix:$work/socket"
kill -HUP "$pid"
stop
serve --listen https://127.0.0.1:8443 --listen http://localhost:8080 --sync 50ms --tls-cert "$work/cert.pem" \
    --tls-key "$work/key.pem" --token-file "$work/tokens"
ringkeep health --url https://localhost:8443 --tls-ca "$work/cert.pem"
token='Authorization: Bearer admin-secret-0123'
[ "$(curl -sSk -H "$token" -X POST 'https://localhost:8443/set?key=k&value=v')" = OK ] || fail "no OK over TLS"
curl -sS -H "$token" http://localhost:8080/metrics | grep ringkeep_build_info >/dev/null || fail "no metrics"
kill -HUP "$pid"
curl -sS -H "$token" http://localhost:8080/shutdown >/dev/null
wait "$pid" || fail "the server ends with status $?"
serve --listen 127.0.0.1:8080
[ "$(curl -sS -X POST 'http://127.0.0.1:8080/set?key=k&value=w')" = OK ] || fail "no OK"
kill -KILL "$pid"
wait "$pid" 2>/dev/null || true
pid=
for command in check inspect repair; do ringkeep "$command" "$work/data"; done
ringkeep inspect "$work/data" --key k --json
serve --listen 127.0.0.1:8080
ringkeep backup "$work/backup"
ringkeep backup --copy "$work/copy"
under --strict deploy/seccomp.json "$binary" backup - 2>>"$work/commands.log" >"$work/backup.tar" || fail "backup - ends"
ringkeep compact
ringkeep stats
stop
ringkeep restore "$work/copy" "$work/restored"
ringkeep restore - "$work/unpacked" <"$work/backup.tar"
ringkeep dump "$work/restored" --output "$work/lines"
ringkeep reshard "$work/restored" --shards 3
serve --listen 127.0.0.1:8080
ringkeep load --resume "$work/lines"
stop
ringkeep man --dir "$work/man"
ringkeep completions bash
if grep -q "killed by\|SIGSYS" "$work"/*.log; then fail "a call was refused"; fi
echo "ran under the profile: $binary"
