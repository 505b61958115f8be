# One entry for all scripts; each also runs by itself, and its first lines say more. `just` lists the recipes.
# Further arguments go to the script or to cargo: `just mutants --list`, `just fuzz 600 record`.

set positional-arguments

[private]
list:
    @just --list --unsorted

# Everything that CI checks: format, lints, documentation, tests, release build, smoke test
check:
    .ci/run

# All tests that need neither root nor a fuzzer
test *ARGS:
    cargo test --locked "$@"

# The tests of FILE (of `tests/`, or `lib`) whose names contain NAME: `just test-one crash p6_`
test-one FILE NAME="":
    cargo test --locked {{ if FILE == "lib" { "--lib" } else { "--test " + FILE } }} "$2" -- --nocapture

# Repeats the SEED that a test of FILE printed: `just seed 1234 crash p4_`
seed SEED FILE NAME="":
    RINGKEEP_SEED="$1" RINGKEEP_STATES=10 RINGKEEP_HISTORIES=1 "{{ just_executable() }}" test-one "$2" "$3"

# The reliability campaign at full size, about three hours; its table goes to docs/reliability.md
campaign *SEED:
    scripts/campaign.sh "$@"

# A tenth of the campaign, in less than an hour
campaign-short *SEED:
    scripts/campaign.sh --short "$@"

# Power cuts and full disks on the real kernel; needs root
power *FOLDER:
    scripts/power.sh "$@"

# Fuzzes every decoder, a minute each, or so many SECONDS, or some TARGETS: `just fuzz 600 record`
fuzz *ARGS:
    scripts/fuzz.sh "$@"

# Breaks what durability rests on, one place at a time; `--list` only says which mutations still apply
mutants *ARGS:
    scripts/mutants.sh "$@"

# Measures this build: all of BENCHMARKS.md, or some questions of it
bench *ARGS:
    scripts/bench.sh "$@"

# The same work against Redis, Webdis, nginx, RocksDB and the bare device
compare *ARGS:
    scripts/compare.sh "$@"

# Stores and compares this machine's package database, with a release build
smoke:
    cargo build --locked --release
    scripts/smoke.sh

# The Debian package, the static binary and the root of an image, tried as their users would; as root it checks all of them
package *ARGS:
    scripts/package.sh "$@"

# The documentation of the code; `--open` shows it
doc *ARGS:
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps "$@"
