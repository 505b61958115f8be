# Starts and stops the server of a check of the package. To be sourced, by bash.
#
# The caller sets `log`, where the output of the server goes, and has a function `fail`. `pid` is the server, if it runs.
# shellcheck shell=bash
: "${log:?}"
pid=

# start COMMAND...: runs a command line that serves, until it says where it listens.
start() {
    : >"$log"
    "$@" >>"$log" 2>&1 &
    pid=$!
    for _ in $(seq 300); do
        grep -q '^listening on ' "$log" && return
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

# To be called at the end: the server may still run.
kill_server() {
    [ -z "$pid" ] || kill -KILL "$pid" 2>/dev/null || true
}
