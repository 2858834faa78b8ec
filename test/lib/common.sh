# What the scripts that start servers have in common.  Sourced by bash.

# The files of the checkout: what git knows or would add; of a copy of it, what
# was copied; else (no repository) everything but what was made here.
list_files() {
	if git -c safe.directory="$PWD" ls-files --error-unmatch Makefile >/dev/null 2>&1 ||
		git -c safe.directory="$PWD" ls-files -o --exclude-standard 2>/dev/null | grep -qx Makefile; then
		git -c safe.directory="$PWD" ls-files -co --exclude-standard
	elif [ -f .files ]; then
		cat .files
	else
		find . -type f -not -path './tmp_*' -not -path './.git/*' -not -name '*.o' -not -name '*.so' | sed 's|^\./||'
	fi | sort -u | while IFS= read -r file; do
		# Deleted, but not yet from the index.
		if [ -e "$file" ]; then printf '%s\n' "$file"; fi
	done
}

# Bring the checkout to folder $1.  Times are kept, so that make compiles only
# what has changed when the folder is used again.
copy_tree() {
	local to=$1
	mkdir -p "$to"
	list_files >"$to/.files.new"
	if [ -f "$to/.files" ]; then
		comm -23 "$to/.files" "$to/.files.new" | while IFS= read -r gone; do rm -f "$to/$gone"; done
	fi
	tar -cf - -T "$to/.files.new" | tar -xf - -C "$to" --no-same-owner
	mv "$to/.files.new" "$to/.files"
}

# PostgreSQL refuses to run as root: as root, run as the user its package made.
unprivileged() {
	if [ "$(id -u)" = 0 ]; then
		exec setpriv --reuid=postgres --regid=postgres --init-groups env HOME="${HOME_DIR:-/tmp}" USER=postgres LOGNAME=postgres "$@"
	else
		exec "$@"
	fi
}

give_to_unprivileged() {
	if [ "$(id -u)" = 0 ]; then chown -R postgres:postgres "$@"; fi
}

# End every server whose data folder lies below $1.  The process must really be
# sitting in that folder: a number in a stale file may belong to somebody else.
stop_servers() {
	local file pid data tries
	find "$1" -name postmaster.pid 2>/dev/null | while IFS= read -r file; do
		pid=$(head -n 1 "$file" 2>/dev/null) || continue
		data=$(dirname "$file")
		[ "$(readlink "/proc/$pid/cwd" 2>/dev/null)" = "$(readlink -f "$data")" ] || continue
		kill -INT "$pid" 2>/dev/null
		for tries in $(seq 100); do
			kill -0 "$pid" 2>/dev/null || break
			sleep 0.1
		done
		# Its children leave by themselves when it is gone.
		if kill -0 "$pid" 2>/dev/null; then kill -KILL "$pid"; fi
	done
}
