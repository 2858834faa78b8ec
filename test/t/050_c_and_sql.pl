# Every transition is a SQL function; the claim and the settle of plain success
# are written a second time, in C.  Both ways are driven over the same tasks
# here, and must leave the same rows and the same trace.
#
# One server runs its executors, with the fast lane and without; in the other
# they are off and the test plays them with _claim and _settle_*.

use strict;
use warnings;

use OrchestratorTest;
use Test::More;

my $SCHEMA = <<'SQL';
CREATE SCHEMA app AUTHORIZATION app;
CREATE FUNCTION app.echo(input jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF input ? 'raise' THEN
    RAISE EXCEPTION 'asked to fail' USING ERRCODE = input ->> 'raise', DETAIL = 'why', HINT = 'what to do';
  END IF;
  RETURN nullif(input -> 'give', 'null');
END
$$;
CREATE FUNCTION app.nothing(input jsonb) RETURNS void LANGUAGE plpgsql AS 'BEGIN END';
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA app TO app;
SQL

my $DEFINE = <<'SQL';
SELECT orchestrator.define_queue('work');
SELECT orchestrator.define('echo', 'app.echo', queue => 'work', priority => 3, retry_priority_step => 2,
  retry_delay => '1 hour', retry_jitter => 0, max_attempts => 2, never_retry => '{22}', queue_timeout => '1 day');
SELECT orchestrator.define('again', 'app.echo', queue => 'work', retry_delay => '0', max_attempts => 3);
SELECT orchestrator.define('nothing', 'app.nothing', queue => 'work');
SELECT orchestrator.define('count', 'SELECT n FROM generate_series(1, ($1 ->> ''n'')::int) n', kind => 'sql', queue => 'work');
SELECT orchestrator.pause_queue('work');
SELECT orchestrator.enqueue('echo', '{"give": {"a": [1, 2]}}');
SELECT orchestrator.enqueue('echo', '{"give": null}');
SELECT orchestrator.enqueue('echo', '{"raise": "P0001"}', name => 'retries', metadata => '{"m": 1}');
SELECT orchestrator.enqueue('echo', '{"raise": "22012"}', name => 'never retried', key => 'k');
SELECT orchestrator.enqueue('again', '{"raise": "P0002"}', name => 'three attempts');
SELECT orchestrator.enqueue('nothing', priority => -1);
SELECT orchestrator.enqueue('count', '{"n": 3}', deadline => clock_timestamp() + interval '1 day');
SELECT orchestrator.enqueue('count', '{"n": 0}', traceparent => '00-1-2-01');
SELECT count(*) FROM unnest(orchestrator.enqueue_many('echo', array_fill('{"give": 7}'::jsonb, '{40}'))) id;
SELECT orchestrator.resume_queue('work');
SQL

# Play the executor: claim and settle by SQL until nothing is ready.
my $PLAY = <<'SQL';
DO $$
DECLARE
  t       orchestrator.task;
  outputs jsonb;
  claimed boolean;
  code text; said text; detail text; hint text; context text;
BEGIN
  LOOP
    claimed := false;
    FOR t IN SELECT c.* FROM orchestrator.owner o, orchestrator.queue q,
               LATERAL orchestrator._claim(o.id, q.id, 1, 7) c
             WHERE o.name = 'app' AND q.name = 'work' LOOP
      claimed := true;
      BEGIN
        outputs := CASE (SELECT d.name FROM orchestrator.definition d WHERE d.id = t.definition)
          WHEN 'count' THEN (SELECT coalesce(jsonb_agg(jsonb_build_object('n', n)), '[]')
                             FROM generate_series(1, (t.input ->> 'n')::int) n)
          WHEN 'nothing' THEN NULL
          ELSE app.echo(t.input) END;
        ASSERT orchestrator._settle_completed(t.id, t.epoch, outputs, clock_timestamp(), NULL);
      EXCEPTION WHEN SQLSTATE 'P0001' OR SQLSTATE 'P0002' OR SQLSTATE '22012' THEN
        GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, said = MESSAGE_TEXT,
          detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
        PERFORM orchestrator._settle_failed(t.id, t.epoch, 'error',
          jsonb_build_object('sqlstate', code, 'message', said, 'detail', detail, 'hint', hint, 'context', 'c'),
          clock_timestamp(), NULL);
      END;
    END LOOP;
    EXIT WHEN NOT claimed;
  END LOOP;
END
$$;
SQL

# What must be alike: everything but times, places and processes.
my $ROWS = <<'SQL';
SELECT t.id, t.live, t.state, t.held_state, d.name, t.priority, t.attempt, t.max_attempts, t.epoch, t.name, t.key,
       t.traceparent, t.input, t.output, t.error - 'context', t.metadata, t.resources, t.parent_id, t.root_id,
       t.sort_key IS NULL, t.started_at IS NULL, t.finished_at IS NULL, t.run_at IS NULL, t.expire_at IS NULL,
       t.deadline IS NULL, t.worker IS NULL, t.tableoid::regclass
FROM orchestrator.task t JOIN orchestrator.definition d ON d.id = t.definition
ORDER BY t.id;
SQL
my $TRACE = <<'SQL';
SELECT task_id, attempt, event, detail - 'duration_ms' - 'run_at' - 'context'
FROM orchestrator.trace ORDER BY task_id, at, attempt, event <> 'started';
SQL

sub make_node
{
	my %settings = @_;
	my $node = new_node(%settings);

	$node->start;
	$node->create_extension;
	$node->plain_role('app');
	$node->safe_psql('postgres', $SCHEMA);
	$node->psql_as('app', $DEFINE);
	return $node;
}

my $sql = make_node(name => 'by_sql', 'orchestrator.enabled' => 'off');
$sql->safe_psql('postgres', $PLAY);
my $rows  = $sql->safe_psql('postgres', $ROWS);
my $trace = $sql->safe_psql('postgres', $TRACE);
$sql->stop;
like($rows, qr/^1\|f\|completed/m, 'the SQL way completed a task');
like($rows, qr/\|failed\|.*never retried/, 'the SQL way failed a task');
like($rows, qr/\|scheduled\|.*retries/, 'the SQL way retries a task');

foreach my $fast ('on', 'off')
{
	my $c = make_node(name => "by_c_$fast", 'orchestrator.fast_lane' => $fast);

	$c->wait_for("SELECT count(*) FROM orchestrator.task WHERE state IN ('pending', 'running')", '0');
	is($c->safe_psql('postgres', $ROWS), $rows, "same rows, fast lane $fast");
	is($c->safe_psql('postgres', $TRACE), $trace, "same trace, fast lane $fast");
	$c->stop;
}

done_testing();
