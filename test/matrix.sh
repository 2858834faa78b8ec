#!/usr/bin/env bash
# Run the tests on the PostgreSQL of newer Debian releases, each in a chroot of
# its own below tmp_matrix/ (kept: the second run is quick).  Needs root.
#
#   matrix.sh [release...]     trixie (PostgreSQL 17) and sid (18)
set -u
cd "$(dirname "$0")/.." || exit 1
. test/lib/common.sh
[ $# -gt 0 ] || set -- trixie sid
unset MAKEFLAGS MFLAGS MAKELEVEL PG_CONFIG PGVERSION WORK

if [ "$(id -u)" != 0 ]; then
	echo "matrix: a chroot can only be made by root" >&2
	exit 1
fi
command -v debootstrap >/dev/null || {
	apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends debootstrap
} || exit 1

# The archive this machine itself uses.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' 'Label: Debian' | head -n 1)
[ -n "$mirror" ] || { echo "matrix: found no Debian archive in the sources of apt" >&2; exit 1; }

make_chroot() {
	local release=$1 root=$2
	[ -e "$root/.made" ] && return 0
	rm -rf "$root"
	mkdir -p "$root"
	echo "matrix: making a chroot of $release"
	debootstrap --variant=minbase --include=git,gcc,libc6-dev,make,ca-certificates "$release" "$root" "$mirror" >"$root.log" 2>&1 || {
		tail -n 20 "$root.log"
		return 1
	}
	# A mirror may be older than the lists of sid say they are good for.
	echo 'Acquire::Check-Valid-Until "false";' >"$root/etc/apt/apt.conf.d/90matrix"
	apt-config dump | grep -E '^Acquire::https?::Proxy' >>"$root/etc/apt/apt.conf.d/90matrix"
	touch "$root/.made"
}

# In namespaces of its own: mounts go and processes end with it.
in_chroot() {
	local root=$1
	shift
	cp /etc/resolv.conf /etc/hosts "$root/etc/" 2>/dev/null
	unshare --mount --pid --fork --kill-child bash -c '
		root=$1
		shift
		mount --make-rprivate / &&
			mount -t proc proc "$root/proc" &&
			mkdir -p "$root/dev/shm" "$root/dev/pts" &&
			mount -t tmpfs tmpfs "$root/dev/shm" &&
			mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts" &&
			exec chroot "$root" "$@"' - "$root" "$@"
}

bad=0
summary=
for release; do
	root=$PWD/tmp_matrix/$release
	log=$PWD/tmp_matrix/$release.test.log
	if make_chroot "$release" "$root"; then
		rm -rf "$root/srv/orchestrator"
		copy_tree "$root/srv/orchestrator"
		in_chroot "$root" make -C /srv/orchestrator --no-print-directory test 2>&1 | tee "$log"
		[ "${PIPESTATUS[0]}" = 0 ] || bad=1
		summary+="$release: $(sed -n 's/^took .* with //p' "$log"): $(grep -E '^[0-9]+ passed, [0-9]+ failed$' "$log" || echo 'did not finish')"$'\n'
	else
		bad=1
		summary+="$release: no chroot"$'\n'
	fi
done
printf '%s' "$summary"
exit $bad
