# What a person asks of a task queue, with real executors: when tasks run, in
# which order, how often, how they are stopped and watched, and from where they
# can be enqueued.

use strict;
use warnings;

use IPC::Run ();
use OrchestratorStep;
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node(name => 'features', 'orchestrator.executors_per_role' => 2);
$node->start;
$node->create_extension;
$node->plain_role('app');
$node->safe_psql('postgres', 'CREATE SCHEMA app AUTHORIZATION app');
$node->psql_as('app', <<'SQL');
CREATE TABLE app.effect (what text, task bigint, attempt int, key text, at timestamptz DEFAULT clock_timestamp());
CREATE FUNCTION app.note(jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO app.effect (what, task, attempt, key) SELECT $1 ->> 'what', task_id, attempt, key FROM orchestrator.current_task();
  RETURN $1;
END $$;
CREATE FUNCTION app.slow(jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM app.note($1);
  PERFORM orchestrator.progress(0.25, 'begun', 'sleep');
  PERFORM pg_sleep(coalesce(($1 ->> 'seconds')::float8, 60));
  RETURN '"awake"';
END $$;
CREATE FUNCTION app.loop(jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  LOOP
    NULL;
  END LOOP;
END $$;
SELECT orchestrator.define('note', 'app.note'), orchestrator.define('slow', 'app.slow', retry_delay => '0'), orchestrator.define('loop', 'app.loop'),
       orchestrator.define_queue('gate');
SQL

sub app { return $node->psql_as('app', $_[0]) }
sub state_of { return app("SELECT state FROM orchestrator.task_status WHERE task_id = $_[0]") }

sub running_ok
{
	my ($id, $name) = @_;
	return $node->wait_for("SELECT state = 'running' AND worker_pid IS NOT NULL FROM orchestrator.task_status WHERE task_id = $id", 't', $name || 'it runs');
}

sub trace_of
{
	return app("SELECT string_agg(event, ',' ORDER BY at, attempt) FROM orchestrator.trace WHERE task_id = $_[0]");
}

subtest 'when and in which order' => sub {
	my $id = app(q{SELECT orchestrator.enqueue('note', '{"what": "delayed"}', delay => '300 milliseconds')});
	is(state_of($id), 'scheduled', 'a delayed task is scheduled');
	is(outcome_of($node, 'app', $id)->{state}, 'completed', 'and runs');
	is(app("SELECT started_at >= run_at AND started_at < run_at + interval '1 s' FROM orchestrator.task WHERE id = $id"), 't', 'when its time has come');
	$id = app(q{SELECT orchestrator.enqueue('note', '{}', run_at => clock_timestamp() + interval '0.2 s')});
	is(outcome_of($node, 'app', $id)->{state}, 'completed', 'run_at');
	is(app("SELECT started_at >= run_at FROM orchestrator.task WHERE id = $id"), 't', 'not before');
	is(outcome($node, 'app', q{orchestrator.enqueue('note', '{}', run_at => '2000-01-01')})->{state}, 'completed', 'one in the past: now');

	$node->set('orchestrator.executors_per_role' => 1);
	$node->reload;
	$node->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'orchestrator executor'});
	app('TRUNCATE app.effect');
	app(q{SELECT orchestrator.pause_queue('gate')});
	my @ids = map { app(qq{SELECT orchestrator.enqueue('note', '{"what": "p$_"}', priority => $_, queue => 'gate')}) } (0, 5, -3, 5, 1);
	app(q{SELECT orchestrator.resume_queue('gate')});
	outcome_of($node, 'app', $_) foreach @ids;
	is(app(q{SELECT string_agg(what, ' ' ORDER BY at) FROM app.effect}), 'p5 p5 p1 p0 p-3', 'higher priority first, then the older');
	$node->set('orchestrator.executors_per_role' => 2);
	$node->reload;
};

subtest 'limits of time' => sub {
	app(q{SELECT orchestrator.pause_queue('gate')});
	app(q{SELECT orchestrator.define('hurried', 'app.note', queue_timeout => '200 milliseconds')});
	my $deadline = app(q{SELECT orchestrator.enqueue('note', queue => 'gate', deadline => clock_timestamp() + interval '0.3 s')});
	my $queued = app(q{SELECT orchestrator.enqueue('hurried', queue => 'gate')});
	foreach my $r (map { outcome_of($node, 'app', $_) } $deadline, $queued)
	{
		is("$r->{state} " . sqlstate_of($r), 'failed OR002', 'not started in time: failed');
		note($r->{error}{message});
	}
	app(q{SELECT orchestrator.resume_queue('gate')});
	is(outcome($node, 'app', q{orchestrator.enqueue('hurried')})->{state}, 'completed', 'in time: it runs');

	my $r;
	my $late = app(q{SELECT orchestrator.enqueue('slow', deadline => clock_timestamp() + interval '0.4 s')});
	measure_ok(5, 'a step is stopped at its deadline', sub { $r = outcome_of($node, 'app', $late) });
	is($r->{state}, 'failed', 'and not tried again');

	my %policy = (retry => 2, fail => 1, fail_workflow => 1);
	foreach my $policy (sort keys %policy)
	{
		app("SELECT orchestrator.define('limited', 'app.slow', timeout => '150 milliseconds', timeout_policy => '$policy', max_attempts => 2, retry_delay => '0')");
		$r = outcome($node, 'app', q{orchestrator.enqueue('limited')});
		is($r->{state}, 'failed', "timeout, policy $policy: fails");
		is(app("SELECT attempt FROM orchestrator.task WHERE id = $r->{id}"), $policy{$policy}, "after $policy{$policy} attempts");
		like($r->{error}{message}, qr/longer than 150 ms|longer than/, 'and says so') or diag(explain($r));
		is(sqlstate_of($r), 'OR004', 'with the code of a timeout');
	}
	app(q{SELECT orchestrator.define('limited', 'app.slow', timeout => '100 milliseconds', timeout_policy => 'alert')});
	$r = outcome($node, 'app', q{orchestrator.enqueue('limited', '{"seconds": 0.3}')});
	is($r->{state}, 'completed', 'policy alert: it goes on');
	like(trace_of($r->{id}), qr/timeout/, 'and the trace tells');
};

subtest 'retries' => sub {
	my %delays = (fixed => '0.1,0.1,0.1', linear => '0.1,0.2,0.3', exponential => '0.1,0.2,0.3');
	my %task;
	foreach my $backoff (sort keys %delays)
	{
		app("SELECT orchestrator.define('retry_$backoff', 'SELECT 1/0', 'sql', max_attempts => 4, backoff => '$backoff', retry_delay => '0.1 s',
			max_retry_delay => '0.3 s', retry_jitter => 0, retry_priority_step => 2)");
		$task{$backoff} = app("SELECT orchestrator.enqueue('retry_$backoff')");
	}
	foreach my $backoff (sort keys %delays)
	{
		my $r = outcome_of($node, 'app', $task{$backoff});
		is("$r->{state} " . sqlstate_of($r), 'failed 22012', "$backoff: fails in the end");
		is(app("SELECT string_agg(round(extract(epoch FROM (detail ->> 'run_at')::timestamptz - at), 1)::text, ',' ORDER BY at)
			FROM orchestrator.trace WHERE task_id = $task{$backoff} AND event = 'retrying'"), $delays{$backoff}, 'delays of its attempts');
		is(app("SELECT attempt || ' ' || priority FROM orchestrator.task WHERE id = $task{$backoff}"), '4 -6', 'attempts, and priority');
		is(trace_of($task{$backoff}), 'created,' . 'started,retrying,' x 3 . 'started,failed', 'the trace is complete');
	}
	is_deeply([ sort keys %{ outcome_of($node, 'app', $task{fixed})->{error} } ], [ sort qw(sqlstate message detail hint context) ],
		'the error has all its parts');

	app(q{CREATE FUNCTION app.clash(jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE unique_violation USING MESSAGE = 'twice', DETAIL = 'd', HINT = 'h'; END $$});
	foreach my $never ('23505', '23')
	{
		app("SELECT orchestrator.define('clash', 'app.clash', never_retry => '{$never}', max_attempts => 5)");
		my $r = outcome($node, 'app', q{orchestrator.enqueue('clash')});
		is(app("SELECT attempt FROM orchestrator.task WHERE id = $r->{id}"), 1, "never_retry $never: one attempt");
		is("$r->{error}{detail}$r->{error}{hint}", 'dh', 'detail and hint are kept');
		is(app("SELECT detail ->> 'final' FROM orchestrator.trace WHERE task_id = $r->{id} AND event = 'failed'"), 'never_retry', 'the trace says why');
	}
	app(q{SELECT orchestrator.define('budget', 'app.clash', max_attempts => 100, backoff => 'fixed', retry_delay => '0.1 s', retry_jitter => 0, retry_budget => '0.35 s')});
	my $r = outcome($node, 'app', q{orchestrator.enqueue('budget')});
	is(app("SELECT detail ->> 'final' FROM orchestrator.trace WHERE task_id = $r->{id} AND event = 'failed'"), 'retry_budget', 'a budget of time');

	# Third time lucky; the key stays the same.
	app(q{CREATE SEQUENCE app.tries});
	app(q{CREATE FUNCTION app.third(jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
		BEGIN
		  PERFORM app.note('{"what": "third"}');
		  IF nextval('app.tries') < 3 THEN RAISE EXCEPTION 'not yet'; END IF;
		  RETURN (SELECT to_jsonb(t) FROM orchestrator.current_task() t);
		END $$});
	app(q{SELECT orchestrator.define('third', 'app.third', retry_delay => '0')});
	$r = outcome($node, 'app', q{orchestrator.enqueue('third', key => 'stays', metadata => '{"m": 1}')});
	is("$r->{state} $r->{output}{attempt}/$r->{output}{max_attempts} $r->{output}{key} $r->{output}{metadata}{m} $r->{output}{definition}",
		'completed 3/3 stays 1 third', 'two attempts fail, the third succeeds; current_task() tells');
	is(app(q{SELECT count(*) FROM app.effect WHERE what = 'third'}), 1, 'only its effects stay');
	is(trace_of($r->{id}), 'created,started,retrying,started,retrying,started,completed', 'the trace is complete');

	# retry() of what failed.
	my $failed = $task{fixed};
	my $epoch = app("SELECT epoch FROM orchestrator.task WHERE id = $failed");
	is(app("SELECT orchestrator.retry($failed, 2)"), 'pending', 'retry() brings a failed task back');
	is(outcome_of($node, 'app', $failed)->{state}, 'failed', 'it fails again');
	is(app("SELECT attempt || '/' || max_attempts || ' ' || (epoch > $epoch) FROM orchestrator.task WHERE id = $failed"), '6/6 true', 'after two more attempts');
	like(refused($node, 'app', "SELECT orchestrator.retry($r->{id})"), qr/cannot retry task \d+: it is completed/, 'a completed one stays');
};

subtest 'cancel and pause of what runs' => sub {
	app('TRUNCATE app.effect');
	foreach my $definition (qw(slow loop))
	{
		my $id = app("SELECT orchestrator.enqueue('$definition')");
		running_ok($id);
		my $pid = app("SELECT worker_pid FROM orchestrator.task_status WHERE task_id = $id");
		measure_ok(2, 'cancel of a running step', sub {
				is(app("SELECT orchestrator.cancel($id, 'enough')"), 'cancelled', "cancel($definition)");
				$node->wait_for("SELECT count(*) = 0 FROM orchestrator.worker_status WHERE task_id = $id", 't', 'its backend stops');
			});
		my $r = outcome_of($node, 'app', $id);
		is("$r->{state} $r->{error}{sqlstate} $r->{error}{detail}", 'cancelled OR001 enough', 'with the reason');
		is(trace_of($id), 'created,started,cancelled', 'and the trace');
		is($node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE pid = $pid"), 1, 'the executor lives');
		is(outcome($node, 'app', q{orchestrator.enqueue('note')})->{state}, 'completed', 'and the next task is not hit');
	}
	is(app(q{SELECT count(*) FROM app.effect WHERE what IS NULL AND task IN (SELECT id FROM orchestrator.task WHERE state = 'cancelled')}), 0, 'no effect stays');

	# Also in the fast lane, where its row is gone: measured, it is short.
	outcome($node, 'app', q{orchestrator.run('SELECT 1')}) foreach 1 .. 10;
	is(outcome($node, 'app', q{orchestrator.run('SELECT orchestrator.pause(task_id) FROM orchestrator.current_task()')})->{state}, 'completed',
		'a step that pauses its own task finishes');
	is(outcome($node, 'app', q{orchestrator.run('SELECT orchestrator.cancel(task_id) FROM orchestrator.current_task()')})->{error}{message},
		'a step cannot cancel or pause a task of its own batch', 'and cannot cancel it');

	# One that is prepared says nothing to anybody.
	my $prepared = app(q{SELECT orchestrator.enqueue('slow', '{"seconds": 600}')});
	running_ok($prepared);
	app("BEGIN; SELECT orchestrator.cancel($prepared); PREPARE TRANSACTION 'cancel'");
	is(state_of($prepared), 'running', 'a cancel that is prepared is none yet');
	app("COMMIT PREPARED 'cancel'");
	measure_ok(5, 'COMMIT PREPARED of a cancel stops the step', sub { $node->wait_for("SELECT count(*) = 0 FROM orchestrator.worker_status WHERE task_id = $prepared") });
	is(state_of($prepared), 'cancelled', 'and it is cancelled');

	# A definition in the fast lane that for once is slow.
	outcome($node, 'app', q{orchestrator.enqueue('slow', '{"seconds": 0}')}) foreach 1 .. 20;
	my $fast = app(q{SELECT orchestrator.enqueue('slow', '{"what": "fast"}')});
	running_ok($fast, 'in the fast lane it is seen to run, too');
	is(app("SELECT state FROM orchestrator.wait($fast, '0')"), 'running', 'by wait(), too');
	is(app("SELECT updated_at >= started_at FROM orchestrator.task_status WHERE task_id = $fast"), 't', 'which is a change of it');
	$node->wait_for("SELECT state = 'running' FROM orchestrator.task_live WHERE id = $fast", 't', 'soon not in the fast lane, where its row is locked');
	is(app("SELECT orchestrator.pause($fast)"), 'running', 'so a pause does not wait for it');
	is(app("SELECT orchestrator.cancel($fast)"), 'cancelled', 'and is cancelled');
	is(app(q{SELECT count(*) FROM app.effect WHERE what = 'fast'}), 0, 'without effect');

	my $id = app(q{SELECT orchestrator.enqueue('slow', '{"what": "forced"}')});
	running_ok($id);
	is(app("SELECT orchestrator.pause($id, force => true)"), 'paused', 'pause(force) stops a step');
	$node->wait_for("SELECT count(*) = 0 FROM orchestrator.worker_status WHERE task_id = $id", 't', 'its backend stops');
	is(app("SELECT state || ' ' || attempt FROM orchestrator.task WHERE id = $id"), 'paused 0', 'the attempt is not counted');
	is(app("SELECT orchestrator.resume($id)"), 'pending', 'resume');
	running_ok($id, 'it runs again');
	is(app("SELECT attempt FROM orchestrator.task_status WHERE task_id = $id"), 1, 'as its first attempt');
	app("SELECT orchestrator.cancel($id)");

	$id = app(q{SELECT orchestrator.enqueue('slow', '{"seconds": 0.7}')});
	running_ok($id);
	is(app("SELECT orchestrator.pause($id)"), 'running', 'pause without force lets a step finish');
	is(outcome_of($node, 'app', $id)->{state}, 'completed', 'and it does');
	is(trace_of($id), 'created,started,pausing,completed', 'its trace says that it was asked to pause');
};

subtest 'kinds of handlers' => sub {
	my $r = outcome($node, 'app', q{orchestrator.run('SELECT n, $1 ->> ''a'' AS a FROM generate_series(1, 2) n', '{"a": "x"}')});
	is_deeply($r->{output}, [ { n => 1, a => 'x' }, { n => 2, a => 'x' } ], 'sql: rows as objects, $1 is the input');
	is_deeply(outcome($node, 'app', q{orchestrator.run('SELECT 1 WHERE false')})->{output}, [], 'no rows: an empty array');
	is_deeply(outcome($node, 'app', q{orchestrator.run('DELETE FROM app.effect WHERE false')})->{output}, { rows => 0 }, 'no result set: the number of rows');
	is_deeply(outcome($node, 'app', q{orchestrator.run('DELETE FROM app.effect WHERE false RETURNING 1')})->{output}, [], 'RETURNING is one');
	app(q{CREATE FUNCTION app.void(jsonb) RETURNS void LANGUAGE plpgsql AS 'BEGIN END'; SELECT orchestrator.define('void', 'app.void')});
	is(outcome($node, 'app', q{orchestrator.enqueue('void')})->{output}, undef, 'a void function: no output');
	app(q{CREATE FUNCTION app.by_sql(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1 || ''{"by": "sql"}'''; SELECT orchestrator.define('by_sql', 'app.by_sql')});
	is_deeply(outcome($node, 'app', qq{orchestrator.enqueue('by_sql', '{"n": $_}')})->{output}, { n => $_, by => 'sql' }, 'a function of LANGUAGE sql') foreach 1, 2;
	app(q{CREATE FUNCTION app.by_sql(jsonb, int DEFAULT 1) RETURNS jsonb LANGUAGE sql AS 'SELECT NULL::jsonb'});
	is_deeply(outcome($node, 'app', qq{orchestrator.enqueue('by_sql', '{"n": 3}')})->{output}, { n => 3, by => 'sql' }, '... of whose name there is another, with a default');
	app(q{DROP FUNCTION app.by_sql(jsonb, int)});
	is_deeply(outcome($node, 'app', qq{orchestrator.enqueue('by_sql', '{"n": 4}')})->{output}, { n => 4, by => 'sql' }, '... and no more');
	app(q{CREATE FUNCTION app.any_by_sql(VARIADIC jsonb[]) RETURNS jsonb[] LANGUAGE sql AS 'SELECT $1'; SELECT orchestrator.define('any_by_sql', 'app.any_by_sql', batch_size => 2)});
	is_deeply(outcome($node, 'app', qq{orchestrator.enqueue('any_by_sql', '{"n": 5}')})->{output}, { n => 5 }, 'a VARIADIC one that takes many');

	app(q{
CREATE PROCEDURE app.commits(input jsonb) LANGUAGE plpgsql AS $$
BEGIN
  FOR i IN 1 .. 3 LOOP
    INSERT INTO app.effect (what, task, attempt, key) SELECT 'commits ' || i, task_id, attempt, key FROM orchestrator.current_task();
    PERFORM orchestrator.progress(i / 3.0);
    COMMIT;
    IF i = 2 AND input ? 'wait' THEN PERFORM pg_sleep(60); END IF;
    IF i = 2 AND input ? 'fail' THEN RAISE EXCEPTION 'half way'; END IF;
  END LOOP;
END $$;
SELECT orchestrator.define('commits', 'app.commits', 'procedure', max_attempts => 2, retry_delay => '0')});
	is(outcome($node, 'app', q{orchestrator.enqueue('commits')})->{state}, 'completed', 'a procedure that commits');
	is(app(q{SELECT count(*) FROM app.effect WHERE what LIKE 'commits%'}), 3, 'its effects');
	my $id = app(q{SELECT orchestrator.enqueue('commits', '{"wait": 1}')});
	$node->wait_for("SELECT count(*) = 2 FROM app.effect WHERE task = $id", 't', 'what it committed is seen while it runs');
	is(app("SELECT orchestrator.cancel($id)"), 'cancelled', 'it is cancelled');
	$node->wait_for("SELECT count(*) = 0 FROM orchestrator.worker_status WHERE task_id = $id");
	is(app("SELECT count(*) FROM app.effect WHERE task = $id"), 2, 'what it committed stays');
	$r = outcome($node, 'app', q{orchestrator.enqueue('commits', '{"fail": 1}', key => 'once')});
	is($r->{state}, 'failed', 'one that fails half way');
	is(app("SELECT string_agg(DISTINCT key || attempt, ',') FROM app.effect WHERE task = $r->{id}"), 'once1,once2', 'sees the same key at each attempt');

	foreach my $sql ('VACUUM app.effect', 'CREATE INDEX CONCURRENTLY ON app.effect (task)', 'ANALYZE app.effect', 'REINDEX INDEX CONCURRENTLY app.effect_task_idx',
		'VACUUM (FULL, ANALYZE) app.effect', 'CLUSTER app.effect USING effect_task_idx')
	{
		$r = outcome($node, 'app', "orchestrator.run('$sql', kind => 'utility')");
		is($r->{state}, 'completed', "utility: $sql") or diag(explain($r));
	}
	$r = outcome($node, 'app', q{orchestrator.run('VACUUM app.effect')});
	is(sqlstate_of($r), '25001', 'VACUUM as sql: refused');
	like(outcome($node, 'app', q{orchestrator.run('SELECT 1; SELECT 2', kind => 'utility')})->{error}{message}, qr/must be one command/, 'utility: one command');
	$id = app(q{SELECT orchestrator.run('SELECT pg_sleep(60)', kind => 'utility', timeout => '100 milliseconds')});
	measure_ok(3, 'time limit of a utility', sub { is(outcome_of($node, 'app', $id)->{state}, 'failed', 'it fails') });

	$id = outcome($node, 'app', q{orchestrator.run('DO $$BEGIN RAISE ''%'', repeat(''ä'', 20000) USING DETAIL = repeat(''d'', 20000), HINT = repeat(''h'', 20000); END$$', kind => 'utility', max_attempts => 1)})->{id};
	is(app("SELECT left(error ->> 'message', 2) || ' ' || (octet_length(error::text) <= 8192) FROM orchestrator.task WHERE id = $id"), 'ää true', 'R22: nor is an error larger than 8 kB');
	is(sqlstate_of(outcome($node, 'app', q{orchestrator.run('COMMIT')})), '0A000', 'COMMIT in an sql step: refused');
	is(sqlstate_of(outcome($node, 'app', qq{orchestrator.run('SELECT orchestrator.wait($id)')})), '55000', 'wait() in a step: refused');
};

# S15, F37: it would be the same at the next attempt.
subtest 'outputs that cannot be kept' => sub {
	app(<<'SQL');
CREATE FUNCTION app.large(jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM app.note($1);
  RETURN to_jsonb(repeat('x', ($1 ->> 'size')::int));
END $$;
CREATE FUNCTION app.large_by_sql(jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT to_jsonb(repeat('x', ($1 ->> 'size')::int))$$;
CREATE FUNCTION app.own(jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$BEGIN RAISE 'too much' USING ERRCODE = '54000'; END $$;
SELECT orchestrator.define(n, 'app.' || n, retry_delay => '0') FROM unnest('{large,large_by_sql,own}'::text[]) n;
SELECT orchestrator.define('large_rows', 'SELECT repeat(''x'', ($1 ->> ''size'')::int)', 'sql', retry_delay => '0');
SELECT orchestrator.define('odd_rows', 'SELECT ($1 ->> ''json'')::json', 'sql', retry_delay => '0');
SELECT orchestrator.define_workflow('grows', ARRAY[orchestrator.step('small', definition => 'large', input => '{"what": "run", "size": 1}'),
  orchestrator.step('large', definition => 'large', input => '{"what": "run", "size": 2000000}', needs => '{small}')]);
SQL
	foreach my $definition (qw(large large_by_sql large_rows))
	{
		my $r = outcome($node, 'app', qq{orchestrator.enqueue('$definition', '{"what": "large", "size": 2000000}')});
		is(ends_of($node, $r->{id}), 'failed 1 54000 x1', "R22: $definition, over the bound: tried once");
		like($r->{error}{message}, qr/^output of 20000\d\d bytes is larger than 1048576 bytes$/, 'and says so');
		like($r->{error}{hint}, qr/raise orchestrator\.max_input_size/, 'with what may be done');
	}
	is(app(q{SELECT count(*) FROM app.effect WHERE what = 'large'}), 0, 'it had no effect');
	foreach my $case ([ '"\\u0000"', '22P05' ], [ '1e200000', '22003' ], [ '"x"', undef ])
	{
		my ($json, $sqlstate) = @$case;
		my $r = outcome($node, 'app', qq{orchestrator.enqueue('odd_rows', jsonb_build_object('json', '$json'))});
		is(ends_of($node, $r->{id}), $sqlstate ? "failed 1 $sqlstate x1" : 'completed 1 x1', "rows with $json");
	}
	is(ends_of($node, outcome($node, 'app', q{orchestrator.enqueue('own')})->{id}), 'failed 3 54000 x1', 'an error of its own with that code is retried');

	foreach my $round (1, 2)    # in the fast lane, once it is known to be quick
	{
		my $ids = app(q{SELECT orchestrator.enqueue_many('large', ARRAY(SELECT jsonb_build_object('what', 'many', 'size', CASE i WHEN 70 THEN 2000000 ELSE 1 END) FROM generate_series(1, 100) i))});
		app("SELECT count(orchestrator.wait(id)) FROM unnest('$ids'::bigint[]) id");
		is(ends_of($node, $ids =~ /\d+/g), 'completed 1 x99, failed 1 54000 x1', 'among others, only the guilty fails');
		is(app(q{WITH d AS (DELETE FROM app.effect WHERE what = 'many' RETURNING task) SELECT count(*) || ' ' || count(DISTINCT task) FROM d}), '99 99', 'and the others have their effects');
	}
	my $run = outcome($node, 'app', q{orchestrator.enqueue('grows')});
	is("$run->{state} " . sqlstate_of($run), 'failed 54000', 'as a step of a run, it fails the run');
	is(app("SELECT string_agg(concat_ws(' ', name, state, attempt), ', ' ORDER BY id) FROM orchestrator.task WHERE parent_id = $run->{id}"), 'small completed 1, large failed 1', 'at its first attempt');
};

subtest 'progress and events' => sub {
	my $any = session($node, 'app');
	$any->query('LISTEN orchestrator');
	my $id = app(q{SELECT orchestrator.enqueue('slow', '{"what": "progress", "seconds": 1}', delay => '0.4 s')});
	my $own = session($node, 'app');
	$own->query("LISTEN orchestrator_task_$id");
	$node->wait_for("SELECT progress = 0.25 AND message = 'begun' AND stage = 'sleep' FROM orchestrator.task_status WHERE task_id = $id", 't', 'progress is seen while the step runs');
	is(app(q{SELECT count(*) FROM app.effect WHERE what = 'progress'}), 0, 'before its commit');
	is(app("SELECT kind || ' ' || role || ' ' || progress FROM orchestrator.worker_status WHERE task_id = $id"), 'executor app 0.25', 'also in worker_status');
	is($node->safe_psql('postgres', "SELECT query FROM pg_stat_activity WHERE backend_type = 'orchestrator executor' AND state = 'active'"), "task $id slow", 'pg_stat_activity names the task');
	outcome_of($node, 'app', $id);
	my $long = app(q{SELECT orchestrator.enqueue(name, '{"seconds": 60}') FROM (SELECT 'a' || repeat('ü', 99)) d (name), orchestrator.define(name, 'app.slow')});
	$node->wait_for("SELECT query = 'task $long a' || repeat('ü', 99) FROM pg_stat_activity WHERE backend_type = 'orchestrator executor' AND query LIKE 'task $long %'", 't', 'with all of a long name');
	app("SELECT orchestrator.cancel($long)");

	my (%events, %keys);
	foreach my $s ([ any => $any ], [ own => $own ])
	{
		my ($name, $session) = @$s;
		my $got = '';
		foreach my $try (1 .. 200)
		{
			$got .= $session->query('SELECT pg_sleep(0.02)') . "\n";
			last if $got =~ /"task"\s*:\s*$id\b[^\n]*"completed"/;
		}
		foreach my $payload ($got =~ /payload "(\{.*?\})"/g)
		{
			my $event = json($payload);
			next if $event->{task} != $id;
			$events{$name}{ $event->{event} } = $event;
			$keys{ join ',', sort keys %$event }++;
		}
	}
	is_deeply([ sort keys %{ $events{any} } ], [ sort qw(created started completed) ], 'its life on the common channel') or diag(explain(\%events));
	is_deeply([ sort keys %{ $events{own} } ], [ sort qw(started progress completed) ], 'and its progress on its own');
	is_deeply([ keys %keys ], ['attempt,event,parent,progress,root,state,task'], 'each has exactly these keys') or diag(explain(\%keys));
	is_deeply($events{own}{completed}, { task => $id, root => $id, parent => undef, event => 'completed', state => 'completed', progress => 1, attempt => 1 }, 'completed')
	  or diag(explain($events{own}{completed}));
	is($events{own}{progress}{progress}, 0.25, 'progress');

	# All of it on the common channel, the other events, and silence, where asked for.
	app(q{SELECT orchestrator.define('loud', 'app.slow', notify => 'all')});
	my $loud = outcome($node, 'app', q{orchestrator.enqueue('loud', '{"seconds": 2}')})->{id};
	app(q{SELECT orchestrator.define('silent', 'app.note', notify => 'off')});
	my $silent = outcome($node, 'app', q{orchestrator.enqueue('silent')})->{id};
	my $changed = app(q{SELECT orchestrator.enqueue('note', delay => '1 day')});
	app("SELECT orchestrator.pause($changed), orchestrator.resume($changed), orchestrator.cancel($changed)");
	$own->query('SELECT pg_advisory_lock(7)');
	my $held = app(q{SELECT orchestrator.run('SELECT orchestrator.add_steps(ARRAY[orchestrator.step(''a'', ''app.note'')]), pg_advisory_xact_lock(7)')});
	$node->wait_for("SELECT state = 'running' FROM orchestrator.task_live WHERE id = $held", 't', 'a step that adds others runs');
	is(app("SELECT orchestrator.pause($held)"), 'running', 'it is to be paused');
	$own->query('SELECT pg_advisory_unlock(7)');
	$node->wait_for("SELECT state = 'paused' FROM orchestrator.task WHERE id = $held", 't', 'paused as it begins to wait for steps of its own');
	app("SELECT orchestrator.cancel($held)");
	my $batch = app(q{SELECT orchestrator.enqueue_batch('note', '{"{}"}')});
	outcome_of($node, 'app', $batch);
	my $failing = outcome($node, 'app', q{orchestrator.run('SELECT 1/0', max_attempts => 2)})->{id};
	my $got = '';
	foreach my $try (1 .. 200)
	{
		$got .= $any->query('SELECT pg_sleep(0.02)') . "\n";
		last if $got =~ /"task"\s*:\s*$failing\b[^\n]*"failed"/ && $got =~ /"task"\s*:\s*$failing\b[^\n]*"created"/;
	}
	my (%seen, %progress);
	foreach my $event (map { json($_) } $got =~ /payload "(\{.*?\})"/g)
	{
		push @{ $seen{ $event->{task} } }, $event->{event};
		$progress{ $event->{task} } = $event->{progress};
	}
	is_deeply($seen{$changed}, [qw(created paused resumed cancelled)], 'created, paused, resumed, cancelled');
	is_deeply([ grep { $_ ne 'started' } @{ $seen{$held} } ], [qw(created paused cancelled)], 'paused, when it is');
	is_deeply([ grep { $_ ne 'started' } @{ $seen{$failing} } ], [qw(created retrying failed)], 'retrying, failed');
	is($progress{$batch}, 1, 'the progress of what is completed by SQL, too');
	is($seen{$silent}, undef, 'notify => off: nothing');
	is_deeply($seen{$loud}, [qw(created started progress completed)], 'notify => all: progress, too');

	# The supervisor was woken for a step that ended before it looked, less than an interval ago.
	$node->set('orchestrator.executors_per_role' => 1);
	$node->reload;
	$got = '';
	foreach my $try (1 .. 10)
	{
		foreach my $seconds (0, 0.4)
		{
			my $id = $own->query(qq{SELECT orchestrator.enqueue('loud', '{"seconds": $seconds}')});
			$own->query("SELECT state FROM orchestrator.wait($id)");
			$got .= $any->query(qq{SELECT 'long $id'}) . "\n" if $seconds;
		}
	}
	my $untold = sub { return scalar grep { $got !~ /"task"\s*:\s*$_\b[^\n]*"progress"\s*,/ } $got =~ /long (\d+)/g };
	for (my $turn = 0; $turn < 100 && $untold->() > 0; $turn++)
	{
		$got .= $any->query('SELECT pg_sleep(0.05)') . "\n";
	}
	is($untold->(), 0, 'the progress of a step that follows on a short one is told');
	$node->set('orchestrator.executors_per_role' => 2);
	$node->reload;
	$any->quit;
	$own->quit;

	# Nobody can report progress from outside of a step.
	isnt(refused($node, 'app', q{SELECT orchestrator.progress(0.5)}), '', 'progress() outside of a step is an error');
	is(app('SELECT task_id IS NULL FROM orchestrator.current_task()'), 't', 'current_task() there is null');

	app(q{CREATE FUNCTION app.talks(jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE 'heard %', 1; END $$; SELECT orchestrator.define('talks', 'app.talks')});
	$node->safe_psql('postgres', q{ALTER ROLE app SET orchestrator.trace_notices = on; ALTER ROLE app SET orchestrator.track_resources = on});
	$node->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'orchestrator executor'});
	my $r = outcome($node, 'app', q{orchestrator.enqueue('talks')});
	like(app("SELECT string_agg(detail::text, ',') FROM orchestrator.trace WHERE task_id = $r->{id} AND event = 'notice'"), qr/heard 1/, 'a notice is traced when asked for');
	$r = outcome($node, 'app', q{orchestrator.run('INSERT INTO app.effect SELECT ''r'' FROM generate_series(1, 1000)')});
	is(app("SELECT rows || ' ' || (wal_bytes > 10000) || ' ' || (cpu_time >= interval '0') FROM orchestrator.task_status WHERE task_id = $r->{id}"), '1000 true true',
		'resources are measured when asked for');
	app(q{CREATE FUNCTION app.writes(input jsonb) RETURNS void LANGUAGE plpgsql AS $$
		BEGIN
			BEGIN
				INSERT INTO app.effect SELECT 'w' FROM generate_series(1, 10);
			EXCEPTION WHEN others THEN NULL;
			END;
			UPDATE app.effect SET what = 'v' WHERE what = 'w';
			DELETE FROM app.effect WHERE what = 'v';
			IF input ? 'raise' THEN RAISE 'raised'; END IF;
		END $$;
		SELECT orchestrator.define('writes', 'app.writes', max_attempts => 1)});
	$r = outcome($node, 'app', q{orchestrator.enqueue('writes')});
	is(app("SELECT rows FROM orchestrator.task_status WHERE task_id = $r->{id}"), 30, 'of a function, the rows that it changed');
	$r = outcome($node, 'app', q{orchestrator.enqueue('writes', '{"raise": true}')});
	is(app("SELECT state || ' ' || (rows IS NULL) || ' ' || (wal_bytes > 0) FROM orchestrator.task_status WHERE task_id = $r->{id}"), 'failed true true', 'and what one used that failed');
};

subtest 'wait' => sub {
	my $id = app(q{SELECT orchestrator.enqueue('slow', '{"seconds": 0.5}')});
	is($node->psql_as('app', "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) >= 0 FROM app.effect; SELECT state, output FROM orchestrator.wait($id, '20 s'); COMMIT"),
		"t\ncompleted|\"awake\"", 'inside of REPEATABLE READ it sees the end');
	is(app("SELECT state FROM orchestrator.wait($id, '0')"), 'completed', 'a finished one at once');
	$id = app(q{SELECT orchestrator.enqueue('slow', '{"seconds": 1}')});
	is(app("SELECT state IN ('pending', 'running') FROM orchestrator.wait($id, '0.05 s')"), 't', 'on timeout the state now');
	my $waiter = session($node, 'app');
	my $pid = $waiter->query('SELECT pg_backend_pid()');
	$waiter->send("CALL orchestrator.await($id, '20 s')");
	$node->wait_for("SELECT backend_xmin IS NULL AND backend_xid IS NULL AND wait_event_type = 'Extension' FROM pg_stat_activity WHERE pid = $pid", 't', 'await() keeps no snapshot while it sleeps');
	is($waiter->answer, '(completed,"""awake""",)', 'and gets the result');
	is($waiter->query(q{DO $$ DECLARE r orchestrator.task_result; i bigint; BEGIN i := orchestrator.enqueue('note'); CALL orchestrator.await(i, '20 s', r); RAISE INFO '%', r.state; END $$}), '',
		'a procedure awaits what it enqueued');
	like($waiter->errors, qr/INFO:  completed/, 'and goes on');
	$waiter->query('BEGIN');
	$id = $waiter->query(q{SELECT orchestrator.enqueue('note')});
	$waiter->query("SELECT orchestrator.wait($id, '1 s')");
	like($waiter->errors, qr/changed by this transaction, which is not committed|is not committed/, 'waiting for what was not committed is an error');
	$waiter->query('ROLLBACK');
	$waiter->quit;
	like(refused($node, 'app', 'SELECT orchestrator.wait(999999999)'), qr/does not exist/, 'so is an unknown task');
	like(refused($node, 'app', "BEGIN; CALL orchestrator.await($id)"), qr/cannot run inside a transaction block/, 'await() in a transaction block, too');

	# Many at once, each for its own.
	my @sessions = map { session($node, 'app') } 1 .. 8;
	my @ids = map { app(qq{SELECT orchestrator.enqueue('slow', '{"seconds": 0.05}')}) } @sessions;
	$sessions[$_]->send("SELECT state FROM orchestrator.wait($ids[$_], '20 s')") foreach 0 .. $#ids;
	is(join(',', map { $_->answer } @sessions), join(',', ('completed') x @sessions), 'eight wait at once');
	$_->quit foreach @sessions;
};

subtest 'where tasks are enqueued' => sub {
	app('TRUNCATE app.effect');
	app(q{
CREATE TABLE app.orders (id int);
CREATE FUNCTION app.ordered() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM orchestrator.enqueue('note', jsonb_build_object('what', 'order ' || NEW.id));
  RETURN NEW;
END $$;
CREATE TRIGGER ordered AFTER INSERT ON app.orders FOR EACH ROW EXECUTE FUNCTION app.ordered();
INSERT INTO app.orders VALUES (1), (2);
BEGIN; INSERT INTO app.orders VALUES (3); ROLLBACK;
BEGIN; SAVEPOINT s; INSERT INTO app.orders VALUES (4); ROLLBACK TO s; INSERT INTO app.orders VALUES (5); COMMIT});
	$node->wait_for(q{SELECT string_agg(what, ',' ORDER BY what) = 'order 1,order 2,order 5' FROM app.effect}, 't', 'in a trigger; what was rolled back does not run');
	app(q{
CREATE FUNCTION app.parent(jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM orchestrator.enqueue('note', '{"what": "child"}');
  IF $1 ? 'fail' THEN RAISE EXCEPTION 'no'; END IF;
  RETURN to_jsonb(orchestrator.enqueue_many('note', '{"{\"what\": \"many\"}","{\"what\": \"many\"}"}'));
END $$;
SELECT orchestrator.define('parent', 'app.parent', max_attempts => 1)});
	my $r = outcome($node, 'app', q{orchestrator.enqueue('parent')});
	is($r->{state}, 'completed', 'inside of a step');
	outcome_of($node, 'app', $_) foreach @{ $r->{output} };
	is(outcome($node, 'app', q{orchestrator.enqueue('parent', '{"fail": 1}')})->{state}, 'failed', 'a step that fails');
	$node->wait_for(q{SELECT count(*) = 3 FROM app.effect WHERE what IN ('child', 'many')}, 't', 'enqueues nothing');
	is(app(q{SELECT count(*) FROM orchestrator.task WHERE live}), 0, 'nothing is left over');
	app(q{PREPARE t AS SELECT orchestrator.enqueue('note', '{"what": "prepared"}'); BEGIN; EXECUTE t; PREPARE TRANSACTION 'x'});
	app(q{COMMIT PREPARED 'x'});
	$node->wait_for(q{SELECT count(*) = 1 FROM app.effect WHERE what = 'prepared'}, 't', 'in a prepared transaction');
	my $all = app(q{SELECT cardinality(orchestrator.enqueue_many('note', ARRAY(SELECT '{"what": "bulk"}'::jsonb FROM generate_series(1, 5000))))});
	$node->wait_for(q{SELECT count(*) = 5000 AND count(DISTINCT task) = 5000 FROM app.effect WHERE what = 'bulk'}, 't', 'five thousand in one call, each once');

	# What is refused, and how.
	foreach my $case (
		[ q{enqueue('nothing')}, '42704', qr/define/ ],
		[ q{enqueue('note', deadline => '2000-01-01')}, '22023', qr/present/ ],
		[ q{enqueue('note', to_jsonb(repeat('x', 2000000)))}, '54000', qr/max_input_size/ ],
		[ q{enqueue('note', key => repeat('x', 201))}, '54000', qr/md5/ ],
		[ q{enqueue('note', queue => 'nowhere')}, '42704', qr/define_queue|share/ ],
		[ q{enqueue('note', run_at => now(), delay => '1 s')}, '22023', qr// ],
		[ q{enqueue_many('note', '{1,2}', keys => '{a}')}, '2202E', qr// ],
		[ q{define('x', 'nothing')}, '22023', qr/schema\.name/ ],
		[ q{define('x', 'app.nothing')}, '42883', qr/jsonb/ ],
		[ q{cancel_many()}, '22023', qr/all_tasks/ ])
	{
		my ($call, $sqlstate, $hint) = @$case;
		my $err = refused($node, 'app', "\\set VERBOSITY verbose\nSELECT orchestrator.$call");
		like($err, qr/ERROR:  $sqlstate:.*HINT:.*$hint|ERROR:  $sqlstate:/s, "$call: $sqlstate");
		like($err, qr/HINT:.*$hint/s, 'with a hint') if "$hint" ne qr//;
	}
};

subtest 'through a pooler, by transactions' => sub {
	plan skip_all => 'no pgbouncer' unless -x '/usr/sbin/pgbouncer';
	my $folder = PostgreSQL::Test::Utils::tempdir_short();
	my $port = $node->port + 1;
	append_to_file("$folder/pgbouncer.ini", <<"INI");
[databases]
postgres = host=@{[ $node->host ]} port=@{[ $node->port ]} user=app
[pgbouncer]
listen_addr =
listen_port = $port
unix_socket_dir = $folder
auth_type = any
pool_mode = transaction
default_pool_size = 2
logfile = $folder/pgbouncer.log
INI
	my $pooler = IPC::Run::start([ '/usr/sbin/pgbouncer', '-q', "$folder/pgbouncer.ini" ], '>', "$folder/out", '2>&1');
	my $ask = sub {
		my ($sql) = @_;
		my ($out, $err);
		IPC::Run::run([ 'psql', '-XAtq', '-h', $folder, '-p', $port, '-U', 'app', '-d', 'postgres', '-c', $sql ], '>', \$out, '2>', \$err);
		chomp $out;
		return $out;
	};
	foreach my $try (1 .. 200)
	{
		last if $ask->('SELECT 1') eq '1';
		select undef, undef, undef, 0.05;
	}
	foreach my $i (1 .. 5)
	{
		my $id = $ask->(q{SELECT orchestrator.enqueue('slow', '{"seconds": 0.05}')});
		is($ask->("SELECT state, output FROM orchestrator.wait($id, '20 s')"), 'completed|"awake"', "enqueue and wait, client $i");
	}
	$pooler->kill_kill;
};

$node->stop;
done_testing();
