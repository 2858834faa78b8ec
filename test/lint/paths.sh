#!/usr/bin/env bash
# Nothing in the tree names a folder of the machine it was written on, or a
# package registry, or asks who runs it (the tests' superuser is postgres): all
# are different elsewhere.
. test/lib/common.sh
pattern='/wor[k]/'
pattern+='|/(home|root|Users)/[a-z]'
pattern+='|/tmp/[A-Za-z0-9_.-]*\.[A-Za-z0-9]{6}\b'
pattern+='|\b(pypi|npmjs|crates|rubygems|deb\.debian|security\.debian|snapshot\.debian|proxy\.golang)\.(org|com|io)\b'
pattern+='|\b(registry|artifactory|nexus)\.[a-z0-9-]+\.[a-z]+\b'
pattern+='|\bget(pwuid|pwnam|login)\b'
# The mktemp template, and names that are examples by definition, are fine.
found=$(list_files | grep -vx test/lint/paths.sh | tr '\n' '\0' | xargs -0 grep -InE "$pattern" 2>/dev/null |
	grep -vE '\.XXXXXX|example\.(com|org|net)')
if [ -n "$found" ]; then
	printf '%s\n' "$found"
	exit 1
fi
