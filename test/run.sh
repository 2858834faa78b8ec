#!/usr/bin/env bash
# Build a copy of the tree in a folder of its own and run there, as a user who
# may run servers:
#
#   run.sh test     every kind of test, or those whose name matches T
#   run.sh ubsan    the same, with the undefined behaviour sanitizer
#   run.sh bench    test/bench/run
#   run.sh chaos    test/chaos/run
#
# The copy is what lets root test a checkout in a folder only root can enter,
# and what keeps a build for testing apart from a build for use.  WORK=dir names
# the folder and keeps it.  The last line of a test run is "N passed, N failed".
set -u
cd "$(dirname "$0")/.." || exit 1
. test/lib/common.sh
what=${1:-test}

# ---------------------------------------------------------------- outer run

# Prepare the copy, run this script in it, and leave nothing behind.
outer() {
	local checkout=$PWD status
	PG_CONFIG=$(test/setup.sh clients) || exit 1
	export PG_CONFIG
	# Of the make that called us; the makes to come have options of their own.
	unset MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES

	if [ -n "${WORK:-}" ]; then
		work=$WORK
		mkdir -p "$work" || exit 1
		work=$(cd "$work" && pwd)
	else
		work=$(mktemp -d /tmp/orchestrator-test.XXXXXX)
	fi
	chmod 755 "$work"
	inner=
	trap clean_up EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM HUP

	copy_tree "$work" || exit 1
	mkdir -p "$work/tmp"
	give_to_unprivileged "$work"

	# A session of its own, so that all of it can be ended together.
	export -f unprivileged
	(
		cd "$work" && HOME_DIR=$work INNER=1 exec setsid bash -c 'unprivileged bash test/run.sh "$1"' - "$what"
	) &
	inner=$!
	wait "$inner"
	status=$?
	inner=

	if [ "$status" != 0 ]; then
		rm -rf "$checkout/tmp_failed"
		mkdir -p "$checkout/tmp_failed"
		cp -R "$work/out/." "$checkout/tmp_failed/" 2>/dev/null
	fi
	exit "$status"
}

clean_up() {
	if [ -n "$inner" ]; then
		kill -TERM -- "-$inner" 2>/dev/null
		wait "$inner" 2>/dev/null
	fi
	stop_servers "$work"
	[ -n "${WORK:-}" ] || rm -rf "$work"
}

# ---------------------------------------------------------------- inner run

passed=0
failed=0

# Count one part: count NAME PASSED FAILED STATUS.  A part that failed without a
# failed test (no server, a script that died) counts as one.
count() {
	local bad=$3
	[ "$4" = 0 ] || [ "$bad" -gt 0 ] || bad=1
	passed=$((passed + $2))
	failed=$((failed + bad))
	printf '%-8s %-40s %5d passed %5d failed\n' "$([ "$bad" = 0 ] && echo ok || echo 'NOT OK')" "$1" "$2" "$bad"
}

tail_of() {
	local file
	for file; do
		if [ -s "$file" ]; then
			printf -- '------ end of %s\n' "$file"
			tail -n "${LINES_OF_LOG:-40}" "$file"
		fi
	done
}

# Those of the given files whose name matches T, without folder and ending.
matching() {
	local file name
	for file; do
		[ -e "$file" ] || continue
		name=$(basename "${file%.*}")
		if [ -z "${T:-}" ] || grep -qE -- "$T" <<<"$name"; then echo "$name"; fi
	done
}

build() {
	local flags=(WERROR=1) status
	[ "$what" != ubsan ] || flags+=('COPT=-fsanitize=undefined -fno-omit-frame-pointer')
	[ "$what" != bench ] || flags=()
	# Other flags than in the last run in this folder: nothing of it is of use.
	if [ "${flags[*]}" != "$(cat .flags 2>/dev/null)" ]; then
		make --no-print-directory PG_CONFIG="$PG_CONFIG" clean >/dev/null 2>&1
		echo "${flags[*]}" >.flags
	fi
	make --no-print-directory -j"$(nproc)" PG_CONFIG="$PG_CONFIG" "${flags[@]}" private-install >out/build.log 2>&1
	status=$?
	if [ "$status" != 0 ]; then cat out/build.log; fi
	return "$status"
}

