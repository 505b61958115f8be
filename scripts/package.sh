#!/usr/bin/env bash
# Builds the packages, and uses them as their users would: a static binary in an empty chroot and under the seccomp profile,
# a Debian package in a chroot that debootstrap makes.
#
#   usage: scripts/package.sh [--no-build]      with --no-build the two release binaries that are there are packaged
#
# Results in target/package: ringkeep_*.deb, ringkeep-*.tar.gz (for `cargo binstall` and by hand), rootfs.tar (for the
# Containerfile). The checks need root, and some programs of Debian; what is missing is named, and its check left out. Status 1
# if a check fails. The chroot is kept in target/package/chroot; it comes from RINGKEEP_MIRROR, by default the first mirror
# of apt's sources.
set -euo pipefail
cd "$(dirname "$0")/.."

target=x86_64-unknown-linux-gnu
bytes_max=$((10 << 20))
out=target/package
mirror=${RINGKEEP_MIRROR:-}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
name=ringkeep-$version-$target

step() { printf '== %s\n' "$*"; }
skip() { printf '== skipped: %s\n' "$*"; }
fail() { printf 'package: %s\n' "$*" >&2; exit 1; }
has() { command -v "$1" >/dev/null; }

build() {
    step "build: a static binary, and one for Debian"
    # --target keeps the flag away from build scripts and macros, which are loaded into the compiler.
    RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --target "$target" --bin ringkeep
    cargo build --release --locked --bin ringkeep
}

# Everything that is generated: man pages, completions, Debian's changelog.
generate() {
    step "generate: man pages, completions, archives"
    rm -rf "${out:?}/man" "$out/completions" "${out:?}/$name" "$out/image"
    mkdir -p "$out/man" "$out/completions" "$out/$name" "$out/image/data"
    strip -o "$out/ringkeep" "target/$target/release/ringkeep"
    readelf -h "$out/ringkeep" | grep -q DYN || fail "the binary is not position-independent"
    if readelf -d "$out/ringkeep" | grep -q NEEDED; then fail "the binary is not static"; fi
    local bytes
    bytes=$(stat -c %s "$out/ringkeep")
    [ "$bytes" -lt "$bytes_max" ] || fail "the stripped binary has $bytes bytes"
    echo "the static binary has $bytes bytes"
    "$out/ringkeep" man --dir "$out/man"
    "$out/ringkeep" completions bash >"$out/completions/ringkeep.bash"
    "$out/ringkeep" completions zsh >"$out/completions/_ringkeep"
    "$out/ringkeep" completions fish >"$out/completions/ringkeep.fish"
    printf 'ringkeep (%s-1) unstable; urgency=medium\n\n  * See CHANGELOG.md of the sources.\n\n -- %s  %s\n' "$version" \
        "$(sed -n 's/^maintainer = "\(.*\)"/\1/p' Cargo.toml)" "$(date -uR -d "@$epoch")" >"$out/changelog"
    cp -r "$out/ringkeep" "$out/man" "$out/completions" README.md CHANGELOG.md LICENSE-* docs deploy "$out/$name"
    archive 0 0 -C "$out" "$name" | gzip -n >"$out/$name.tar.gz"
    cp "$out/ringkeep" "$out/image"
    archive 0 0 -C "$out/image" ringkeep >"$out/rootfs.tar"
    archive 65532 65532 -C "$out/image" data >"$out/data.tar"
    tar -A -f "$out/rootfs.tar" "$out/data.tar"
    rm "$out/data.tar"
}

# A tar archive that is the same whoever makes it: owner, group, then what to pack.
archive() {
    local owner=$1 group=$2
    shift 2
    tar --sort=name --mtime="@$epoch" --owner="$owner" --group="$group" --numeric-owner -c "$@"
}

# Runs a script of scripts/package in a network of its own, so that port 8080 is free.
alone() { unshare -n bash -c 'ip link set lo up && exec "$@"' - "$@"; }

check_static() {
    local root=$out/empty
    rm -rf "$root"
    mkdir -p "$root"
    tar -xf "$out/rootfs.tar" -C "$root"
    step "the static binary in an empty chroot, as user 65532"
    alone scripts/package/use.sh "$root/data" chroot --userspec=65532:65532 "$root" /ringkeep -- \
        serve --data-dir /data
    rm -rf "$root"
}

check_profile() {
    step "every command under the seccomp profile, where any other system call ends the process"
    alone scripts/package/profile.sh "$PWD/$out/ringkeep"
    alone scripts/package/profile.sh "$PWD/target/release/ringkeep"
}

check_deb() {
    step "lintian"
    if has lintian; then lintian --fail-on error --allow-root "$out"/ringkeep_*-1_*.deb; else skip "lintian is not installed"; fi
    has debootstrap || { skip "debootstrap is not installed"; return; }
    # shellcheck disable=SC2016 # the variable is one of apt
    [ -n "$mirror" ] || mirror=$(apt-get indextargets --format '$(REPO_URI)' | head -1)
    local chroot=$out/chroot
    if [ ! -e "$chroot/complete" ]; then
        step "debootstrap from $mirror"
        rm -rf "$chroot"
        debootstrap --variant=minbase bookworm "$chroot" "$mirror" >"$out/debootstrap.log" ||
            { skip "debootstrap has failed, see $out/debootstrap.log"; return; }
        touch "$chroot/complete"
    fi
    step "install, start, upgrade, remove and purge in the chroot"
    scripts/package/deb.sh "$chroot" "$out"/ringkeep_*-1_*.deb "$out"/ringkeep_*-2_*.deb
}

deb() {
    rm -f "$out"/ringkeep_*.deb
    if ! cargo deb --version >/dev/null 2>&1; then
        skip "cargo-deb is not installed (cargo install cargo-deb)"
        return
    fi
    step "cargo deb"
    for revision in 1 2; do
        cargo deb --no-build --locked --quiet --strip --deb-revision "$revision" --output "$out/"
    done
}

case ${1:-} in
    "") build ;;
    --no-build) ;;
    *) echo "usage: scripts/package.sh [--no-build]"; exit 2 ;;
esac
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y Cargo.toml)}
generate
deb
if [ "$(id -u)" != 0 ]; then
    skip "the checks need root"
    exit 0
fi
if has unshare && has ip && has curl && has openssl; then
    check_static
    if /usr/bin/python3 -c 'import seccomp' 2>/dev/null; then
        check_profile
    else
        skip "the check of the seccomp profile needs python3-seccomp"
    fi
    if ls "$out"/ringkeep_*-2_*.deb >/dev/null 2>&1; then check_deb; fi
else
    skip "the checks need unshare, ip, curl and openssl"
fi
rm -f "$out"/ringkeep_*-2_*.deb
step "done: $out"
ls -l "$out"/*.deb "$out"/*.tar* 2>/dev/null || true
