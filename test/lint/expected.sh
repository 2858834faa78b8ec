#!/bin/sh
# Every test has its expected output, and every expected output its test.  Tests
# and specs share expected/, so a name may be used once only.
bad=0
for test in test/sql/*.sql test/specs/*.spec; do
	[ -e "$test" ] || continue
	name=$(basename "${test%.*}")
	[ -f "expected/$name.out" ] || { echo "$test: no expected/$name.out"; bad=1; }
	if [ -e "test/sql/$name.sql" ] && [ -e "test/specs/$name.spec" ]; then
		echo "$test: the name is used twice"
		bad=1
	fi
done
for out in expected/*.out; do
	[ -e "$out" ] || continue
	# name_1.out is another accepted output of name.
	name=$(basename "$out" .out)
	plain=${name%_[0-9]}
	for try in "test/sql/$name.sql" "test/specs/$name.spec" "test/sql/$plain.sql" "test/specs/$plain.spec"; do
		[ ! -e "$try" ] || continue 2
	done
	echo "$out: no such test"
	bad=1
done
exit $bad
