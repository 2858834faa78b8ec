#!/bin/sh
# No C function over 80 lines, counted from its opening to its closing brace.
exec awk '
	/^{/ { start = FNR }
	/^}/ {
		if (start && FNR - start > 80) {
			printf "%s:%d: function of %d lines\n", FILENAME, start, FNR - start
			bad = 1
		}
		start = 0
	}
	FNR == 1 { start = 0 }
	END { exit bad }' src/*.c src/cli/*.c src/courier/*.c /dev/null
