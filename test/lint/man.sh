#!/bin/sh
# The man page is clean, where there is a groff to say so.
command -v groff >/dev/null || { echo "skipped: no groff"; exit 0; }
bad=0
for page in src/cli/*.1; do
	said=$(groff -man -Tutf8 -ww -K utf8 "$page" 2>&1 >/dev/null)
	[ -z "$said" ] || { printf '%s\n' "$said"; bad=1; }
done
exit $bad
