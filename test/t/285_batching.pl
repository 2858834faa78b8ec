# Handlers that take many inputs (batch_size, batch_wait), with real executors,
# in the fast lane and without it: what one call is for, who is charged when it
# fails, how long tasks wait for others.

use strict;
use warnings;
use lib 'test/chaos';

use Fault qw(forget_crashes);
use OrchestratorStep;
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $node;
my $lane;

foreach ('on', 'off')
{
	$lane = $_;
	subtest "fast lane $lane" => sub {
		start_server();
		subtest 'backlog' => \&backlog;
		subtest 'one at a time' => \&trickle;
		subtest 'what handlers may be' => \&handlers;
		subtest 'errors of items' => \&item_errors;
		subtest 'a call that fails' => \&poison;
		subtest 'results of the wrong shape' => \&wrong_shape;
		subtest 'deferred constraints' => \&deferred;
		subtest 'time limits' => \&time_limits;
		subtest 'cancel and pause' => \&cancelled;
		subtest 'inside of a call' => \&inside;
		subtest 'waiting for others' => \&waiting;
		subtest 'among others' => \&among_others;
		subtest 'steps and items of runs' => \&runs;
		subtest 'rights' => \&rights;
		subtest 'dump and restore' => \&restored if $lane eq 'on';
		subtest 'executor terminated' => \&terminated;
		subtest 'executor killed' => \&killed;
		subtest 'a task that crashes' => \&crashes;
		$node->stop('fast');
	};
}
done_testing();

# ---------------------------------------------------------------- set-up

