#!/usr/bin/env bash
# Install the Debian packages that building and testing need and that are
# missing, and print the pg_config to use.  setup.sh [more packages...]; the word
# clients stands for what the clients of test/clients need.
#
# Everything but the answer goes to standard error.  With PG_CONFIG set to a
# PostgreSQL of your own only the tools are installed.
set -eu
more=("$@")
wanted=${PGVERSION:-15}
updated=

as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		echo "setup.sh: needs root or sudo for: $*" >&2
		return 1
	fi
}

# Quiet, unless it fails.
apt() {
	local said
	said=$(as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@" 2>&1) && return 0
	printf '%s\n' "$said" >&2
	return 1
}

update_once() {
	if [ -z "$updated" ]; then
		echo "setup.sh: apt-get update" >&2
		apt update
		updated=1
	fi
}

installed() { dpkg-query -W -f '${db:Status-Status}\n' "$1" 2>/dev/null | grep -qx installed; }
available() { apt-cache show --no-all-versions "$1" 2>/dev/null | grep -q .; }

# Install those of the given packages that are missing.
need() {
	local package missing=()
	for package; do
		installed "$package" || missing+=("$package")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	update_once
	echo "setup.sh: installing ${missing[*]}" >&2
	apt install -y --no-install-recommends "${missing[@]}"
}

# The same for what tests can do without: absent from the archive is no error.
like() {
	local package found=()
	for package; do
		installed "$package" && continue
		update_once
		if available "$package"; then found+=("$package"); fi
	done
	[ ${#found[@]} = 0 ] || need "${found[@]}"
}

# The server package makes a cluster and starts it on port 5432 unless told not
# to.  Tell it for this once, and leave the administrator's file as it was.
need_server() {
	local conf=/etc/postgresql-common/createcluster.conf
	installed "$1" && return 0
	need postgresql-common
	as_root cp -p $conf $conf.orchestrator
	# shellcheck disable=SC2064
	trap "as_root mv $conf.orchestrator $conf" EXIT
	echo 'create_main_cluster = false' | as_root tee -a $conf >/dev/null
	need "$1"
	as_root mv $conf.orchestrator $conf
	trap - EXIT
}

# The same of the pooler, which has a service, too.
need_pooler() {
	installed pgbouncer && return 0
	need pgbouncer
	as_root invoke-rc.d pgbouncer stop >&2 || true
	as_root update-rc.d pgbouncer disable >&2 || true
}

# Programs may have come from elsewhere than Debian.
need_program() {
	command -v "$1" >/dev/null || need "$2"
}

# What the clients of test/clients need.
need_clients() {
	need_program node nodejs
	need_program npm npm
	need python3-psycopg2
	need_pooler
}

# The major version to use: the one asked for, else the newest there is.
choose_version() {
	local newest
	[ -x "/usr/lib/postgresql/$wanted/bin/postgres" ] && return 0
	update_once
	available "postgresql-$wanted" && return 0
	newest=$(apt-cache depends postgresql 2>/dev/null | sed -n 's/^ *Depends: postgresql-\([0-9]*\)$/\1/p' | sort -rn | head -n 1)
	[ -n "$newest" ] || newest=$(find /usr/lib/postgresql -path '*/bin/postgres' 2>/dev/null | cut -d/ -f5 | sort -rn | head -n 1)
	[ -n "$newest" ] || { echo "setup.sh: no PostgreSQL package found" >&2; exit 1; }
	wanted=$newest
}

if ! command -v dpkg-query >/dev/null; then
	# Not Debian: whoever builds here brings their own PostgreSQL and Perl modules.
	echo "${PG_CONFIG:-$(command -v pg_config)}"
	exit
fi

if [ -n "${PG_CONFIG:-}" ] && [[ $PG_CONFIG != /usr/lib/postgresql/* ]]; then
	need perl libipc-run-perl libio-pty-perl
else
	case ${PG_CONFIG:-} in
		/usr/lib/postgresql/*) wanted=$(echo "$PG_CONFIG" | cut -d/ -f5) ;;
		*) choose_version ;;
	esac
	need_server "postgresql-$wanted"
	need "postgresql-server-dev-$wanted" "postgresql-$wanted-pgtap" "postgresql-$wanted-cron" libpq-dev libcurl4-openssl-dev libssl-dev perl libipc-run-perl libio-pty-perl
	# Not in every release, and not worth a look for news.
	if available "postgresql-$wanted-pgvector"; then like "postgresql-$wanted-pgvector"; fi
	PG_CONFIG=/usr/lib/postgresql/$wanted/bin/pg_config
fi
like clang-format-14 cppcheck libfaketime poppler-utils python3 xfig-doc
for package in "${more[@]//%/$wanted}"; do
	if [ "$package" = clients ]; then need_clients; else need "$package"; fi
done
echo "$PG_CONFIG"
