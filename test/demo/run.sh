#!/usr/bin/env bash
# The demo itself, as the user that runs the server, in a copy of the tree:
# run.sh BASE.  Called by start.sh.
set -eu
base=$1
bin=$("$PG_CONFIG" --bindir)
major=$("$PG_CONFIG" --version | sed 's/^PostgreSQL \([0-9]*\).*/\1/')
export PATH="$bin:$PATH" LC_ALL=C.UTF-8
unset LANG PGSERVICE PGPASSWORD PGOPTIONS PGDATA
export PGHOST=$base PGPORT=54321 PGDATABASE=demo

section() { printf '\n== %s\n\n' "$1"; }
admin() { psql -X -q -v ON_ERROR_STOP=1 "$@"; }
app() { psql -X -q -v ON_ERROR_STOP=1 -U demo_app "$@"; }

# Show a number of tasks or a fraction on one line that moves; without a
# terminal, on one line each time it has changed.
progress_line() {
	if [ -t 1 ]; then
		printf '\r\033[K%s' "$1"
	elif [ "$1" != "${shown:-}" ]; then
		printf '%s\n' "$1"
	fi
	shown=$1
}

# Follow a query that answers "state of things|number of unfinished tasks".
follow() {
	local answer deadline=$((SECONDS + 300))
	while :; do
		answer=$(app -At -c "$1")
		progress_line "${answer%|*}"
		[ "${answer##*|}" != 0 ] || break
		if [ $SECONDS -gt $deadline ]; then
			printf '\nnot finished after five minutes\n' >&2
			return 1
		fi
		sleep 0.25
	done
	[ ! -t 1 ] || echo
}

section "Build, into $base"
make --no-print-directory -j"$(nproc)" PG_CONFIG="$PG_CONFIG" private-install >"$base/build.log" 2>&1 || {
	tail -n 20 "$base/build.log"
	exit 1
}
grep -E '^(extension_|dynamic_)' tmp_install/server.conf

section "A server of its own: Unix socket only, preloading pg_cron and orchestrator"
initdb -D "$base/data" -U postgres -A trust --encoding=UTF8 --no-locale >"$base/initdb.log" 2>&1 || {
	cat "$base/initdb.log"
	exit 1
}
{
	grep -E '^(extension_|dynamic_)' tmp_install/server.conf
	cat <<CONF
shared_preload_libraries = 'pg_cron, orchestrator'
cron.database_name = 'demo'
cron.use_background_workers = on
listen_addresses = ''
unix_socket_directories = '$base'
port = $PGPORT
max_worker_processes = 16
CONF
} >>"$base/data/postgresql.conf"
pg_ctl -D "$base/data" -l "$base/server.log" -w start >/dev/null
psql -X -q -U postgres -d postgres -c 'CREATE DATABASE demo'
admin -U postgres -At -c "SELECT version()"

section "The corpus: the PostgreSQL manual"
html=/usr/share/doc/postgresql-doc-$major/html
# Images for containers leave out the files of documentation packages.
if [ ! -e "$html/index.html" ]; then
	(mkdir -p "$base/doc" && cd "$base/doc" && apt-get -qq download "postgresql-doc-$major" && dpkg-deb -x ./*.deb .)
	html=$base/doc$html
fi
admin -U postgres -v html="$html" -f test/demo/corpus.sql
app -At -c "SELECT count(*) || ' pages, ' || pg_size_pretty(sum(length(html))) FROM demo.page"

section "One workflow per document, enqueued by role demo_app in one transaction"
app -f test/demo/tasks.sql
app -At -c "SELECT orchestrator.definition_graph('document')"
echo
follow "SELECT format('%s of %s documents, %s failed; %s', done, total, failed, now), total - done - approvals
FROM (SELECT count(*) AS total,
        count(*) FILTER (WHERE finished_at IS NOT NULL) AS done,
        count(*) FILTER (WHERE finished_at IS NOT NULL AND state = 'failed') AS failed
      FROM orchestrator.task_status WHERE definition = 'document') AS t,
  (SELECT count(*) AS approvals FROM orchestrator.task_status WHERE definition = 'orchestrator.wait' AND finished_at IS NULL) AS a,
  (SELECT coalesce(string_agg(format('%s %s %%', substring(input ->> 'page' FROM '(.*)\.html'), round(100 * progress::numeric)), ', '), '') AS now
   FROM (SELECT input, progress FROM orchestrator.task_status
         WHERE definition = 'document' AND finished_at IS NULL AND state = 'running' LIMIT 3) AS r) AS r"

section "One of them waits for an approval: its graph, now"
run=$(app -At -c "SELECT task_id FROM orchestrator.task_status WHERE name = 'a page that somebody approves'")
app -At -c "SELECT orchestrator.graph($run)"
echo
app -At -c "SELECT orchestrator.approve($run, 'approval', '{\"note\": \"well written\"}')" >/dev/null
app -At -c "SELECT format('approved; its output: %s', (orchestrator.wait($run, '1 minute')).output)"
echo
app -At -c "SELECT orchestrator.graph($run)"

section "One long task: rank the pages by their links, with progress from inside its open transaction"
task=$(app -At -c "SELECT orchestrator.enqueue('rank_pages', '{\"rounds\": 150}')")
follow "SELECT format('[%s] %s%% %s', rpad(repeat('#', (40 * fraction)::int), 40), round(100 * fraction::numeric), message),
  (state IN ('scheduled', 'pending', 'running'))::int
FROM (SELECT coalesce(progress, 0) AS fraction, message, state
      FROM orchestrator.task_status WHERE task_id = $task) AS t"

app -f test/demo/report.sql

if [ -x "$(find tmp_install -name orchestrator-courier)" ] && command -v python3 >/dev/null; then
	section "An agent on the manual: a model (the tests' own, its answers are written down) plans with a search in SQL as its tool"
	python3 -u -B test/model/model.py --script test/demo/agent.json >"$base/model.log" 2>&1 &
	model=$!
	trap 'kill $model' EXIT
	until grep -qs '^listening' "$base/model.log"; do sleep 0.1; done
	admin -U postgres -c "CREATE SERVER model FOREIGN DATA WRAPPER orchestrator_http
	  OPTIONS (url '$(sed -n 's/^listening on //p' "$base/model.log")/v1', provider 'openai', allow_private 'on')"
	admin -U postgres -c "GRANT USAGE ON FOREIGN SERVER model TO demo_app" -c "SELECT orchestrator.set_price('demo', 1, 4)" >/dev/null
	app -f test/demo/agent.sql
	kill $model
	trap - EXIT
fi

section "The server is still running"
echo "  psql -h $PGHOST -p $PGPORT -U demo_app demo"
echo
echo "make demo-stop ends it."