sub start_server
{
	$node = new_node(
		name => "batching_$lane",
		'orchestrator.fast_lane' => $lane,
		'orchestrator.executors_per_role' => 2,
		'orchestrator.executor_idle_timeout' => '1s');
	$node->start;
	$node->create_extension;
	$node->plain_role($_) foreach 'app', 'owner';
	$node->safe_psql('postgres', <<'SQL');
GRANT pg_execute_server_program TO app;
CREATE SCHEMA app AUTHORIZATION app;
CREATE SCHEMA lib AUTHORIZATION owner;
GRANT USAGE ON SCHEMA lib TO app;
SQL
	$node->psql_as('owner', q{CREATE FUNCTION lib.many(jsonb[]) RETURNS jsonb[] LANGUAGE sql AS 'SELECT $1'});
	app(<<'SQL');
CREATE TABLE app.call (n int, items bigint[], backend int DEFAULT pg_backend_pid(), at timestamptz DEFAULT clock_timestamp());
CREATE TABLE app.effect (v int, task bigint, attempt int);
CREATE TABLE app.strict (v int UNIQUE DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE app.gate (open boolean);
INSERT INTO app.gate VALUES (true);
CREATE SEQUENCE app.tries;   -- calls that were rolled back count, too

-- An item says what is to become of it; "v" is what it leaves behind.
CREATE FUNCTION app.many(jsonb[]) RETURNS jsonb[] LANGUAGE plpgsql AS $$
DECLARE
  v_task    record;
  v_input   jsonb;
  v_results jsonb[] := '{}';
BEGIN
  PERFORM nextval('app.tries');
  INSERT INTO app.call (n, items) SELECT cardinality($1), array_agg(b.task_id ORDER BY b.item) FROM orchestrator.current_batch() b;
  FOR v_task IN SELECT * FROM orchestrator.current_batch() LOOP
    v_input := coalesce($1[v_task.item] -> 'item', $1[v_task.item]);   -- of a map, the item
    INSERT INTO app.effect VALUES ((v_input ->> 'v')::int, v_task.task_id, v_task.attempt);
    CASE v_input ->> 'do'
      WHEN 'raise' THEN RAISE EXCEPTION 'poison' USING ERRCODE = 'PZ001';
      WHEN 'error' THEN v_results := v_results || orchestrator.item_error('not this one', 'PZ002');
      WHEN 'final' THEN v_results := v_results || orchestrator.item_error('never', retry => false);
      WHEN 'null' THEN v_results := v_results || NULL::jsonb;
      WHEN 'hang' THEN PERFORM pg_sleep(60);
      WHEN 'strict' THEN
        INSERT INTO app.strict VALUES (1);
        v_results := v_results || v_input;
      WHEN 'crash' THEN EXECUTE format('COPY (SELECT 1) TO PROGRAM %L', 'kill -9 ' || pg_backend_pid());
      WHEN 'gate' THEN
        PERFORM orchestrator.progress(0.5, 'at the gate');
        LOOP
          EXIT WHEN (SELECT g.open FROM app.gate g);
          PERFORM pg_sleep(0.01);
        END LOOP;
        v_results := v_results || v_input;
      ELSE v_results := v_results || jsonb_build_object('done', v_input -> 'v');
    END CASE;
  END LOOP;
  RETURN v_results;
END $$;
CREATE FUNCTION app.one(jsonb) RETURNS jsonb LANGUAGE plpgsql AS 'BEGIN RETURN $1; END';
SELECT orchestrator.define('many', 'app.many', batch_size => 100, retry_delay => '0', max_attempts => 2), orchestrator.define('one', 'app.one'),
       orchestrator.define_queue('gate');
SQL

	# the definition is known to be short: in the fast lane, if that is on
	settle_all('many', map { '{}' } 1 .. 3);
	return;
}

sub app { return $node->psql_as('app', $_[0]) }

# Enqueue inputs at once; the ids, in their order.
sub enqueue
{
	my ($definition, @inputs) = @_;
	my $list = join ', ', map { "'$_'" } @inputs;
	return split /,/, app("SELECT array_to_string(orchestrator.enqueue_many('$definition', ARRAY[$list]::jsonb[]), ',')");
}

sub forget { app('TRUNCATE app.call, app.effect, app.strict; SELECT setval(\'app.tries\', 1, false)'); return }

sub all_final
{
	my $ids = join ',', @_;
	return $node->poll_query_until('postgres', "SELECT count(*) = " . @_ . " FROM orchestrator.task WHERE NOT live AND id IN ($ids)")
	  || BAIL_OUT('tasks do not end');
}

sub settle_all
{
	my @ids = enqueue(@_);
	all_final(@ids);
	return @ids;
}

sub ends { return ends_of($node, @_) }

sub inputs { my ($n, %special) = @_; return map { sprintf '{"v": %d%s}', $_, $special{$_} ? qq(, "do": "$special{$_}") : '' } 1 .. $n }
sub tries  { return app('SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM app.tries') }
sub calls  { return app('SELECT string_agg(n::text, \' \' ORDER BY at) FROM app.call') }
sub calls_of { return app('SELECT string_agg(n::text, \' \' ORDER BY at) FROM app.call WHERE items && ARRAY[' . join(',', @_) . ']::bigint[]') }
sub sum_of { my $sum = 0; $sum += $_ foreach split / /, $_[0]; return $sum }
sub effects { return app(q{SELECT count(*) || ' ' || count(DISTINCT v) FROM app.effect}) }
sub gate    { app("UPDATE app.gate SET open = $_[0]"); return }

# Until the call that is at the gate holds so many.
sub at_gate
{
	my ($n) = @_;
	return $node->wait_for("SELECT count(*) FROM orchestrator.task_status WHERE state = 'running' AND message = 'at the gate' AND progress = 0.5",
		$n, "a call of $n tasks is shown as running, each with its progress");
}

# ---------------------------------------------------------------- calls

sub backlog
{
	forget();
	my @ids = settle_all('many', inputs(1000));
	is(ends(@ids), 'completed 1 x1000', 'all of a backlog are done');
	is(sum_of(calls()), 1000, 'each in one call');
	cmp_ok(tries(), '>=', 10, 'none was for more than batch_size');
	cmp_ok(tries(), '<=', 14, 'and they were about as few as can be') or diag(calls());
	is(app('SELECT max(n) FROM app.call'), 100, 'most were full');
	is(effects(), '1000 1000', 'every effect once');
	is(app(q{SELECT count(*) FROM orchestrator.task WHERE id IN (} . join(',', @ids) . q{) AND output -> 'done' = input -> 'v'}), 1000, 'and each has its own output');
	is(app('SELECT count(*) FROM app.call, unnest(items) WITH ORDINALITY i(id, place) WHERE id <= items[place - 1]'), 0, 'in the order of the queue')
	  if $lane eq 'on';

	$node->safe_psql('postgres', 'ALTER SYSTEM SET orchestrator.batch_size = 30; SELECT pg_reload_conf()');
	forget();
	$node->wait_for(q{SELECT current_setting('orchestrator.batch_size')}, '30', 'the setting');
	app(q{SELECT pg_sleep(0.2)});
	settle_all('many', inputs(100));
	is(app('SELECT max(n) FROM app.call'), 30, 'an administrator bounds what is claimed at once');
	$node->safe_psql('postgres', 'ALTER SYSTEM RESET orchestrator.batch_size; SELECT pg_reload_conf()');
	app(q{SELECT pg_sleep(0.2)});
	return;
}

sub trickle
{
	forget();
	measure_ok(5, 'five tasks one after another', sub { settle_all('many', "{\"v\": $_}") foreach 1 .. 5 });
	is(calls(), '1 1 1 1 1', 'without batch_wait none waits for more');
	return;
}

sub handlers
{
	app(<<'SQL');
CREATE FUNCTION app.by_sql(jsonb[]) RETURNS jsonb[] LANGUAGE sql AS $$ SELECT array_agg(to_jsonb(i) ORDER BY i) FROM generate_subscripts($1, 1) i $$;
CREATE FUNCTION app.nothing(jsonb[]) RETURNS void LANGUAGE plpgsql AS $$ BEGIN INSERT INTO app.effect SELECT (x ->> 'v')::int FROM unnest($1) x; END $$;
CREATE FUNCTION app.nothing_by_sql(jsonb[]) RETURNS void LANGUAGE sql AS $$ INSERT INTO app.effect SELECT (x ->> 'v')::int FROM unnest($1) x $$;
SELECT orchestrator.define('by_sql', 'app.by_sql', batch_size => 10), orchestrator.define('nothing', 'app.nothing', batch_size => 10),
       orchestrator.define('nothing_by_sql', 'app.nothing_by_sql', batch_size => 10);
SQL
	foreach my $round (1, 2)
	{
		my @ids = settle_all('by_sql', inputs(5));
		is(app(qq{SELECT string_agg(output::text, ' ' ORDER BY id) FROM orchestrator.task WHERE id >= $ids[0]}), '1 2 3 4 5', 'a function of language sql');
		forget();
		@ids = settle_all('nothing', inputs(5));
		is(ends(@ids) . ' ' . effects(), 'completed 1 x5 5 5', 'one that returns void');
		forget();
		@ids = settle_all('nothing_by_sql', inputs(5));
		is(ends(@ids) . ' ' . effects(), 'completed 1 x5 5 5', 'and one of language sql');
	}
	return;
}

# ---------------------------------------------------------------- failures

sub item_errors
{
	forget();
	my @ids = settle_all('many', inputs(20, 3 => 'error', 7 => 'final', 9 => 'null'));
	is(ends(@ids), 'completed 1 x18, failed 1 P0001 x1, failed 2 PZ002 x1', 'items fail by themselves, and are retried as they may be');
	is(app("SELECT error ->> 'message' FROM orchestrator.task WHERE id = $ids[2]"), 'not this one', 'with their own message');
	is(app("SELECT coalesce(output::text, 'none') FROM orchestrator.task WHERE id = $ids[8]"), 'none', 'a null is no output');
	is(tries(), 2, 'no call failed');
	is(effects(), '21 20', 'what the call did for items that failed stays');
	is(app("SELECT string_agg(event, ',' ORDER BY at, event) FROM orchestrator.trace WHERE task_id = $ids[2]"),
		'created,started,retrying,started,failed', 'and the trace tells of it alone');
	is(app("SELECT detail ->> 'final' FROM orchestrator.trace WHERE task_id = $ids[6] AND event = 'failed'"), 'item_error', 'also that it was for good');
	return;
}

sub poison
{
	forget();
	my @ids = settle_all('many', inputs(64, 20 => 'raise'));
	is(ends(@ids), 'completed 1 x63, failed 2 PZ001 x1', 'only the guilty is charged');
	is(effects(), '63 63', 'and left nothing, the others each their effect');
	cmp_ok(tries(), '<=', 20, 'which took calls of halves, not of each') or diag(tries());

	forget();
	@ids = settle_all('many', inputs(10, map { $_ => 'raise' } 1 .. 10));
	is(ends(@ids), 'failed 2 PZ001 x10', 'when all are guilty, all are charged');
	is(effects(), '0 0', 'and nothing happened');
	return;
}

sub wrong_shape
{
	app(<<'SQL');
CREATE FUNCTION app.short(jsonb[]) RETURNS jsonb[] LANGUAGE sql AS 'SELECT $1[2:]';
CREATE FUNCTION app.deep(jsonb[]) RETURNS jsonb[] LANGUAGE sql AS 'SELECT ARRAY[$1]';
CREATE FUNCTION app.huge(jsonb[]) RETURNS jsonb[] LANGUAGE plpgsql AS $$
BEGIN
  RETURN (SELECT array_agg(CASE WHEN x ? 'do' THEN to_jsonb(repeat('x', 3000000)) ELSE x END ORDER BY i) FROM unnest($1) WITH ORDINALITY u(x, i));
END $$;
SELECT orchestrator.define('short', 'app.short', batch_size => 10, max_attempts => 1), orchestrator.define('deep', 'app.deep', batch_size => 10, max_attempts => 1),
       orchestrator.define('huge', 'app.huge', batch_size => 10);
SQL
	my @ids = settle_all('short', inputs(4));
	is(ends(@ids), 'failed 1 21000 x4', 'too few results');
	is(app("SELECT error ->> 'message' FROM orchestrator.task WHERE id = $ids[0]"), 'handler app.short(jsonb[]) returned 0 results for 1 tasks', 'and says so');
	@ids = settle_all('deep', inputs(4));
	is(ends(@ids), 'failed 1 21000 x4', 'an array of two dimensions');
	$node->safe_psql('postgres', 'ALTER SYSTEM SET orchestrator.max_input_size = \'2MB\'; SELECT pg_reload_conf(), pg_sleep(0.2)');
	@ids = settle_all('huge', inputs(8, 5 => 'large'));
	is(ends(@ids), 'completed 1 x7, failed 1 54000 x1', 'an output that is too large is the fault of its task, for good');
	$node->safe_psql('postgres', 'ALTER SYSTEM RESET orchestrator.max_input_size; SELECT pg_reload_conf()');
	return;
}

sub deferred
{
	forget();
	my @ids = settle_all('many', inputs(10, 2 => 'strict', 8 => 'strict'));
	is(ends(@ids), 'completed 1 x9, failed 2 23505 x1', 'what is only known at the end fails the one that did it');
	is(effects(), '9 9', 'and the others have their effects');
	return;
}

sub time_limits
{
	app(q{SELECT orchestrator.define('hurried', 'app.many', batch_size => 10, timeout => '300 ms', max_attempts => 1)});
	settle_all('hurried', '{}', '{}');
	forget();
	my @ids = settle_all('hurried', inputs(6, 4 => 'hang'));
	is(ends(@ids), 'completed 1 x5, failed 1 OR004 x1', 'a call that takes too long: each alone, and only one is charged');
	is(calls(), '1 1 1 1 1', 'one by one');
	is(effects(), '5 5', 'the others have their effects');

	forget();
	my $late = app(q{SELECT orchestrator.enqueue('many', '{"v": 1, "do": "hang"}', deadline => clock_timestamp() + interval '0.7 s')});
	my ($other) = enqueue('many', '{"v": 2}');
	all_final($late, $other);
	like(ends($late), qr/^failed \d OR00[24] x1$/, 'the first deadline of a call stops it');
	is(ends($other), 'completed 1 x1', 'and the others run');
	return;
}

# ---------------------------------------------------------------- from outside

sub cancelled
{
	forget();
	gate('false');
	my @ids = enqueue('many', inputs(6, 6 => 'gate'));
	at_gate(6);
	measure_ok(5, 'a task of a call is cancelled', sub { app("SELECT orchestrator.cancel($ids[1])") });
	is(app("SELECT state FROM orchestrator.task WHERE id = $ids[1]"), 'cancelled', 'at once');
	$node->wait_for("SELECT count(*) FROM orchestrator.task_status WHERE state = 'running' AND message = 'at the gate'", 5, 'the others run again without it');
	app("SELECT orchestrator.cancel_many('many', max_rows => 1)");
	$node->wait_for("SELECT count(*) FROM orchestrator.task_status WHERE state = 'running' AND message = 'at the gate'", 4, 'cancel_many');
	gate('true');
	all_final(@ids);
	like(ends(@ids), qr/^cancelled .*, completed 1 x4$/, 'and are not charged');
	is(effects(), '4 4', 'what they did is there once');

	forget();
	gate('false');
	@ids = enqueue('many', inputs(4, 4 => 'gate'));
	at_gate(4);
	app("SELECT orchestrator.pause($ids[0], force => true)");
	is(app("SELECT state FROM orchestrator.task WHERE id = $ids[0]"), 'paused', 'a task of a call is paused');
	gate('true');
	all_final(@ids[1 .. 3]);
	app("SELECT orchestrator.resume($ids[0])");
	all_final(@ids);
	is(ends(@ids), 'completed 1 x4', 'and goes on later');
	is(effects(), '4 4', 'each once');

	forget();
	gate('false');
	@ids = enqueue('many', inputs(4, 4 => 'gate'));
	at_gate(4);
	is(app(q{SELECT count(*) || ' ' || count(DISTINCT pid) FROM orchestrator.worker_status WHERE task_id IS NOT NULL}), '1 1', 'a worker is shown once');
	is(app(q{SELECT running FROM orchestrator.definition_status WHERE definition = 'many' AND is_current}), 4, 'its tasks are counted as running');
	gate('true');
	all_final(@ids);
	return;
}

sub inside
{
	app(<<'SQL');
CREATE FUNCTION app.asks(jsonb[]) RETURNS jsonb[] LANGUAGE plpgsql AS $$
DECLARE
  v_results jsonb[];
BEGIN
  FOR i IN 1 .. cardinality($1) LOOP
    BEGIN
      EXECUTE $1[i] ->> 'ask';
      v_results := v_results || to_jsonb('no error'::text);
    EXCEPTION WHEN OTHERS THEN
      v_results := v_results || to_jsonb(sqlstate || ': ' || sqlerrm);
    END;
  END LOOP;
  RETURN v_results;
END $$;
SELECT orchestrator.define('asks', 'app.asks', batch_size => 20);
SQL
	my @asks = (
		q(SELECT 1/((SELECT task_id IS NULL FROM orchestrator.current_task())::int)), 'no error',
		q(SELECT 1/((SELECT count(*) = 4 AND bool_and(definition = $$asks$$ AND attempt = 1) FROM orchestrator.current_batch())::int)), 'no error',
		q(SELECT orchestrator.set_context($${}$$)), '55000: set_context() cannot be called by a handler that takes many tasks',
		q(SELECT orchestrator.checkpoint($$c$$)), '55000: checkpoint() cannot be called by a handler that takes many tasks');
	my (@inputs, @answers);
	while (my ($ask, $answer) = splice @asks, 0, 2)
	{
		push @inputs, qq({"ask": "$ask"});
		push @answers, $answer;
	}
	settle_all('asks', map { '{"ask": "SELECT 1"}' } 1 .. 2);
	my @ids = settle_all('asks', @inputs);
	foreach my $i (0 .. $#ids)
	{
		is(app("SELECT output ->> 0 FROM orchestrator.task WHERE id = $ids[$i]"), $answers[$i], $inputs[$i]);
	}
	my ($self) = settle_all('asks', '{"ask": "SELECT orchestrator.cancel(task_id) FROM orchestrator.current_batch() WHERE item = 1"}');
	is(app("SELECT output ->> 0 FROM orchestrator.task WHERE id = $self"), '55006: a step cannot cancel or pause a task of its own batch', 'it cannot cancel its own tasks');
	return;
}

# ---------------------------------------------------------------- batch_wait

sub waiting
{
	app(q{SELECT orchestrator.define('patient', 'app.many', batch_size => 10, batch_wait => '2 s')});
	my $start = time;
	my @ids = settle_all('patient', inputs(3));
	my $took = time - $start;
	ok($took >= 1.9 && $took < 6, 'few tasks wait for others, for as long as they are to') or diag($took);
	forget();
	$start = time;
	@ids = settle_all('patient', inputs(10));
	$took = time - $start;
	cmp_ok($took, '<', 1.5, 'enough do not');
	is(calls(), '10', 'and are one call');

	forget();
	@ids = enqueue('patient', inputs(4));
	app('SELECT pg_sleep(0.5)');
	is(app('SELECT count(*) FROM app.call'), 0, 'four wait');
	push @ids, enqueue('patient', inputs(6));
	measure_ok(1, 'until they are enough', sub { all_final(@ids) });
	is(calls(), '10', 'one call for all');

	# Of definitions of their own, so that their waits pass beside each other.
	foreach my $name ('pair', 'late', 'alone')
	{
		app("SELECT orchestrator.define('$name', 'app.many', batch_size => 10, batch_wait => '2 s')");
		settle_all($name, inputs(10));
	}
	forget();
	$start = time;
	@ids = enqueue('patient', inputs(13));
	my @pair = enqueue('pair', inputs(2));
	my $late = app(q{SELECT orchestrator.enqueue('late', '{"v": 1}', delay => '1 s')});
	my @alone = enqueue('alone', inputs(1));
	all_final(@ids);
	is(calls_of(@ids), '10 3', 'what is more than enough waits in its turn');
	is(app("SELECT bool_and(started_at - created_at >= '1.9 s') FROM orchestrator.task WHERE id IN (" . join(',', @ids[10 .. 12]) . ')'), 't', 'for as long');

	# the executors have left after a second
	all_final(@pair);
	is(calls_of(@pair), '2', 'they need no executor to wait') or diag(calls());
	cmp_ok(time - $start, '<', 6, 'and are not forgotten');
	all_final(@alone);
	is(ends(@alone), 'completed 1 x1', 'one alone');

	is(outcome_of($node, 'app', $late)->{state}, 'completed', 'a delayed task');
	is(app("SELECT started_at - run_at >= interval '1.9 s' FROM orchestrator.task WHERE id = $late"), 't', 'waits from when it is due');
	return;
}

# Tasks of several definitions in one queue.
sub among_others
{
	app(q{SELECT orchestrator.define('other', 'app.many', batch_size => 50)});
	settle_all('other', inputs(2));
	settle_all('one', '{}', '{}');
	forget();
	my @patient = enqueue('patient', inputs(5));
	my $start = time;
	my @ids = map { settle_all('one', '{}') } 1 .. 3;
	cmp_ok(time - $start, '<', 1.8, 'tasks behind those that wait are not held up');
	is(app('SELECT count(*) FROM app.call'), 0, 'while they wait');
	all_final(@patient);
	is(calls(), '5', 'and then run');

	forget();
	app(q{SELECT orchestrator.pause_queue('gate')});
	app(q{SELECT orchestrator.enqueue(CASE i % 3 WHEN 0 THEN 'many' WHEN 1 THEN 'one' ELSE 'other' END, jsonb_build_object('v', i), queue => 'gate') FROM generate_series(1, 300) i});
	app(q{SELECT orchestrator.resume_queue('gate')});
	$node->wait_for(q{SELECT count(*) FROM orchestrator.task_live}, 0, 'tasks of three definitions in turn are all done');
	is(effects(), '200 200', 'each once');
	cmp_ok(tries(), '<=', 12, 'in few calls') or diag(calls());
	is(app(q{SELECT count(*) FROM app.call c WHERE (SELECT count(DISTINCT t.definition) FROM orchestrator.task t WHERE t.id = ANY (c.items)) <> 1}), 0, 'none for two definitions');

	# somebody keeps the first task of a call locked
	forget();
	app(q{SELECT orchestrator.pause_queue('gate')});
	my $locked = app(q{SELECT orchestrator.enqueue('many', '{"v": 1}', queue => 'gate')});
	@ids = split /\n/, app(q{SELECT orchestrator.enqueue('one', queue => 'gate') FROM generate_series(1, 3)});
	my $session = session($node, 'postgres');
	$session->query("BEGIN; SELECT FROM orchestrator.task_live WHERE id = $locked FOR UPDATE");
	app(q{SELECT orchestrator.resume_queue('gate')});
	measure_ok(5, 'tasks behind one that is locked run', sub { all_final(@ids) });
	is(app("SELECT state FROM orchestrator.task WHERE id = $locked"), 'pending', 'while it is');
	$session->query('ROLLBACK');
	$session->quit;
	all_final($locked);
	is(ends($locked), 'completed 1 x1', 'and then itself');

	forget();
	app(q{SELECT orchestrator.pause_queue('gate')});
	app(q{SELECT orchestrator.enqueue('many', jsonb_build_object('v', i), queue => 'gate', priority => CASE WHEN i > 40 THEN 5 ELSE 0 END) FROM generate_series(1, 50) i});
	app(q{SELECT orchestrator.resume_queue('gate')});
	$node->wait_for(q{SELECT count(*) FROM orchestrator.task_live}, 0, 'with priorities');
	is(app('SELECT (SELECT v FROM app.effect WHERE task = c.items[1]) > 40 FROM app.call c ORDER BY at LIMIT 1'), 't', 'the higher come first in a call');
	return;
}

# ---------------------------------------------------------------- runs

sub runs
{
	app(<<'SQL');
SELECT orchestrator.define_workflow('flow', ARRAY[
  orchestrator.step('one', 'app.one'),
  orchestrator.step('many', definition => 'many', needs => '{one}'),
  orchestrator.step('items', definition => 'many', needs => '{many}', each => '$.input.list')]);
SQL
	forget();
	my @ids = map { app(q{SELECT orchestrator.enqueue('flow', (SELECT jsonb_build_object('list', jsonb_agg(jsonb_build_object('v', i))) FROM generate_series(1, 60) i))}) } 1 .. 3;
	is(outcome_of($node, 'app', $_)->{state}, 'completed', 'a run with a step and a map that are called for many') foreach @ids;
	is(app('SELECT sum(n) FROM app.call'), 183, 'every step and item once');
	cmp_ok(tries(), '<=', 40, 'items of runs share calls') or diag(calls());
	is(app(qq{SELECT count(*) FROM orchestrator.task WHERE root_id = $ids[0] AND item IS NOT NULL AND output -> 'done' = input -> 'item' -> 'v'}), 60, 'each with its output');

	app(<<'SQL');
SELECT orchestrator.define_workflow('failing', ARRAY[orchestrator.step('items', definition => 'many', each => '$.input.list')]);
SQL
	my $r = outcome($node, 'app', q{orchestrator.enqueue('failing', '{"list": [{"v": 1}, {"v": 2, "do": "final"}, {"v": 3}]}')});
	is($r->{state}, 'failed', 'an item that fails fails its run');
	return;
}

sub rights
{
	app(q{SELECT orchestrator.define('theirs', 'lib.many', batch_size => 10, max_attempts => 1)});
	is(ends(settle_all('theirs', inputs(3))), 'completed 1 x3', 'a handler of another role');
	$node->psql_as('owner', 'REVOKE EXECUTE ON FUNCTION lib.many FROM PUBLIC');
	is(ends(settle_all('theirs', inputs(3))), 'failed 1 42501 x3', 'which takes the right to call it away');
	$node->psql_as('owner', 'GRANT EXECUTE ON FUNCTION lib.many TO app');
	is(ends(settle_all('theirs', inputs(3))), 'completed 1 x3', 'and gives it back');
	$node->safe_psql('postgres', 'ALTER FUNCTION lib.many OWNER TO postgres');
	is(ends(settle_all('theirs', inputs(3))), 'failed 1 42501 x3', 'one that has a new owner is not called');
	return;
}

sub restored
{
	my $dump = $node->basedir . '/dump';
	app(q{SELECT orchestrator.pause_queue('gate')});
	my @ids = split /\n/, app(q{SELECT orchestrator.enqueue('many', jsonb_build_object('v', i), queue => 'gate') FROM generate_series(1, 20) i});
	command_ok([ 'pg_dump', '-Fc', '-f', $dump, '-d', $node->connstr('postgres'), '-U', 'postgres' ], 'a dump');
	$node->safe_psql('postgres', 'CREATE DATABASE copy');
	command_ok([ 'pg_restore', '--exit-on-error', '-d', $node->connstr('copy'), '-U', 'postgres', $dump ], 'is restored');
	app(q{SELECT orchestrator.cancel_many('many', all_tasks => true)});
	app(q{SELECT orchestrator.resume_queue('gate')});
	$node->safe_psql('copy', 'TRUNCATE app.call, app.effect; SELECT orchestrator.activate()');
	$node->psql_as('app', q{SELECT orchestrator.resume_queue('gate')}, database => 'copy');
	ok($node->poll_query_until('copy', 'SELECT count(*) = 0 FROM orchestrator.task_live'), 'its tasks run');
	is($node->safe_psql('copy', 'SELECT n FROM app.call'), '20', 'in one call');
	$node->safe_psql('postgres', 'DROP DATABASE copy WITH (FORCE)');
	return;
}

# ---------------------------------------------------------------- deaths

sub backend_at_gate
{
	my ($n) = @_;
	at_gate($n);
	return app(q{SELECT pid FROM orchestrator.worker_status WHERE message = 'at the gate'});
}

# The clock of the engine goes on: whatever was cautious is not any more.
sub later
{
	$node->safe_psql('postgres', "ALTER SYSTEM SET orchestrator.test_clock_offset = '$_[0]'; SELECT pg_reload_conf(), pg_sleep(0.3)");
	return;
}

sub terminated
{
	forget();
	gate('false');
	my @ids = enqueue('many', inputs(5, 5 => 'gate'));
	my $pid = backend_at_gate(5);
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
	gate('true');
	all_final(@ids);
	is(ends(@ids), 'completed 1 x5', 'nobody is charged for a call that ended with its executor');
	is(calls(), '1 1 1 1 1', 'and its tasks run one by one');
	is(effects(), '5 5', 'each once');
	later('100s');
	forget();
	settle_all('many', inputs(5));
	is(calls(), '5', 'a minute later all is as before');
	return;
}

sub killed
{
	forget();
	gate('false');
	my @ids = enqueue('many', inputs(5, 5 => 'gate'));
	my $pid = backend_at_gate(5);
	kill 'KILL', $pid;
	$node->poll_query_until('postgres', 'SELECT true');
	gate('true');
	all_final(@ids);
	is(ends(@ids), 'completed 1 x5', 'nobody is charged for a call that ended with the server');
	is(calls(), '1 1 1 1 1', 'and its tasks run one by one');
	is(effects(), '5 5', 'each once');
	$node->restart;
	forget();
	settle_all('many', inputs(5));
	is(calls(), '5', 'after a restart all is as before');
	return;
}

sub crashes
{
	app(q{SELECT orchestrator.define('fatal', 'app.many', batch_size => 100, max_attempts => 1)});
	settle_all('fatal', inputs(3));
	forget();
	forget_crashes($node);

	# all are due at once, when nobody of ours is connected
	my @ids = split /\n/,
	  app(q{SELECT orchestrator.enqueue('fatal', jsonb_build_object('v', i) || (CASE i WHEN 8 THEN '{"do": "crash"}' ELSE '{}' END)::jsonb, delay => '1 s') FROM generate_series(1, 20) i});
	usleep(1_500_000);
	all_final(@ids);
	is(ends(@ids), 'completed 1 x19, failed 1 OR003 x1', 'a task that takes the server with it is found out, and alone charged');
	is(effects(), '19 19', 'the others have their effects');
	return;
}
