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
# the folder and keeps it.
#
# The files of a test run are run beside each other, LANES= at once (two, unless
# there is one core only): the next one goes to the lane that gets free first.
# One that says "# lane: alone" in its head is run with nothing beside it, at the
# end.  The last line of a test run is "N passed, N failed".
set -u
cd "$(dirname "$0")/.." || exit 1
. test/lib/common.sh
what=${1:-test}

# ---------------------------------------------------------------- outer run

# Prepare the copy, run this script in it, and leave nothing behind.
outer() {
	local checkout=$PWD status
	if ! [[ ${LANES:-1} =~ ^[1-9][0-9]*$ ]]; then
		echo "run.sh: LANES=$LANES: not a number of lanes" >&2
		exit 1
	fi
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
	mkdir -p "$work/tmp" "$work/tmp_home"
	give_to_unprivileged "$work"

	# A session of its own, so that all of it can be ended together.
	export -f unprivileged
	(
		cd "$work" && HOME_DIR=$work/tmp_home INNER=1 exec setsid bash -c 'unprivileged bash test/run.sh "$1"' - "$what"
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

# Make passes on the signal that it got itself: a second one changes nothing.
clean_up() {
	trap '' INT TERM HUP
	[ -z "$inner" ] || end_session "$inner"
	stop_servers "$work"
	[ -n "${WORK:-}" ] || rm -rf "$work"
}

# Tests that are ended stop their servers: what still starts one must be gone
# before the servers are looked for.
end_session() {
	kill -TERM -- "-$1" 2>/dev/null
	for _ in $(seq 100); do
		kill -0 -- "-$1" 2>/dev/null || return 0
		sleep 0.1
	done
	kill -KILL -- "-$1" 2>/dev/null
}

# ---------------------------------------------------------------- inner run

passed=0
failed=0

# Count one part: count NAME PASSED FAILED STATUS SECONDS.  A part that failed
# without a failed test (no server, a script that died) counts as one.
count() {
	local bad=$3
	[ "$4" = 0 ] || [ "$bad" -gt 0 ] || bad=1
	passed=$((passed + $2))
	failed=$((failed + bad))
	printf '%-8s %-40s %5d passed %5d failed %5d s\n' "$([ "$bad" = 0 ] && echo ok || echo 'NOT OK')" "$1" "$2" "$bad" "$5"
}

# Run jobs beside each other: in_lanes LANES JOB...  A job is "build", "lint/x",
# "regress", "isolation" or "t/x"; it writes to files only.  What there is to
# count and to print of it, this process counts and prints when it has ended.
in_lanes() {
	local lanes=$1 busy=0 job status seconds
	shift
	while [ $# -gt 0 ] || [ "$busy" -gt 0 ]; do
		if [ $# -gt 0 ] && [ "$busy" -lt "$lanes" ]; then
			run_job "$1" &
			busy=$((busy + 1))
			shift
		else
			read -r -u "$ended" job status seconds
			busy=$((busy - 1))
			"report_${job%%/*}" "${job#*/}" "$status" "$seconds"
		fi
	done
}

run_job() {
	local start=$SECONDS
	"run_${1%%/*}" "${1#*/}" {ended}>&-
	echo "$1 $? $((SECONDS - start))" >&"$ended"
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

run_build() {
	local flags=(WERROR=1)
	[ "$what" != ubsan ] || flags+=('COPT=-fsanitize=undefined -fno-omit-frame-pointer')
	[ "$what" != bench ] || flags=()
	# Other flags than in the last run in this folder: nothing of it is of use.
	if [ "${flags[*]}" != "$(cat .flags 2>/dev/null)" ]; then
		make --no-print-directory PG_CONFIG="$PG_CONFIG" clean >/dev/null 2>&1
		echo "${flags[*]}" >.flags
	fi
	make --no-print-directory -j"$(nproc)" PG_CONFIG="$PG_CONFIG" "${flags[@]}" private-install >out/build.log 2>&1
}

report_build() {
	count build $(($2 == 0)) $(($2 != 0)) "$2" "$3"
	[ "$2" = 0 ] || cat out/build.log
	built=$2
}

run_lint() {
	"test/lint/$1.sh" >"out/lint_$1.log" 2>&1
}

report_lint() {
	count "lint/$1" $(($2 == 0)) $(($2 != 0)) "$2" "$3"
	[ "$2" = 0 ] || cat "out/lint_$1.log"
}

run_regress() {
	installcheck regress REGRESS="$regress" ISOLATION=
}

run_isolation() {
	installcheck isolation ISOLATION="$specs" REGRESS=
}

# What was installed stays as it is: tests beside these use it.
installcheck() {
	local log=out/$1.log
	shift
	rm -rf regression.diffs log
	make --no-print-directory PG_CONFIG="$PG_CONFIG" WERROR=1 TAP_TESTS= -o private-install "$@" installcheck >"$log" 2>&1
}

# pg_regress says "test x ... ok" up to 15 and "ok 1 - x" from 16 on.
report_regress() {
	local log=out/$1.log
	count "$1" \
		"$(grep -cE '^(test .* \.\.\. ok|ok [0-9])' "$log")" \
		"$(grep -cE '^(test .* \.\.\. FAILED|not ok [0-9])' "$log")" "$2" "$3"
	if [ "$2" != 0 ]; then
		if [ -s regression.diffs ]; then cat regression.diffs; else cat "$log"; fi
		tail_of log/postmaster.log
		[ ! -s regression.diffs ] || cp regression.diffs "out/$1.diffs"
	fi
	collect_findings log
}

report_isolation() { report_regress "$@"; }

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

# A file of test/t, with folders of its own: 15 goes by TESTDIR, 16 and up by the
# others.
run_t() {
	local folder=$PWD/tmp_check/$1
	mkdir -p "$folder/tmp_check"
	TESTDIR=$folder TESTDATADIR=$folder/tmp_check TESTLOGDIR=$folder/tmp_check/log \
		prove --verbose --merge -I "$perl_lib" -I test/lib "test/t/$1.pl" >"out/$1.log" 2>&1
}

report_t() {
	local log=out/$1.log logs=tmp_check/$1/tmp_check/log
	# shellcheck disable=SC2046
	count "t/$1" $(count_tap "$log") "$2" "$3"
	if [ "$2" != 0 ]; then
		grep -vE "^ *ok [0-9]" "$log" | tail -n 150
		tail_of "$logs"/*"$1"*
		mkdir -p "out/$1"
		cp "$logs"/* "out/$1/" 2>/dev/null
	fi
	collect_findings "$logs"
}

# What the sanitizer wrote to the logs of the servers.
collect_findings() {
	[ "$what" = ubsan ] || return 0
	grep -rhs 'runtime error:' "$1" >>out/findings.raw
}

report_findings() {
	local number
	sort -u out/findings.raw >out/findings
	number=$(wc -l <out/findings)
	count sanitizer $((number == 0)) "$number" 0 0
	cat out/findings
}

run_tests() {
	local lints=() tests=() alone=() taps pgtap name
	regress=$(matching test/sql/*.sql | xargs)
	specs=$(matching test/specs/*.spec | xargs)
	pgtap=$(matching test/pgtap/*.sql)
	taps=$(matching test/t/*.pl)

	if [ -z "${T:-}" ]; then
		[ "$what" = ubsan ] || mapfile -t lints < <(basename -s .sh test/lint/*.sh | grep -vx run)
	else
		# Ask 001_pgtap.pl for the files that match, unless all were asked for.
		if [ -n "$pgtap" ] && ! grep -qx 001_pgtap <<<"$taps"; then
			taps=$(printf '%s\n' 001_pgtap $taps)
			export ORCHESTRATOR_PGTAP=$pgtap
		fi
	fi

	in_lanes "$LANES" build "${lints[@]/#/lint/}"
	if [ "$built" = 0 ]; then
		# They share folders, and may not be beside each other.
		[ -z "$regress" ] || in_lanes 1 regress
		[ -z "$specs" ] || tests+=(isolation)
		for name in $taps; do
			if grep -q '^# lane: alone$' "test/t/$name.pl"; then alone+=("t/$name"); else tests+=("t/$name"); fi
		done
		in_lanes "$LANES" "${tests[@]}"
		in_lanes 1 "${alone[@]}"
		[ "$what" != ubsan ] || report_findings
	fi

	echo "took $SECONDS s with $("$PG_CONFIG" --version)"
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
	export TESTLOGDIR="$PWD/tmp_check/log" TESTDATADIR="$PWD/tmp_check" PG_TEST_PORT_DIR="$PWD/tmp_check/portlock"
	export ORCHESTRATOR_CONF="$PWD/tmp_install/server.conf"
	export LC_ALL=C.UTF-8 TMPDIR="$PWD/tmp"
	export PERL5LIB="$perl_lib:$PWD/test/lib"
	# The caller's connection is no business of the tests.
	unset LANG LANGUAGE PGDATABASE PGHOST PGUSER PGPASSWORD PGSERVICE PGOPTIONS PGDATA
	# Below this many characters a socket's path is safe; else take the system's.
	[ ${#TMPDIR} -lt 60 ] || TMPDIR=/tmp
	export PGPORT=65432
	LANES=${LANES:-$(($(nproc) > 1 ? 2 : 1))}

	rm -rf out
	rm -rf tmp_check
	mkdir -p out tmp tmp_check
	# Jobs tell their end here; it is open at both ends, so nobody waits for it.
	mkfifo out/ended
	exec {ended}<>out/ended
	rm out/ended
	case $what in
		test | ubsan) run_tests ;;
		bench | chaos) if run_build; then "test/$what/run"; else cat out/build.log; return 1; fi ;;
		*) echo "run.sh: unknown: $what" >&2; return 1 ;;
	esac
}

if [ -n "${INNER:-}" ]; then
	unset INNER
	inner
else
	outer
fi
