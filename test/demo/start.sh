#!/usr/bin/env bash
# The demo: a throw-away server that indexes the PostgreSQL manual with tasks.
# It keeps everything below tmp_demo/ and is left running: stop.sh ends it.
set -u
cd "$(dirname "$0")/../.." || exit 1
. test/lib/common.sh
unset MAKEFLAGS MFLAGS MAKELEVEL

if [ -e tmp_demo/where ]; then
	echo "the demo of an earlier run is still there: make demo-stop ends it" >&2
	exit 1
fi

PG_CONFIG=$(test/setup.sh 'postgresql-doc-%') || exit 1
export PG_CONFIG

mkdir -p tmp_demo
base=$PWD/tmp_demo
# The server's user must be able to get there, and a socket's path is short.
if [ ${#base} -gt 80 ] || ! (unprivileged test -x "$base") || ! (cd / && unprivileged ls "$base" >/dev/null 2>&1); then
	base=$(mktemp -d /tmp/orchestrator-demo.XXXXXX)
	echo "the server cannot run below $PWD (its user may not enter, or the path is long): it runs in $base"
fi
chmod 755 "$base"
echo "$base" >tmp_demo/where

give_up() {
	echo "the demo did not come up; $base/server.log and $base/build.log may say why" >&2
	stop_servers "$base"
	rm -f tmp_demo/where
	exit 1
}
trap give_up INT TERM HUP

mkdir -p "$base/tree"
rm -rf "$base/data"
copy_tree "$base/tree"
give_to_unprivileged "$base"
(cd "$base/tree" && HOME_DIR=$base unprivileged bash test/demo/run.sh "$base") || give_up
