#!/bin/sh
# Refuse an #include that points upstream.  Lowest layer first: a file may
# include its own header and those of the layers before it.
set -eu
order="
frame
url
compat
guc
duty
adapt
json
shmem
cron
note
lane
depth
permit
endpoint
waiter
event
stream
notify
catalog
identity
heap
partition
admit
fair
progress
request
wait
follow
plan
sketch
stats
position
enqueue
notice
limit
remote_lane
remote
gather
collect
claim
item
tune
handler
procedure
execute
workflow
settle
lease
carry
piece
delta
call
parcel
place
child
transit
dispatch
deliver
courier
executor
pool
retention
supervisor
database
launcher
orchestrator
"
rank() { echo "$order" | grep -nx "$1" | cut -d: -f1; }
bad=0
for file in src/*.[ch]; do
	[ -e "$file" ] || continue
	self=$(basename "${file%.*}")
	mine=$(rank "$self")
	if [ -z "$mine" ]; then
		echo "$file: not in the list of layers (test/lint/layers.sh)"
		bad=1
		continue
	fi
	for dep in $(sed -n 's/^#include "\([a-z_]*\)\.h"$/\1/p' "$file"); do
		[ -f "src/$dep.h" ] || continue
		theirs=$(rank "$dep")
		if [ -z "$theirs" ] || [ "$theirs" -gt "$mine" ]; then
			echo "$file: includes upstream $dep.h"
			bad=1
		fi
	done
done

# The courier's program shares the frames with the module, and nothing else.
for file in src/courier/*.[ch]; do
	for dep in $(sed -n 's/^#include "\([a-z_]*\)\.h"$/\1/p' "$file"); do
		if [ -f "src/$dep.h" ] && [ "$dep" != frame ]; then
			echo "$file: includes $dep.h of the module"
			bad=1
		fi
	done
done
if grep -n '^#include "courier/' src/*.[ch]; then bad=1; fi

# The client stands apart: neither includes anything of the other.
for file in src/cli/*.[ch]; do
	[ -e "$file" ] || continue
	for dep in $(sed -n 's/^#include "\([a-z_]*\)\.h"$/\1/p' "$file"); do
		if [ -f "src/$dep.h" ]; then
			echo "$file: includes $dep.h of the module"
			bad=1
		fi
	done
done
if grep -n '^#include "cli/' src/*.[ch]; then bad=1; fi
exit $bad
