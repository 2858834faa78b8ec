#!/bin/sh
# Install the built extension below DIR and write DIR/server.conf, with which a
# server finds it there: nothing is written to the system's PostgreSQL, and no
# test needs root.  Called by make: private-install.sh DIR PG_CONFIG MAKE
set -eu
dir=$1 pg_config=$2 make=$3

version=$("$pg_config" --version | sed 's/^PostgreSQL \([0-9]*\).*/\1/')
mkdir -p "$dir"

# Debian's servers before 18 have extension_destdir; any 18 has
# extension_control_path.  Both need the library's folder besides, for preload.
if [ "$version" -ge 18 ]; then
	where="extension_control_path = '$dir$("$pg_config" --sharedir):\$system'"
elif "$("$pg_config" --bindir)/postgres" --describe-config | grep -q '^extension_destdir'; then
	where="extension_destdir = '$dir'"
else
	echo "this server only finds extensions in its own folders:" \
		"make install, then make installcheck EXISTING=1" >&2
	exit 1
fi

"$make" --no-print-directory install DESTDIR="$dir" PG_CONFIG="$pg_config" >"$dir/install.log" 2>&1 || {
	cat "$dir/install.log" >&2
	exit 1
}

{
	cat test/server.conf
	echo "$where"
	echo "dynamic_library_path = '$dir$("$pg_config" --pkglibdir):\$libdir'"
} >"$dir/server.conf"