run_lint() {
	local script name status
	for script in test/lint/*.sh; do
		name=$(basename "$script" .sh)
		[ "$name" != run ] || continue
		"$script" >"out/lint_$name.log" 2>&1
		status=$?
		count "lint/$name" $((status == 0)) $((status != 0)) "$status"
		[ "$status" = 0 ] || cat "out/lint_$name.log"
	done
}

# pg_regress says "test x ... ok" up to 15 and "ok 1 - x" from 16 on.
run_regress() {
	local kind=$1 tests=$2 log=out/$1.log status
	[ -n "$tests" ] || return 0
	if [ "$kind" = regress ]; then
		set -- REGRESS="$tests" ISOLATION=
	else
		set -- ISOLATION="$tests" REGRESS=
	fi
	rm -rf regression.diffs log
	make --no-print-directory PG_CONFIG="$PG_CONFIG" WERROR=1 TAP_TESTS= "$@" installcheck >"$log" 2>&1
	status=$?
	count "$kind" \
		"$(grep -cE '^(test .* \.\.\. ok|ok [0-9])' "$log")" \
		"$(grep -cE '^(test .* \.\.\. FAILED|not ok [0-9])' "$log")" "$status"
	if [ "$status" != 0 ]; then
		if [ -s regression.diffs ]; then cat regression.diffs; else cat "$log"; fi
		tail_of log/postmaster.log
		[ ! -s regression.diffs ] || cp regression.diffs "out/$kind.diffs"
	fi
	collect_findings
}

# Count assertions, at any depth; the line that sums a subtest up is none, unless
# it failed for a reason of its own, such as a wrong plan.
count_tap() {
	awk '
		function indent_of(line) { match(line, /^ */); return RLENGTH }
		/^ *(not )?ok [0-9]/ {
			indent = indent_of($0)
			bad = ($0 ~ /^ *not ok/) && ($0 !~ /# *TODO/)
			if (indent < last) {
				if (bad && !inside[indent]) failed++
				inside[indent] = 0
			} else if (bad)
				failed++
			else
				passed++
			if (bad) for (i = 0; i < indent; i += 4) inside[i] = 1
			last = indent
		}
		END { print passed + 0, failed + 0 }' "$1"
}

run_tap() {
	local file=$1 name log status numbers
	name=$(basename "$file" .pl)
	log=out/$name.log
	rm -rf tmp_check/log
	prove --verbose --merge -I "$perl_lib" -I test/lib "$file" >"$log" 2>&1
	status=$?
	numbers=$(count_tap "$log")
	# shellcheck disable=SC2086
	count "t/$name" $numbers "$status"
	if [ "$status" != 0 ]; then
		grep -vE "^ *ok [0-9]" "$log" | tail -n 150
		tail_of tmp_check/log/*"$name"*
		mkdir -p "out/$name"
		cp tmp_check/log/* "out/$name/" 2>/dev/null
	fi
	collect_findings
}

# What the sanitizer wrote to the logs of the servers, which the next part will
# overwrite.
collect_findings() {
	[ "$what" = ubsan ] || return 0
	grep -rhs 'runtime error:' log tmp_check/log >>out/findings.raw
}

report_findings() {
	local number
	sort -u out/findings.raw >out/findings
	number=$(wc -l <out/findings)
	count sanitizer $((number == 0)) "$number" 0
	cat out/findings
}

run_tests() {
	local start=$SECONDS regress specs taps pgtap name
	regress=$(matching test/sql/*.sql | xargs)
	specs=$(matching test/specs/*.spec | xargs)
	pgtap=$(matching test/pgtap/*.sql)
	taps=$(matching test/t/*.pl)

	if [ -z "${T:-}" ]; then
		[ "$what" = ubsan ] || run_lint
	else
		# Ask 001_pgtap.pl for the files that match, unless all were asked for.
		if [ -n "$pgtap" ] && ! grep -qx 001_pgtap <<<"$taps"; then
			taps=$(printf '%s\n' 001_pgtap $taps)
			export ORCHESTRATOR_PGTAP=$pgtap
		fi
	fi

	build
	name=$?
	count build $((name == 0)) $((name != 0)) "$name"
	if [ "$name" = 0 ]; then
		run_regress regress "$regress"
		run_regress isolation "$specs"
		for name in $taps; do
			run_tap "test/t/$name.pl"
		done
		[ "$what" != ubsan ] || report_findings
	fi

	echo "took $((SECONDS - start)) s with $("$PG_CONFIG" --version)"
	[ "$failed" = 0 ] || echo "the logs of what failed are in tmp_failed/"
	echo "$passed passed, $failed failed"
	[ "$failed" = 0 ]
}

inner() {
	local bindir pgxs
	bindir=$("$PG_CONFIG" --bindir)
	pgxs=$(dirname "$("$PG_CONFIG" --pgxs)")
	perl_lib=$(cd "$pgxs/../test/perl" && pwd)

	# What PostgreSQL::Test::Cluster and pg_regress expect, as PGXS sets it;
	# pgbouncer is where Debian lets only root look.
	export PATH="$bindir:$PATH:/usr/sbin" TESTDIR="$PWD" PG_REGRESS="$pgxs/../test/regress/pg_regress"
	export TESTLOGDIR="$PWD/tmp_check/log" TESTDATADIR="$PWD/tmp_check"
	export ORCHESTRATOR_CONF="$PWD/tmp_install/server.conf"
	export LC_ALL=C.UTF-8 TMPDIR="$PWD/tmp"
	export PERL5LIB="$perl_lib:$PWD/test/lib"
	# The caller's connection is no business of the tests.
	unset LANG LANGUAGE PGDATABASE PGHOST PGUSER PGPASSWORD PGSERVICE PGOPTIONS PGDATA
	# Below this many characters a socket's path is safe; else take the system's.
	[ ${#TMPDIR} -lt 60 ] || TMPDIR=/tmp
	export PGPORT=65432

	rm -rf out
	rm -rf tmp_check
	mkdir -p out tmp tmp_check
	case $what in
		test | ubsan) run_tests ;;
		bench | chaos) build && "test/$what/run" ;;
		*) echo "run.sh: unknown: $what" >&2; return 1 ;;
	esac
}

if [ -n "${INNER:-}" ]; then
	unset INNER
	inner
else
	outer
fi
