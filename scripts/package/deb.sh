#!/usr/bin/env bash
# Installs the Debian package in a chroot, starts the unit's command line by hand, upgrades, removes and purges. Called by
# scripts/package.sh, as root.
#
#   usage: deb.sh CHROOT PACKAGE NEWER_PACKAGE
set -euo pipefail

here=$(dirname "$(realpath "$0")")
chroot=$(realpath "$1")
first=$2
newer=$3

fail() { echo "deb: $*"; exit 1; }
inside() { DEBIAN_FRONTEND=noninteractive LC_ALL=C chroot "$chroot" "$@"; }
quietly() { "$@" >"$chroot/tmp/log" 2>&1 || { cat "$chroot/tmp/log"; fail "$* has failed"; }; }

mount --bind /proc "$chroot/proc"
mount --bind /dev "$chroot/dev"
trap 'umount -l "$chroot/proc" "$chroot/dev"' EXIT
cp /etc/resolv.conf "$chroot/etc/resolv.conf"
cp "$first" "$chroot/tmp/first.deb"
cp "$newer" "$chroot/tmp/newer.deb"
quietly inside apt-get update
if inside dpkg-query -W ringkeep >/dev/null 2>&1; then quietly inside apt-get purge -y ringkeep; fi
rm -rf "$chroot/var/lib/ringkeep"

# Runs the command line of the unit as its user, in a network where its port is free.
use() {
    local line
    line=$(sed -n 's/^ExecStart=//p' "$chroot/usr/lib/systemd/system/ringkeep.service")
    [ -n "$line" ] || fail "the unit has no ExecStart"
    # shellcheck disable=SC2086 # the unit has no quotes
    unshare -n bash -c 'ip link set lo up && exec "$@"' - "$here/use.sh" "$chroot/var/lib/ringkeep" \
        chroot --userspec=ringkeep:ringkeep "$chroot" "${line%% *}" -- ${line#* }
}

quietly inside apt-get install -y --no-install-recommends /tmp/first.deb
inside getent passwd ringkeep | grep -q ':/var/lib/ringkeep:' || fail "there is no user"
inside systemd-tmpfiles --create ringkeep.conf # a running systemd does that, and the package tells it to
[ "$(inside stat -c '%U %a' /var/lib/ringkeep)" = "ringkeep 700" ] || fail "the data directory is not the user's own"
# Debian leaves documentation and man pages out of small systems only if it is told to.
for file in usr/bin/ringkeep usr/share/man/man1/ringkeep-inspect.1.gz usr/share/bash-completion/completions/ringkeep \
    usr/share/doc/ringkeep/copyright usr/lib/systemd/system/ringkeep.service; do
    inside dpkg -L ringkeep | grep -qx "/$file" || fail "the package has no $file"
done
inside /usr/bin/ringkeep --version
use
before=$(inside dpkg-query -W ringkeep)
quietly inside apt-get install -y /tmp/newer.deb
[ "$before" != "$(inside dpkg-query -W ringkeep)" ] || fail "the upgrade has changed nothing"
use
quietly inside apt-get remove -y ringkeep
[ ! -e "$chroot/usr/bin/ringkeep" ] || fail "the binary is still there"
[ -e "$chroot/var/lib/ringkeep/STORE" ] || fail "the data is gone after a remove"
quietly inside apt-get install -y /tmp/newer.deb
use
quietly inside apt-get purge -y ringkeep
grep -q "the data stays in /var/lib/ringkeep" "$chroot/tmp/log" || fail "the purge does not say that the data stays"
[ -e "$chroot/var/lib/ringkeep/STORE" ] || fail "the purge has taken the data"
rm -rf "$chroot/var/lib/ringkeep"
quietly inside apt-get install -y /tmp/first.deb
inside systemd-tmpfiles --create ringkeep.conf
quietly inside apt-get purge -y ringkeep
[ ! -e "$chroot/var/lib/ringkeep" ] || fail "the purge leaves an empty directory"
[ -z "$(inside dpkg -L ringkeep 2>/dev/null)" ] || fail "the purge leaves files"
echo "installed, used, upgraded, removed, purged: $(basename "$first")"
