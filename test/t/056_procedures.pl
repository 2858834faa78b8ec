# Durable procedures: a killed one goes on where it was, its waits hold no
# worker, signals come early, late or never; and what a step asks of its run.

use strict;
use warnings;

use OrchestratorStep;
use OrchestratorTest;
use Test::More;

my $node = new_node();
$node->start;
$node->create_extension;
$node->plain_role('app');
$node->safe_psql('postgres', 'CREATE SCHEMA app AUTHORIZATION app');
$node->psql_as('app', <<'SQL');
CREATE TABLE app.ledger (id int GENERATED ALWAYS AS IDENTITY, what text);
CREATE TABLE app.run (id int GENERATED ALWAYS AS IDENTITY, what text);
-- Three effects. It dies after the second run's first, as its input says.
CREATE PROCEDURE app.pay(input jsonb) LANGUAGE plpgsql AS $$
DECLARE
  v_id jsonb;
BEGIN
  INSERT INTO app.run (what) VALUES ('pay');
  COMMIT;
  v_id := orchestrator.step_once('reserve', 'INSERT INTO app.ledger (what) VALUES (''reserve'') RETURNING what, 7 AS n');
  COMMIT;
  IF (SELECT count(*) = 1 FROM app.run) THEN
    PERFORM pg_sleep(60);
  END IF;
  PERFORM orchestrator.step_once('charge', 'INSERT INTO app.ledger (what) SELECT ''charge '' || ($1 ->> ''n'')', v_id);
  IF (SELECT count(*) = 2 FROM app.run) THEN
    PERFORM pg_sleep(60);   -- before the commit: charged and not remembered, or neither
  END IF;
  COMMIT;
  PERFORM orchestrator.step_once('ship', 'INSERT INTO app.ledger (what) VALUES (''ship'')');
END
$$;
CREATE PROCEDURE app.nap(input jsonb) LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO app.run (what) VALUES ('nap');
  CALL orchestrator.sleep_until(clock_timestamp() + make_interval(secs => (input ->> 'seconds')::float8), 'nap');
  INSERT INTO app.ledger (what) VALUES ('rested');
END
$$;
CREATE PROCEDURE app.approve(input jsonb) LANGUAGE plpgsql AS $$
DECLARE
  v_first  jsonb;
  v_second jsonb;
BEGIN
  INSERT INTO app.run (what) VALUES ('approve');
  CALL orchestrator.wait_signal('go', v_first);
  CALL orchestrator.wait_signal('go', v_second, (input ->> 'timeout')::interval);
  PERFORM orchestrator.step_once('write', 'INSERT INTO app.ledger (what) SELECT concat_ws('' '', ''got'', $1 -> 0, $1 -> 1)',
                                 jsonb_build_array(v_first, v_second));
END
$$;
CREATE PROCEDURE app.handles(input jsonb) LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO app.ledger (what) VALUES ('before');
  BEGIN
    CALL orchestrator.sleep_until('2999-01-01');
  EXCEPTION WHEN OTHERS THEN
    INSERT INTO app.ledger (what) VALUES (SQLSTATE || ' ' || SQLERRM);
  END;
