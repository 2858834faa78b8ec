#!/bin/sh
# Run every check of this folder; say which failed.
cd "$(dirname "$0")/../.." || exit 1
bad=0
for script in test/lint/*.sh; do
	[ "$script" != test/lint/run.sh ] || continue
	if "$script"; then
		echo "ok      $script"
	else
		echo "NOT OK  $script"
		bad=1
	fi
done
exit $bad
