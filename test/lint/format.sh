#!/bin/sh
# The layout of the C sources is clang-format's: "make format" makes it so.
# Other releases lay out differently, so only 14 may judge.
set -eu
tool=$(command -v clang-format-14 || command -v clang-format || true)
if [ -z "$tool" ] || ! "$tool" --version | grep -q 'version 14\.'; then
	echo "skipped: no clang-format 14"
	exit 0
fi
bad=0
for file in src/*.[ch] src/cli/*.[ch] src/courier/*.[ch]; do
	[ -e "$file" ] || continue
	lines=$("$tool" --dry-run -Werror "$file" 2>&1 | sed -n 's/^[^:]*:\([0-9]*\):.*/\1/p' | uniq | wc -l)
	if [ "$lines" -gt 0 ]; then
		echo "$file: $lines lines are laid out otherwise than clang-format does: make format"
		bad=1
	fi
done
exit $bad
