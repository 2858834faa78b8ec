#!/usr/bin/env bash
# End the demo's server and delete what it wrote.
set -u
cd "$(dirname "$0")/../.." || exit 1
. test/lib/common.sh

if [ ! -e tmp_demo/where ]; then
	echo "no demo is running"
	exit 0
fi
base=$(cat tmp_demo/where)
stop_servers "$base"
rm -rf tmp_demo
# The other place it may have taken, and nothing else.
case $base in
	/tmp/orchestrator-demo.*) rm -rf "$base" ;;
esac
echo "the demo has ended"
