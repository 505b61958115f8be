#!/usr/bin/env bash
# The reliability campaign: runs every test of docs/reliability.md on this machine and prints the table. Without root,
# the tests that need root are skipped; the tests with little memory or a slow disk run without these limits, and say
# so.
#
#   usage: scripts/campaign.sh [--short | --try] [SEED]       (default seed: the time in seconds)
#
# The full form is for releases and takes about three hours on two cores. --short makes a tenth of the runs, in less
# than an hour. --try makes a hundredth of the runs, to try the script. The table goes to standard output and, except
# with --try, into docs/reliability.md between its markers.
set -euo pipefail
cd "$(dirname "$0")/.."

form=full divisor=1 flag=
case ${1:-} in
    --short) form=short divisor=10 flag="--short " ;;
    --try) form=try divisor=100 flag="--try " ;;
    -*) echo "usage: scripts/campaign.sh [--short | --try] [SEED]"; exit 2 ;;
esac
[ "$form" = full ] || shift
seed=${1:-$(date +%s)}
[ -z "$(git status --porcelain)" ] || [ "$form" = try ] || { echo "the checkout has changes: commit them first, or use --try"; exit 1; }
commit=$(git rev-parse --short HEAD)
out=target/campaign-report
rm -rf "$out"
mkdir -p "$out"

# The size of a test in this form: at least 1.
size() { echo $(($1 > divisor ? $1 / divisor : 1)); }

# start NAME COMMAND...: starts one part of the campaign. Its lines of the table go to $out/NAME.tsv, its output to
# $out/NAME.log. The part has a process group of its own, so that all its processes end when this script ends, for
# whatever reason.
declare -A parts
trap 'for part in "${parts[@]}"; do kill -- -"$part" 2>/dev/null || true; done' EXIT
trap 'exit 143' TERM INT HUP
start() {
    local name=$1
    shift
    echo "== $name: $* ($(date +%H:%M:%S))"
    set -m
    RINGKEEP_SEED=$seed RINGKEEP_REPORT=$PWD/$out/$name.tsv "$@" >"$out/$name.log" 2>&1 &
    parts[$name]=$!
    set +m
}
finish() {
    wait "${parts[$1]}" || {
        tail -n 60 "$out/$1.log"
        echo "FAILED: $1, seed $seed, commit $commit; the whole output is in $out/$1.log"
        exit 1
    }
    unset "parts[$1]"
}
run() { start "$@"; finish "$1"; }
tests() { cargo test --locked --profile campaign "$@"; }

tests --no-run
# These run alone, because they measure time, memory and processors.
RINGKEEP_PRESSURE_SECONDS=$(size 600) RINGKEEP_CONFINED_SECONDS=$(size 120) RINGKEEP_STARVED_SECONDS=$(size 20)
RINGKEEP_IDLE=$(size 10000) RINGKEEP_ABORTS=$(size 100000) RINGKEEP_STOPS=$(size 50)
export RINGKEEP_PRESSURE_SECONDS RINGKEEP_CONFINED_SECONDS RINGKEEP_STARVED_SECONDS
export RINGKEEP_IDLE RINGKEEP_ABORTS RINGKEEP_STOPS
run resources tests --test resources -- --nocapture --test-threads 1 --skip r9_

# The soak runs at the same time as the others.
RINGKEEP_SOAK_SECONDS=$(size 7200) start soak tests --test resources r9_ -- --nocapture
# The test that has found the most faults comes first.
RINGKEEP_STATES=$(size 10000000) run crash tests --test crash -- --nocapture --test-threads 1
# 0 flips every bit.
flips=0
[ "$form" = full ] || flips=$(size 2600000)
RINGKEEP_FLIPS=$flips RINGKEEP_CUT_EVERY=$divisor run damage tests --test damage -- --nocapture --test-threads 1
RINGKEEP_CUTS=$(size 500) RINGKEEP_FULL_DISKS=$(size 20) run power scripts/power.sh
RINGKEEP_KILLS=$(size 1000) run kill tests --test kill p1_ -- --nocapture
RINGKEEP_HISTORIES=$(size 200) run history tests --test history p3_ -- --nocapture
run fuzz scripts/fuzz.sh "$(size 60)"
finish soak
[ "$(git rev-parse --short HEAD)" = "$commit" ] || { echo "FAILED: the checkout has moved on from $commit: run the campaign again"; exit 1; }

table() {
    [ "$form" = full ] || echo "**The $form form: one run in $divisor of the full campaign, which is made for releases.**"
    echo "Seed $seed, commit $commit, $(date -u +%Y-%m-%d), Linux $(uname -r), $(nproc) cores: \`scripts/campaign.sh $flag$seed\`."
    echo
    echo "| test | runs | acknowledged | lost | wrong | detected | seconds | command |"
    echo "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
    local part command
    for part in crash damage kill power history fuzz resources soak; do
        case $part in
            power) command="scripts/power.sh" ;;
            fuzz) command="scripts/fuzz.sh" ;;
            soak) command="cargo test --test resources" ;;
            *) command="cargo test --test $part" ;;
        esac
        [ -f "$out/$part.tsv" ] || [ "$part" = power ] || { echo "FAILED: $part has written no line of the table" >&2; return 1; }
        [ -f "$out/$part.tsv" ] || { echo "| ($part was skipped: $(tail -n 1 "$out/$part.log")) | | | | | | | |"; continue; }
        awk -F'\t' -v command="$command" '
            # Digits in groups of three.
            function group(n,  rest) {
                for (rest = ""; length(n) > 3; n = substr(n, 1, length(n) - 3)) rest = "," substr(n, length(n) - 2) rest
                return n rest
            }
            { print "| " $1 " | " group($2) " | " group($3) " | " $4 " | " $5 " | " group($6) " | " group($7) " | `" command "` |" }' "$out/$part.tsv"
    done
}
table >"$out/table.md"
cat "$out/table.md"

if [ "$form" != try ]; then
    awk -v table="$out/table.md" '
        /<!-- campaign: end -->/ { while ((getline line < table) > 0) print line; inside = 0 }
        !inside { print }
        /<!-- campaign: begin -->/ { inside = 1 }' docs/reliability.md >"$out/reliability.md"
    cp "$out/reliability.md" docs/reliability.md
    echo "the table is in docs/reliability.md"
fi
