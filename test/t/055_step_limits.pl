# What bounds and what is kept of a running step: response_timeout, the
# policy alert, a step that catches its cancel, notices in the trace, progress
# on the channel of everything.

use strict;
use warnings;

use OrchestratorTest;
use Test::More;

my $node = new_node();
$node->start;
$node->create_extension;
$node->plain_role('app');
$node->safe_psql('postgres', 'ALTER ROLE app SET orchestrator.trace_notices = on');
$node->safe_psql('postgres', 'CREATE SCHEMA app AUTHORIZATION app');
$node->psql_as('app', <<'SQL');
CREATE FUNCTION app.sleep(input jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  RAISE NOTICE 'attempt %', (orchestrator.current_task()).attempt USING DETAIL = 'd';
  FOR i IN 1 .. (input ->> 'times')::int LOOP
    PERFORM pg_sleep((input ->> 'seconds')::float8);
    IF input ? 'report' THEN
      PERFORM orchestrator.progress(0.5, 'half');
    END IF;
  END LOOP;
  RETURN '"slept"';
END
$$;
CREATE FUNCTION app.stubborn(input jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  BEGIN
    PERFORM pg_sleep(60);
  EXCEPTION WHEN query_canceled THEN
  END;
  PERFORM pg_sleep(60);
  RETURN '"not stopped"';
END
$$;
SELECT orchestrator.define('silent', 'app.sleep', response_timeout => '100 ms', max_attempts => 1, notify => 'all');
SELECT orchestrator.define('alert', 'app.sleep', timeout => '20 ms', timeout_policy => 'alert');
SELECT orchestrator.define('quiet', 'app.sleep', response_timeout => '20 ms', timeout_policy => 'alert');
SELECT orchestrator.define('stubborn', 'app.stubborn', timeout => '100 ms', max_attempts => 1);
SQL

sub outcome
{
	my ($call) = @_;
	return $node->psql_as('app', "SELECT id FROM orchestrator.enqueue($call) id \\gset
		SELECT (w).state, (w).output, (w).error ->> 'sqlstate', (w).error ->> 'message'
		FROM orchestrator.wait(:id, '20 s') w");
}

is(outcome(q{'silent', '{"times": 1, "seconds": 30}'}),
	'failed||OR004|step reported nothing for 100 ms', 'a silent step times out');
is(outcome(q{'silent', '{"times": 8, "seconds": 0.05, "report": true}'}),
	'completed|"slept"||', 'one that reports may take longer');
is(outcome(q{'alert', '{"times": 1, "seconds": 0.05}'}),
	'completed|"slept"||', 'policy alert lets a step finish');
is($node->psql_as('app', q{SELECT event, attempt, detail -> 'timeout_ms' FROM orchestrator.trace
	WHERE event = 'timeout'}), 'timeout|1|20', 'and traces that it was late');
is(outcome(q{'quiet', '{"times": 1, "seconds": 0.2}'}), 'completed|"slept"||', 'so may one that is silent');
is($node->psql_as('app', q{SELECT attempt, detail -> 'response_timeout_ms' FROM orchestrator.trace
	WHERE event = 'timeout' AND detail ? 'response_timeout_ms'}), '1|20', 'and the trace says that it was');
is(outcome(q{'stubborn', '{}'}),
	'failed||OR004|step ran longer than 100 ms', 'a step that catches its cancel is cancelled again');
is($node->psql_as('app', q{SELECT detail ->> 'level', detail ->> 'message', detail ->> 'detail' FROM orchestrator.trace
	WHERE event = 'notice' ORDER BY at LIMIT 1}), 'NOTICE|attempt 1|d', 'a notice is traced, also of a failed step');
unlike(PostgreSQL::Test::Utils::slurp_file($node->logfile), qr/NOTICE:  attempt/, 'and is not logged');

# LOG stands below INFO among the levels, but a log that asks for it asks for no
# other.
$node->safe_psql('postgres', q{ALTER ROLE app SET log_min_messages = log;
	SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE backend_type = 'orchestrator executor'});
$node->psql_as('app', q{SELECT orchestrator.define('talk',
	$$DO 'BEGIN RAISE DEBUG ''no''; RAISE INFO ''one''; RAISE NOTICE ''two''; RAISE WARNING ''three''; END'$$, 'sql')});
is(outcome(q{'talk'}), 'completed|{"rows": 0}||', 'a step that says much');
is($node->psql_as('app', q{SELECT string_agg((detail ->> 'level') || ' ' || (detail ->> 'message'), ', ' ORDER BY at) FROM orchestrator.trace
	WHERE event = 'notice' AND detail ->> 'message' IN ('no', 'one', 'two', 'three')}), 'INFO one, NOTICE two, WARNING three', 'is traced, whatever the log asks for');
unlike(PostgreSQL::Test::Utils::slurp_file($node->logfile), qr/(?:INFO|NOTICE|WARNING):  (?:one|two|three)/, 'which gets nothing of it');

my $listener = $node->background_psql('postgres', extra_params => [ '-U', 'app' ]) if $node->can('background_psql');
SKIP:
{
	skip 'this PostgreSQL::Test has no usable background_psql', 1 unless ref $listener;
	$listener->query_safe('LISTEN orchestrator');
	outcome(q{'silent', '{"times": 20, "seconds": 0.05, "report": true}'});
	my $heard = $listener->query('SELECT 1');
	like($heard, qr/"event":"progress"/, 'with notify = all, progress reaches the channel of everything');
	$listener->quit;
}
$node->stop;
done_testing();