END
$$;
CREATE FUNCTION app.waits(input jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM orchestrator.wait((orchestrator.current_task()).task_id);
  RETURN NULL;
END
$$;
CREATE PROCEDURE app.awaits(input jsonb) LANGUAGE plpgsql AS $$
DECLARE
  v_result orchestrator.task_result;
BEGIN
  CALL orchestrator.await((input ->> 'task')::bigint, NULL, v_result);
END
$$;
CREATE FUNCTION app.once(input jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  RETURN orchestrator.step_once('x', 'SELECT 1');
END
$$;
CREATE PROCEDURE app.plain(input jsonb) LANGUAGE plpgsql AS $$
DECLARE
  v jsonb;
BEGIN
  v := jsonb_build_array(
    orchestrator.step_once('none', 'SELECT 1 WHERE false'), orchestrator.step_once('null', 'SELECT NULL::int'),
    orchestrator.step_once('value', 'SELECT ARRAY[1, 2]'), orchestrator.step_once('row', 'SELECT 1 AS a, ''x'' AS b'),
    orchestrator.step_once('rows', 'SELECT n FROM generate_series(1, 2) n'), orchestrator.step_once('value', 'SELECT 1/0'));
  INSERT INTO app.ledger (what) VALUES (v);
END
$$;
CREATE PROCEDURE app.any(input jsonb) LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE input ->> 'sql';
END
$$;
SELECT orchestrator.define(n, 'app.' || n, 'procedure', max_attempts => 1, retry_delay => '0')
FROM unnest('{nap,approve,handles,awaits,plain,any}'::text[]) n;
SELECT orchestrator.define('pay', 'app.pay', 'procedure', max_attempts => 5, retry_delay => '0');
SELECT orchestrator.define('limited', 'app.nap', 'procedure', max_attempts => 1, timeout => '1 s');
SELECT orchestrator.define(n, 'app.' || n, max_attempts => 1) FROM unnest('{waits,once}'::text[]) n;
SQL

sub ledger
{
	my $rows = $node->safe_psql('postgres', q{SELECT string_agg(what, ', ' ORDER BY id) FROM app.ledger});
	$node->safe_psql('postgres', 'TRUNCATE app.ledger');
	return $rows;
}
sub runs
{
	my $n = $node->safe_psql('postgres', 'SELECT count(*) FROM app.run');
	$node->safe_psql('postgres', 'TRUNCATE app.run');
	return $n;
}
sub enqueue { return $node->psql_as('app', "SELECT orchestrator.enqueue('$_[0]', '$_[1]')") }
sub task { return $node->safe_psql('postgres', "SELECT $_[1] FROM orchestrator.task WHERE id = $_[0]") }
sub story
{
	return $node->safe_psql('postgres', "SELECT string_agg(event || ' ' || attempt, ', ' ORDER BY at, event DESC) FROM orchestrator.trace WHERE task_id = $_[0]");
}

sub send_signal
{
	my ($task, $payload) = @_;
	$node->psql_as('app', "SELECT orchestrator.signal($task, 'go', '$payload')");
	return;
}

# Killed between its steps, the server restarting each time.
my $pay = enqueue('pay', '{}');
foreach my $crash (1 .. 2)
{
	$node->wait_for(
		"SELECT count(*) = $crash AND (SELECT count(*) = 1 FROM pg_stat_activity a WHERE a.wait_event = 'PgSleep') FROM app.run",
		't', "run $crash is under way");
	my $pid = $node->safe_psql('postgres', q{SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep'});
	kill 'KILL', $pid;
	$node->poll_query_until('postgres', "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $pid)");
}
is(outcome_of($node, 'app', $pay, timeout => 60)->{state}, 'completed', 'a procedure that was killed twice completes');
is(runs(), 3, 'in its third run');
is(ledger(), 'reserve, charge 7, ship', 'with each effect once');
is($node->safe_psql('postgres', "SELECT string_agg(name || '=' || coalesce(result::text, 'null'), ' ' ORDER BY name) FROM orchestrator.step_memo WHERE task_id = $pay"),
	'charge=null reserve={"n": 7, "what": "reserve"} ship=null', 'and what it remembers');

# Sleep: no worker, no transaction.
my $nap = enqueue('nap', '{"seconds": 3}');
$node->wait_for("SELECT state = 'scheduled' FROM orchestrator.task WHERE id = $nap", 't', 'a procedure that sleeps is scheduled');
is(task($nap, 'attempt, worker, epoch, started_at IS NOT NULL'), '0||2|t', 'it is held by no worker and spends no attempt');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'orchestrator%' AND (xact_start IS NOT NULL OR query LIKE '%$nap%' AND state = 'active')"), 0, 'and holds no transaction');
is($node->safe_psql('postgres', q{SELECT count(*) FROM app.run}), 1, 'what it did before is committed');
is(outcome_of($node, 'app', $nap)->{state}, 'completed', 'it goes on');
is(runs(), 2, 'in a second run');
is(ledger(), 'rested', 'after the time that its first run gave');
is(story($nap), 'created 0, started 1, suspended 1, started 1, completed 1', 'its story');
cmp_ok($node->safe_psql('postgres', "SELECT extract(epoch FROM finished_at - created_at) FROM orchestrator.task WHERE id = $nap"), '>=', 3, 'not before');
is(outcome($node, 'app', q{orchestrator.enqueue('limited', '{"seconds": 2}')})->{state}, 'completed', 'its timeout counts for each run');
runs();
ledger();
$nap = enqueue('nap', '{"seconds": 3600}');
$node->wait_for("SELECT state = 'scheduled' FROM orchestrator.task WHERE id = $nap");
is($node->psql_as('app', "SELECT orchestrator.pause($nap), orchestrator.resume($nap), orchestrator.cancel($nap)"), 'paused|scheduled|cancelled', 'a sleeping one can be paused and cancelled');
runs();

# From inside of another procedure, and of a loop over a query.
$node->psql_as('app', <<'SQL');
CREATE PROCEDURE app.inner(n int) LANGUAGE plpgsql AS $$
BEGIN
  CALL orchestrator.sleep_until(clock_timestamp() + interval '100 ms', 'nap ' || n);
  PERFORM orchestrator.step_once('write ' || n, 'INSERT INTO app.ledger (what) SELECT $1 #>> ''{}''', to_jsonb(n));
END
$$;
CREATE PROCEDURE app.outer(input jsonb) LANGUAGE plpgsql AS $$
DECLARE
  v record;
BEGIN
  FOR v IN SELECT n FROM generate_series(1, 3) n LOOP
    CALL app.inner(v.n);
  END LOOP;
END
$$;
SELECT orchestrator.define('outer', 'app.outer', 'procedure', max_attempts => 1);
SQL
my $nested = enqueue('outer', '{}');
is(outcome_of($node, 'app', $nested)->{state}, 'completed', 'a procedure called by a procedure sleeps, in a loop');
is(ledger(), '1, 2, 3', 'each round once');
is(task($nested, 'attempt, epoch'), '1|7', 'in four runs of one attempt');

# Signals.
my $late = enqueue('approve', '{}');
$node->wait_for("SELECT state = 'waiting' FROM orchestrator.task WHERE id = $late", 't', 'a procedure waits for a signal');
is($node->safe_psql('postgres', "SELECT result FROM orchestrator.step_memo WHERE task_id = $late AND name = 'waiting'"), '{"signal": "go"}', 'for which one is known');
send_signal($late, '1');
$node->wait_for("SELECT state = 'waiting' FROM orchestrator.task WHERE id = $late AND epoch = 4", 't', 'a late one wakes it, to wait for the next');
$node->psql_as('app', "SELECT orchestrator.pause($late)");
send_signal($late, '{"x": 2}');
is(task($late, 'state, held_state'), 'paused|waiting', 'one that is paused stays so');
$node->psql_as('app', "SELECT orchestrator.resume($late)");
is(outcome_of($node, 'app', $late)->{state}, 'completed', 'and goes on after resume');
is(ledger(), 'got 1 {"x": 2}', 'with the payloads in order');
is(runs(), 3, 'in three runs');
is($node->safe_psql('postgres', "SELECT count(*) FROM orchestrator.step_memo WHERE task_id = $late AND name = 'waiting'"), 0, 'it waits no more');

my $early = $node->psql_as('app', q{SELECT orchestrator.enqueue('approve', '{"timeout": "300 ms"}', delay => '1 s')});
send_signal($early, '"early"');
is(outcome_of($node, 'app', $early)->{state}, 'completed', 'an early signal is kept, the second does not come');
is(ledger(), 'got "early" null', 'a timeout gives null');
is(runs(), 2, 'the first did not wait');
is($node->safe_psql('postgres', "SELECT string_agg(name || '=' || coalesce(result::text, 'null'), ' ' ORDER BY name) FROM orchestrator.step_memo WHERE task_id = $early AND name LIKE 'signal%'"),
	'signal:go:1="early" signal:go:2=null', 'both are remembered');
my $paused = enqueue('approve', '{"timeout": "500 ms"}');
$node->wait_for("SELECT state = 'waiting' FROM orchestrator.task WHERE id = $paused");
send_signal($paused, '1');
$node->wait_for("SELECT state = 'waiting' AND expire_at IS NOT NULL FROM orchestrator.task WHERE id = $paused", 't', 'the end of its time is known');
$node->psql_as('app', "SELECT orchestrator.pause($paused), pg_sleep(0.6), orchestrator.resume($paused)");
is(outcome_of($node, 'app', $paused)->{state}, 'completed', 'and still after pause and resume');
is(ledger(), 'got 1 null', 'when the time is up');
runs();

# Signals that are sent while it goes to sleep.
my @racers = map { enqueue('approve', '{}') } 1 .. 20;
foreach my $racer (@racers)
{
	send_signal($racer, '1');
	send_signal($racer, '2');
}
is(scalar(grep { outcome_of($node, 'app', $_)->{state} eq 'completed' } @racers), 20, 'no signal is lost in a race');
is(ledger(), join(', ', ('got 1 2') x 20), 'and each is taken once');
runs();

my $dead = $node->psql_as('app', q{SELECT orchestrator.enqueue('approve', '{}', deadline => now() + interval '700 ms')});
is(sqlstate_of(outcome_of($node, 'app', $dead)), 'OR002', 'a deadline ends a wait for good');
runs();
my $again = enqueue('approve', '{}');
$node->wait_for("SELECT state = 'waiting' FROM orchestrator.task WHERE id = $again");
send_signal($again, '"kept"');
$node->wait_for("SELECT state = 'waiting' AND epoch = 4 FROM orchestrator.task WHERE id = $again");
$node->psql_as('app', "SELECT orchestrator.cancel($again), orchestrator.retry($again)");
$node->wait_for("SELECT state = 'waiting' FROM orchestrator.task WHERE id = $again", 't', 'a retried procedure waits again');
send_signal($again, '"more"');
is(outcome_of($node, 'app', $again)->{state}, 'completed', 'and completes');
is(ledger(), 'got "kept" "more"', 'with what it remembered');
runs();

# What is refused, and results.
is(outcome($node, 'app', q{orchestrator.enqueue('handles')})->{state}, 'completed', 'a wait in an exception block is an error');
is(ledger(), 'before, 2D000 sleep_until() cannot be called where COMMIT is not possible', 'that can be caught');
my $r = outcome($node, 'app', q{orchestrator.enqueue('waits')});
is(sqlstate_of($r), '55000', 'wait() in a step is refused');
like($r->{error}{hint}, qr/needs.*wait_signal/, 'with what to do instead');
is(sqlstate_of(outcome($node, 'app', qq{orchestrator.enqueue('awaits', '{"task": $pay}')})), '55000', 'await() likewise');
is(sqlstate_of(outcome($node, 'app', q{orchestrator.enqueue('once')})), '55000', 'step_once() in a function is refused');
like(refused($node, 'app', q{SELECT orchestrator.step_once('x', 'SELECT 1')}), qr/only inside a step of kind procedure/, 'and outside of a step');
like(refused($node, 'app', q{CALL orchestrator.sleep_until(now())}), qr/only inside a step of kind procedure/, 'as the waits are');
like(refused($node, 'app', q{CALL orchestrator.wait_signal('x')}), qr/only inside a step of kind procedure/, 'both of them');
is(outcome($node, 'app', q{orchestrator.enqueue('plain')})->{state}, 'completed', 'results of statements');
is(ledger(), '[null, null, [1, 2], {"a": 1, "b": "x"}, [{"n": 1}, {"n": 2}], [1, 2]]', 'as jsonb, each run once');
foreach my $case (
	[ q{SELECT orchestrator.step_once('waiting', 'SELECT 1')}, '42939', 'a reserved name' ],
	[ q{SELECT orchestrator.step_once('', 'SELECT 1')},        '22023', 'no name' ],
	[ q{SELECT orchestrator.step_once('x', NULL)},             '22004', 'no statement' ],
	[ q{SELECT orchestrator.step_once('x', 'COMMIT')},         '0A000', 'a commit in step_once()' ],
	[ q{SELECT orchestrator.step_once('x', $s$SELECT orchestrator.set_context('1')$s$)}, '55000', 'a request in step_once()' ],
	[ q{SELECT orchestrator.step_once('x', $s$SELECT orchestrator.step_once('x', 'SELECT 1')$s$)}, '23505', 'a name in itself' ],
	[ q{CALL orchestrator.sleep_until('2999-01-01')}, '2D000', 'to sleep in EXECUTE' ],
	[ q{CALL orchestrator.sleep_until('infinity')}, '22023', 'to sleep for ever' ],
	[ q{CALL orchestrator.sleep_until(NULL)},       '22004', 'to sleep until null' ],
	[ q{CALL orchestrator.wait_signal('x', timeout => '-1 s')}, '22023', 'a negative timeout' ],
	[ q{CALL orchestrator.wait_signal('')},         '22023', 'a signal without a name' ])
{
	my ($sql, $state, $name) = @$case;
	(my $quoted = $sql) =~ s/'/''/g;
	is(sqlstate_of(outcome($node, 'app', qq{orchestrator.enqueue('any', jsonb_build_object('sql', '$quoted'))})), $state, "$name is refused");
}

# A session is left clean by one that is suspended.
$node->psql_as('app', <<'SQL');
CREATE PROCEDURE app.dirty(input jsonb) LANGUAGE plpgsql AS $$
BEGIN
  PERFORM set_config('work_mem', '77MB', false), pg_advisory_lock(77);
  CREATE TEMP TABLE IF NOT EXISTS left_over (n int);
  CALL orchestrator.sleep_until(clock_timestamp() + interval '1 s', 'a while');
  INSERT INTO app.ledger (what) VALUES (concat_ws(' ', current_setting('work_mem') = '77MB', to_regclass('left_over')));
END
$$;
SELECT orchestrator.define('dirty', 'app.dirty', 'procedure', max_attempts => 1);
SQL
my $dirty = enqueue('dirty', '{}');
$node->wait_for("SELECT state = 'scheduled' FROM orchestrator.task WHERE id = $dirty");
is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'}), 0, 'session locks are released');
is(outcome($node, 'app', q{orchestrator.run($$SELECT current_setting('work_mem'), to_regclass('left_over')$$)})->{output}[0]{to_regclass}, undef, 'temporary tables are gone');
is(outcome_of($node, 'app', $dirty)->{state}, 'completed', 'and it goes on');
ledger();

# A result that cannot be kept fails it for good, unless it does without.
$node->psql_as('app', <<'SQL');
CREATE PROCEDURE app.large(input jsonb) LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO app.run (what) VALUES ('large');
  COMMIT;
  BEGIN
    PERFORM orchestrator.step_once('large', input ->> 'sql');
  EXCEPTION WHEN program_limit_exceeded OR data_exception THEN
    IF input ? 'instead' THEN
      PERFORM 1 / 0;
    END IF;
    RAISE;
  END;
END
$$;
SELECT orchestrator.define('large', 'app.large', 'procedure', max_attempts => 2, retry_delay => '0');
SQL
foreach my $case (
	[ q{{"sql": "SELECT repeat('x', 2000000)"}}, '1 54000', 'too large' ],
	[ q{{"sql": "SELECT n, repeat('x', 1000000) FROM generate_series(1, 2) n"}}, '1 54000', 'too large together' ],
	[ q{{"sql": "SELECT '1e200000'::json"}}, '1 22003', 'no jsonb' ],
	[ q{{"sql": "SELECT repeat('x', 2000000)", "instead": true}}, '2 22012', 'another error instead of it is retried' ])
{
	my ($input, $end, $name) = @$case;
	runs();
	(my $quoted = $input) =~ s/'/''/g;
	my $r = outcome($node, 'app', qq{orchestrator.enqueue('large', '$quoted')});
	is(runs() . ' ' . sqlstate_of($r), $end, "a result of step_once(): $name");
}

# Cancelled, by its user or its time limit, it is not suspended.
$node->psql_as('app', <<'SQL');
CREATE PROCEDURE app.slow(input jsonb) LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_sleep(60);
  CALL orchestrator.sleep_until('2999-01-01');
END
$$;
SELECT orchestrator.define('slow', 'app.slow', 'procedure', max_attempts => 1);
SELECT orchestrator.define('slow_limited', 'app.slow', 'procedure', max_attempts => 1, timeout => '100 ms');
SQL
is(sqlstate_of(outcome($node, 'app', q{orchestrator.enqueue('slow_limited')})), 'OR004', 'a time limit fails it');
my $slow = enqueue('slow', '{}');
$node->wait_for(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'});
$node->safe_psql('postgres', q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'});
is(sqlstate_of(outcome_of($node, 'app', $slow)), '57014', 'pg_cancel_backend() fails it');

# What a step asks of its run: shown by a stand-in for what is done with it.
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE app.asked (id int GENERATED ALWAYS AS IDENTITY, requests jsonb);
ALTER FUNCTION orchestrator._settle_completed RENAME TO _settled;
CREATE FUNCTION orchestrator._settle_completed(bigint, int, jsonb, timestamptz, jsonb, jsonb) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO app.asked (requests) VALUES ($6);
  RETURN orchestrator._settled($1, $2, $3, $4, $5, NULL);
END
$$;
SELECT orchestrator._invalidate();
SQL
$node->psql_as('app', <<'SQL');
CREATE FUNCTION app.asks(input jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM orchestrator.set_context('{"n": 1}');
  BEGIN
    PERFORM orchestrator.checkpoint('undone');
    PERFORM 1 / 0;
  EXCEPTION WHEN division_by_zero THEN
    PERFORM orchestrator.checkpoint('half', '[1]'::jsonb);
  END;
  PERFORM orchestrator.add_steps(ARRAY['{"name": "a", "handler": "app.once"}', '{"name": "b", "handler": "app.once", "input": [1, {"y": null}]}']::orchestrator.step_spec[], '1 month -2 days 3.5 s');
  IF input ? 'fail' THEN
    RAISE 'no';
  END IF;
  RETURN '"asked"';
END
$$;
CREATE PROCEDURE app.asks_alone(input jsonb) LANGUAGE plpgsql AS $$
BEGIN
  PERFORM orchestrator.checkpoint('one');
  COMMIT;
  PERFORM orchestrator.checkpoint('two');
  ROLLBACK;
  PERFORM orchestrator.set_context('3');
END
$$;
CREATE FUNCTION app.asks_badly(input jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE input ->> 'sql';
  RETURN NULL;
END
$$;
SELECT orchestrator.define('asks', 'app.asks', max_attempts => 1), orchestrator.define('asks_badly', 'app.asks_badly', max_attempts => 1),
       orchestrator.define('asks_alone', 'app.asks_alone', 'procedure', max_attempts => 1);
SQL
sub asked { my $rows = $node->safe_psql('postgres', 'SELECT requests FROM app.asked ORDER BY id'); $node->safe_psql('postgres', 'TRUNCATE app.asked'); return $rows }
my $wanted = '[{"verb": "set_context", "value": {"n": 1}}, {"name": "half", "verb": "checkpoint", "context": [1]}, '
  . '{"verb": "add_steps", "delay": "P1M-2DT3.5S", "steps": [{"name": "a", "handler": "app.once"}, {"name": "b", "input": [1, {"y": null}], "handler": "app.once"}]}]';
is(outcome($node, 'app', q{orchestrator.enqueue('asks')})->{output}, 'asked', 'a step that asks completes');
is(asked(), $wanted, 'what it asked, without what it rolled back');
is(outcome($node, 'app', q{orchestrator.enqueue('asks', '{"fail": true}')})->{state}, 'failed', 'one that fails');
is(asked(), '', 'asked nothing');
for (1 .. 2)
{
	my $ids = $node->psql_as('app', q{SELECT orchestrator.enqueue_many('asks', array_fill('{}'::jsonb, '{200}'))});
	$node->psql_as('app', "SELECT count(orchestrator.wait(id)) FROM unnest('$ids'::bigint[]) id");
}
is(asked(), join("
", ($wanted) x 400), 'many at once, also in the fast lane');
is(outcome($node, 'app', q{orchestrator.enqueue('asks_alone')})->{state}, 'completed', 'a procedure that asks completes');
is(asked(), '[{"name": "one", "verb": "checkpoint"}, {"verb": "set_context", "value": 3}]', 'what it rolled back is forgotten');
foreach my $case (
	[ q{SELECT orchestrator.checkpoint('')},                '22023', 'a checkpoint without a name' ],
	[ q{SELECT orchestrator.checkpoint(NULL)},              '22004', 'a checkpoint named null' ],
	[ q{SELECT orchestrator.set_context(NULL)},             '22004', 'no context' ],
	[ q{SELECT orchestrator.add_steps(NULL)},               '22004', 'no steps' ],
	[ q{SELECT orchestrator.add_steps('{NULL}')},           '22004', 'a step that is null' ],
	[ q{SELECT orchestrator.add_steps('{}'::orchestrator.step_spec[], '-1 s')},       '22023', 'a negative delay' ],
	[ q{SELECT orchestrator.add_steps(ARRAY['{"name": "x", "handler": "nobody.knows"}']::orchestrator.step_spec[])}, '42883', 'a step without a handler' ],
	[ q{SELECT orchestrator.set_context(to_jsonb(repeat('x', 1000000))) FROM generate_series(1, 30)}, '54000', 'too much' ])
{
	my ($sql, $state, $name) = @$case;
	(my $quoted = $sql) =~ s/'/''/g;
	is(sqlstate_of(outcome($node, 'app', qq{orchestrator.enqueue('asks_badly', jsonb_build_object('sql', '$quoted'))})), $state, "$name is refused");
}
like(refused($node, 'app', q{SELECT orchestrator.set_context('1')}), qr/HINT:.*set_context\(task, value\)/, 'outside of a step the task must be said');

$node->stop;
done_testing();
