#!/bin/sh
# The version is in the control file; META.json and the changelog must agree.
set -eu
control=$(sed -n "s/^default_version *= *'\(.*\)'/\1/p" orchestrator.control)
changelog=$(sed -n 's/^## \([0-9][^ ]*\).*/\1/p' CHANGELOG.md | head -n 1)
bad=0
# The spec's own version, inside meta-spec, is another matter.
for meta in $(sed '/"meta-spec"/,/}/d' META.json | sed -n 's/^ *"version": "\(.*\)".*/\1/p'); do
	if [ "$meta" != "$control" ]; then
		echo "META.json says $meta, orchestrator.control $control"
		bad=1
	fi
done
if [ "$changelog" != "$control" ]; then
	echo "CHANGELOG.md opens with $changelog, orchestrator.control says $control"
	bad=1
fi
exit $bad
