# Workflows from end to end, with real executors: chains, joins, maps, steps
# added while it runs, waits, control, what goes back and what is undone; and
# that each step has its effect once, whoever dies meanwhile.  What depends on
# how steps are run is tried with the fast lane on and off.

use strict;
use warnings;
use lib 'test/chaos';

use Fault;
use OrchestratorStep;
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

# What never comes is to be told soon.
$PostgreSQL::Test::Utils::timeout_default = 20;

my $node = new_node(name => 'workflows', 'orchestrator.executors_per_role' => 8, 'orchestrator.max_executors' => 10);
$node->start;
$node->create_extension;
$node->plain_role($_) foreach 'app', 'other';
$node->safe_psql('postgres', 'CREATE SCHEMA app AUTHORIZATION app; GRANT pg_execute_server_program TO app');

# A step's effect is a row of the ledger, which has no unique key.  What a step
# is to do stands in the input of the run, by the name of the step.
$node->psql_as('app', <<'SQL');
GRANT USAGE ON SCHEMA app TO other;
CREATE TABLE app.ledger (n int GENERATED ALWAYS AS IDENTITY, run bigint, step text, task bigint, attempt int, item int, who name DEFAULT current_user,
                         since timestamptz DEFAULT clock_timestamp(), upto timestamptz);
GRANT SELECT, INSERT ON app.ledger TO other;
CREATE TABLE app.pair (a bigint, b bigint);
CREATE FUNCTION app.work(d jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  c   record;
  v   text;
  act jsonb;
BEGIN
  SELECT * INTO c FROM orchestrator.current_task();
  v := CASE WHEN c.definition LIKE 'orchestrator.undo.%' THEN 'undo ' ELSE '' END || regexp_replace(c.definition, '.*\.', '');
  act := coalesce(d #> ARRAY['input', v], '{}');
  PERFORM pg_sleep((act ->> 'sleep')::float8);
  IF (act ->> 'fail')::int >= c.attempt THEN
    RAISE EXCEPTION 'planned';
  END IF;
  INSERT INTO app.ledger (run, step, task, attempt, item) VALUES (c.parent_id, v, c.task_id, c.attempt, (d ->> 'index')::int);
  IF act ? 'crash' THEN
    COPY (SELECT 1) TO PROGRAM 'kill -SEGV $PPID';
    PERFORM pg_sleep(60);
  END IF;
  IF act ? 'sql' THEN
    EXECUTE act ->> 'sql';
  END IF;
  RETURN coalesce(act -> 'output', to_jsonb(v));
END $$;
-- The number of a step in its chain.
CREATE FUNCTION app.count(d jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  v int := 1 + coalesce((SELECT e.value::int FROM jsonb_each(d -> 'steps') e), 0);
BEGIN
  INSERT INTO app.ledger (run, step, task, attempt) SELECT c.parent_id, v, c.task_id, c.attempt FROM orchestrator.current_task() c;
  PERFORM pg_sleep((d #>> '{input,nap}')::float8);
  RETURN to_jsonb(v);
END $$;
CREATE FUNCTION app.tell(d jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM orchestrator.progress(0.5, 'half');
  RETURN (SELECT to_jsonb(c) FROM orchestrator.current_task() c) || jsonb_build_object('before', coalesce(d #> '{steps,a}', d #> '{steps,b}'));
END $$;
CREATE FUNCTION app.twice(d jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN RETURN to_jsonb(2 * d::int); END $$;
CREATE FUNCTION app.span(d jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO app.ledger (run, step, item, task, attempt) SELECT c.parent_id, 'span', (d ->> 'index')::int, c.task_id, c.attempt FROM orchestrator.current_task() c;
  PERFORM pg_sleep((d #>> '{input,sleep}')::float8);
  IF (orchestrator.current_task()).attempt <= coalesce((d ->> 'item')::int, 0) THEN
    RAISE EXCEPTION 'planned';
  END IF;
  UPDATE app.ledger SET upto = clock_timestamp() WHERE task = (orchestrator.current_task()).task_id;
  RETURN d -> 'index';
END $$;
SELECT orchestrator.define('count', 'app.count', retry_delay => '0'), orchestrator.define('work', 'app.work');
SQL

sub app { return $node->psql_as('app', $_[0]) }
sub start { return app(sprintf q{SELECT orchestrator.enqueue('%s', '%s')}, $_[0], $_[1] || '{}') }
sub outcome_of_run { return outcome_of($node, 'app', start(@_)) }
sub state_of { return app("SELECT state FROM orchestrator.task WHERE id = $_[0]") }
sub step_of { return app("SELECT $_[2] FROM orchestrator.task WHERE parent_id = $_[0] AND name = '$_[1]' AND item IS NULL AND step > 0") }
sub task_of { return step_of($_[0], $_[1], 'id') }

# step('a'), step('b', needs => "'{a}'", ...): SQL of a step, of app.work unless
# it says otherwise.
sub step
{
	my ($name, %is) = @_;
	$is{handler} = "'app.work'" unless grep { exists $is{$_} } qw(handler definition wait_for sleep);
	return "orchestrator.step('$name'" . join('', map { ", \"$_\" => $is{$_}" } sort keys %is) . ')';
}

sub workflow
{
	my ($name, $steps, $options) = @_;
	return app("SELECT orchestrator.define_workflow('$name', ARRAY[" . join(', ', @$steps) . ']' . ($options ? ", $options" : '') . ')');
}

# One after another.
sub chain
{
	my ($steps, %is) = @_;
	my @names = @$steps;
	return [ map { step($names[$_], %is, $_ ? (needs => "'{$names[$_ - 1]}'") : ()) } 0 .. $#names ];
}

# Steps of a run in the order of their effects.
sub ledger { return app("SELECT string_agg(step || CASE WHEN attempt > 1 THEN attempt::text ELSE '' END, ' ' ORDER BY n) FROM app.ledger WHERE run = $_[0]") }
sub ended { return $node->wait_for("SELECT count(*) = 0 FROM orchestrator.task WHERE live", 't', $_[0] || 'all runs end') }

sub running_ok
{
	my ($run, $step) = @_;
	return $node->wait_for("SELECT count(*) > 0 FROM orchestrator.task_status WHERE parent_id = $run AND name = '$step' AND state = 'running'", 't', "step $step runs");
}

# No executor is at work: nothing waits in a step.
sub idle_ok
{
	return $node->wait_for(
		q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'orchestrator executor' AND (xact_start IS NOT NULL OR wait_event = 'PgSleep')},
		't', $_[0] || 'no executor is busy');
}

# Steps that were settled in the transaction of the one before.
sub straight_on
{
	return $node->safe_psql('postgres', "SELECT count(*) - count(DISTINCT (xmin::text, parent_id)) FROM orchestrator.task_finished WHERE step > 0 AND $_[0]");
}

sub lane
{
	my ($lane) = @_;
	$node->set('orchestrator.fast_lane' => $lane);
	$node->reload;
	$node->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'orchestrator executor'});
	return;
}

workflow('abc', chain([ 'a', 'b', 'c' ]));
workflow('five', chain([ 'a' .. 'e' ], max_attempts => 3, retry_delay => "'0'"));
workflow('thousand', chain([ map { "s$_" } 1 .. 1000 ], definition => "'count'"));
workflow('hundreds', chain([ map { "s$_" } 1 .. 300 ], definition => "'count'"));
workflow('tell', chain([ 'a', 'b', 'c' ], handler => "'app.tell'"));
workflow('diamond', [ step('a'), step('b', needs => "'{a}'"), step('c', needs => "'{a}'"), step('d', needs => "'{b,c}'") ]);

foreach my $lane ('on', 'off')
{
	lane($lane);
	subtest "fast lane $lane" => sub {
		subtest 'chains' => sub { chains($lane) };
		subtest 'joins' => \&joins;
		subtest 'events' => sub { events($lane) };
		subtest 'control of chains' => \&control_of_chains;
	};
}
lane('on');
subtest 'maps' => \&maps;
subtest 'steps that are added' => \&added;
subtest 'waits' => \&waits;
subtest 'control' => \&control;
subtest 'undo' => \&undo;
subtest 'back and again' => \&back;
subtest 'versions, callbacks, batches' => \&around;
subtest 'conditions, loops, procedures, roles' => \&others;
subtest 'crashes' => \&crashes;
$node->stop;
subtest 'not preloaded' => \&not_preloaded;
done_testing();

# ---------------------------------------------------------------- both lanes

sub chains
{
	my ($lane) = @_;

	app('TRUNCATE app.ledger');
	app(q{SELECT orchestrator.enqueue('abc', jsonb_build_object('i', i)) FROM generate_series(1, 50) i});
	ended('fifty chains end');
	is(app(q{SELECT count(*) || ' ' || count(DISTINCT steps) || ' ' || min(steps) FROM (SELECT string_agg(step, ' ' ORDER BY n) AS steps FROM app.ledger GROUP BY run) s}), '50 1 a b c', 'each step once, in order');
	is(app(q{SELECT count(*) FROM orchestrator.task t JOIN orchestrator.definition d ON d.id = t.definition WHERE d.name = 'abc' AND t.state = 'completed' AND t.output = '"c"' AND t.remaining = 0}),
		50 * ($lane eq 'on' ? 1 : 2), 'the output is that of the last');

	my $r = outcome_of_run('thousand');
	is("$r->{state} $r->{output}", 'completed 1000', 'a chain of 1,000 steps');
	is(app("SELECT count(*) || ' ' || count(DISTINCT task) FROM app.ledger WHERE run = $r->{id}"), '1000 1000', 'one effect each');
	is(app("SELECT count(*) FROM (SELECT step::int, row_number() OVER (ORDER BY n) AS place, lag(task) OVER (ORDER BY n) AS before, task FROM app.ledger WHERE run = $r->{id}) l WHERE step <> place OR task < before"),
		0, 'in order');
	is(app("SELECT count(*) || ' ' || min(step) || ' ' || max(step) || ' ' || count(DISTINCT step) FROM orchestrator.task WHERE parent_id = $r->{id} AND state = 'completed' AND attempt = 1 AND name = 's' || step AND output = to_jsonb(step)"),
		'1000 1 1000 1000', 'and one row each');
	my $straight = straight_on("parent_id = $r->{id}");
	note("$straight went straight on");
	$lane eq 'on' ? cmp_ok($straight, '>', 800, 'most were gone straight on to') : is($straight, 0, 'none was gone straight on to');

	# The definitions are known to be short by now.
	app(q{SELECT orchestrator.enqueue('five') FROM generate_series(1, 20)});
	ended('chains of five end');
	$r = outcome_of_run('five', '{"c": {"fail": 9}}');
	is("$r->{state} $r->{error}{sqlstate} $r->{error}{step}", 'failed P0001 c', 'a step in the middle fails');
	like($r->{error}{message}, qr/^step "c" failed: planned/, 'and says so');
	is(ledger($r->{id}), 'a b', 'what follows does not run');
	is(app("SELECT string_agg(name || ' ' || state || ' ' || attempt, ', ' ORDER BY step) FROM orchestrator.task WHERE parent_id = $r->{id}"),
		'a completed 1, b completed 1, c failed 3', 'it was tried three times, and has no successors');
	$r = outcome_of_run('five', '{"b": {"fail": 1}, "d": {"fail": 2}}');
	is("$r->{state} $r->{output} " . ledger($r->{id}), 'completed e a b2 c d3 e', 'steps that are retried');

	$r = outcome_of_run('tell') foreach 1 .. 3;
	my $c = $r->{output};
	is(join(' ', map { $_->{parent_id} } $c, $c->{before}, $c->{before}{before}), "$r->{id} $r->{id} $r->{id}", 'each step knows its run');
	is(join(' ', map { $_->{task_id} } $c, $c->{before}, $c->{before}{before}), join(' ', map { task_of($r->{id}, $_) } 'c', 'b', 'a'), 'and itself');
	is(app("SELECT count(*) FROM orchestrator.task WHERE root_id = $r->{id} AND parent_id = $r->{id}"), 3, 'the run is parent and root');
	is(app(q{BEGIN; SELECT orchestrator.enqueue('abc') > 0; SELECT orchestrator.enqueue('thousand') > 0; ROLLBACK; SELECT count(*) FROM orchestrator.task WHERE live}),
		"t\nt\n0", 'what is rolled back leaves nothing');
	return;
}

sub joins
{
	app('TRUNCATE app.ledger');
	app(q{SELECT orchestrator.enqueue('diamond') FROM generate_series(1, 200)});
	ended('two hundred diamonds end');
	is(app(q{SELECT string_agg(s, ', ') FROM (SELECT step || ' ' || count(*) || ' ' || count(DISTINCT run) AS s FROM app.ledger GROUP BY step ORDER BY step) x}),
		'a 200 200, b 200 200, c 200 200, d 200 200', 'each step once');
	is(app(q{SELECT count(*) FROM app.ledger d JOIN app.ledger b ON b.run = d.run AND b.step IN ('b', 'c') WHERE d.step = 'd' AND d.since < b.since}), 0, 'the last after those it needs');
	is(app(q{SELECT count(*) FROM orchestrator.task t JOIN (SELECT DISTINCT run FROM app.ledger) r ON r.run = t.id WHERE t.state = 'completed' AND t.output = '"d"'}), 200, 'all completed');
	my $r = outcome_of($node, 'app', app(q{SELECT orchestrator.enqueue_workflow(ARRAY[} . step('x') . ', ' . step('y') . ', ' . step('z', needs => "'{x}'") . '])'));
	is_deeply($r->{output}, { y => 'y', z => 'z' }, 'a graph without a definition; two ends');
	return;
}

sub events
{
	my ($lane) = @_;
	my $any = session($node, 'app');   # nothing is told while nobody listens
	$any->query('LISTEN orchestrator');
	my $s = session($node, 'app');
	$s->query('BEGIN');
	my $run = $s->query(q{SELECT orchestrator.enqueue('tell')});
	$s->query("LISTEN orchestrator_task_$run");
	my $got = $s->query('COMMIT') . "\n";
	outcome_of($node, 'app', $run);
	my %name = (map({ task_of($run, $_) => $_ } 'a' .. 'c'), $run => 'run');
	foreach my $try (1 .. 200)
	{
		$got .= $s->query('SELECT pg_sleep(0.02)') . "\n";
		last if $got =~ /"task"\s*:\s*$run\b[^\n]*"completed"/;
	}
	$got .= $s->query('SELECT pg_sleep(0.1)') . "\n";
	my @events = map { json($_) } $got =~ /payload "(\{.*?\})"/g;
	my %n;
	my @told = map { "$name{$_->{task}} $_->{event}" } @events;
	my %place = map { $told[$_] => $_ } 0 .. $#told;
	note(join ', ', @told);
	$n{$_}++ foreach @told;
	is_deeply([ grep { !defined $place{$_} } map { my $x = $_; map { "$x $_" } qw(created started completed) } 'a' .. 'c' ], [], 'the life of each step on the channel of the run')
	  or diag(explain(\@told));
	is_deeply([ grep { $n{$_} > 1 } grep { !/progress/ } keys %n ], [], 'nothing is told twice');
	is_deeply([ grep { $_->{root} != $run } @events ], [], 'each names the root');
	is(scalar(grep { $_->{task} != $run && $_->{parent} != $run } @events), 0, 'and the parent');
	ok(defined $place{'run created'} && $place{'run created'} < $place{'a created'}, 'the run is created first');
	is($told[-1], 'run completed', 'and completed last');
	foreach my $step ('a' .. 'c')
	{
		ok(!grep({ !defined } @place{ "$step created", "$step started", "$step completed" })
			  && $place{"$step created"} < $place{"$step started"} && $place{"$step started"} < $place{"$step completed"}, "created, started, completed: $step");
	}
	# Completed is what was committed; steps that were gone straight on to start before that.
	foreach my $event ('created', 'started', 'completed')
	{
		ok(($place{"a $event"} // 99) < ($place{"b $event"} // 0) && ($place{"b $event"} // 99) < ($place{"c $event"} // 0), "one step after the other is $event");
	}
	if ($lane eq 'off')
	{
		ok(($place{'a completed'} // 99) < ($place{'b started'} // 0) && ($place{'b completed'} // 99) < ($place{'c started'} // 0), 'a step starts when the one before was completed')
		  or diag(explain(\@told));
	}
	$_->quit foreach $any, $s;
	return;
}

# Chains that are being gone straight on with.
sub control_of_chains
{
	app('TRUNCATE app.ledger');
	my @runs = split /\n/, app(q{SELECT orchestrator.enqueue('hundreds', '{"nap": 0.001}') FROM generate_series(1, 3)});
	$node->wait_for(q{SELECT count(*) > 100 FROM app.ledger}, 't', 'chains run');
	is(app("SELECT orchestrator.cancel($runs[0]), orchestrator.pause($runs[1])") =~ /^(cancelled|.*)\|/ && $1, 'cancelled', 'one is cancelled');
	$node->wait_for("SELECT count(*) = 0 FROM orchestrator.task_status WHERE parent_id IN ($runs[0], $runs[1]) AND state = 'running'", 't', 'one is paused');
	is(state_of($runs[1]), 'paused', 'says the run');
	my $before = app("SELECT string_agg(l.run || ' ' || l.n, ', ' ORDER BY l.run) FROM (SELECT run, count(*) AS n FROM app.ledger WHERE run IN ($runs[0], $runs[1]) GROUP BY run) l");
	is(outcome_of($node, 'app', $runs[2])->{output}, 300, 'the third goes on');
	usleep(100_000);
	is(app("SELECT string_agg(l.run || ' ' || l.n, ', ' ORDER BY l.run) FROM (SELECT run, count(*) AS n FROM app.ledger WHERE run IN ($runs[0], $runs[1]) GROUP BY run) l"),
		$before, 'the two do not');
	note($before);
	isnt(app("SELECT orchestrator.resume($runs[1])"), 'paused', 'resume');
	my $r = outcome_of($node, 'app', $runs[1]);
	is("$r->{state} $r->{output}", 'completed 300', 'goes on with it to its end');
	is(app("SELECT count(*) || ' ' || count(DISTINCT step) FROM app.ledger WHERE run = $runs[1]"), '300 300', 'each step once');
	is(app("SELECT count(*) FROM orchestrator.task WHERE parent_id = $runs[0] AND state = 'completed'"), app("SELECT count(*) FROM app.ledger WHERE run = $runs[0]"), 'the effects of the cancelled one are those of its completed steps');

	# Skipped before the run begins, and not gone straight on to.
	app('TRUNCATE app.ledger');
	@runs = split /\n/, app(q{SELECT orchestrator.enqueue('five', delay => '1.5 s') FROM generate_series(1, 20)});
	app("SELECT orchestrator.skip_step(r, 'd', '1') FROM unnest('{" . join(',', @runs) . "}'::bigint[]) r");
	ended('runs with a step that was skipped early end');
	is(app(q{SELECT string_agg(DISTINCT steps, ', ') FROM (SELECT string_agg(step, ' ' ORDER BY step) AS steps FROM app.ledger GROUP BY run) s}), 'a b c e', 'a step that was skipped early is not run');
	is(app(q{SELECT count(*) FROM app.ledger l JOIN orchestrator.task t ON t.id = l.run WHERE l.since < t.created_at + interval '1.5 s'}), 0, 'nor does what needs it begin early');
	is(app("SELECT string_agg(DISTINCT n::text, ' ') FROM (SELECT count(*) AS n FROM orchestrator.task WHERE parent_id >= $runs[0] AND name = 'd' GROUP BY parent_id) s"), 1, 'and there once');
	return;
}

# ---------------------------------------------------------------- B2

sub overlap
{
	return app("SELECT max(n) FROM (SELECT count(*) AS n FROM app.ledger a JOIN app.ledger b ON b.run = a.run AND b.since <= a.since AND b.upto > a.since WHERE a.run = $_[0] GROUP BY a.n) x");
}

sub maps
{
	workflow('big', [ step('m', handler => "'app.twice'", each => q{'$.input.items'}, input => q{'"$.item"'}) ]);
	my $r;
	measure_ok(15, 'a map of 10,000 items', sub {
		$r = outcome_of($node, 'app', app(q{SELECT orchestrator.enqueue('big', jsonb_build_object('items', (SELECT jsonb_agg(i) FROM generate_series(1, 10000) i)))}), timeout => 30);
	});
	is($r->{state}, 'completed', 'completes');
	is(app("SELECT output = (SELECT jsonb_agg(2 * i) FROM generate_series(1, 10000) i) FROM orchestrator.task WHERE id = $r->{id}"), 't', 'with its outputs in the order of items');
	is(app("SELECT count(*) || ' ' || count(DISTINCT item) || ' ' || max(attempt) FROM orchestrator.task WHERE root_id = $r->{id} AND item IS NOT NULL AND state = 'completed'"), '10000 10000 1', 'each once');

	app('TRUNCATE app.ledger');
	workflow('bounded', [ step('m', handler => "'app.span'", each => q{'$.input.items'}, max_parallel => 3, max_attempts => 2, retry_delay => "'0'") ]);
	workflow('unbounded', [ step('m', handler => "'app.span'", each => q{'$.input.items'}, max_attempts => 3, retry_delay => "'0'") ]);
	my $items = join ',', (0) x 40;
	$r = outcome_of_run('unbounded', qq({"sleep": 0.03, "items": [$items]}));
	cmp_ok(overlap(task_of($r->{id}, 'm')), '>', 3, 'items run side by side');
	is_deeply($r->{output}, [ 0 .. 39 ], 'and are in order');
	$r = outcome_of_run('bounded', qq({"sleep": 0.02, "items": [$items]}));
	my $n = overlap(task_of($r->{id}, 'm'));
	ok($n <= 3 && $n > 1, "max_parallel => 3: at most $n at once");
	is_deeply($r->{output}, [ 0 .. 39 ], 'all of them');
	is(app("SELECT count(*) || ' ' || count(DISTINCT item) FROM app.ledger WHERE run = " . task_of($r->{id}, 'm')), '40 40', 'each once');
	$r = outcome_of_run('unbounded', '{"items": [0, 1, 2, 0, 2]}');
	is("$r->{state} @{$r->{output}}", 'completed 0 1 2 3 4', 'items that are retried');
	is(app("SELECT string_agg(attempt::text, ' ' ORDER BY item) FROM orchestrator.task WHERE root_id = $r->{id} AND item IS NOT NULL"), '1 2 3 1 3', 'each by itself');
	$r = outcome_of_run('bounded', '{"items": [0, 9, 0, 0, 0, 0, 0]}');
	is("$r->{state} $r->{error}{step}", 'failed m', 'one that fails for good fails its run');
	like($r->{error}{message}, qr/item 1 of step "m" failed: planned/, 'and says which');
	is_deeply(outcome_of_run('bounded', '{"items": []}')->{output}, [], 'no items');

	workflow('pair', [ step('x', handler => "'app.twice'", input => q{'"$.input.item"'}), step('y', handler => "'app.twice'", needs => "'{x}'", input => q{'"$.steps.x"'}) ]);
	workflow('nest', [ step('m', definition => "'pair'", each => q{'$.input.item'}, max_parallel => 2) ]);
	workflow('nests', [ step('m', definition => "'nest'", each => q{'$.input.items'}), step('last', needs => "'{m}'", handler => q{'SELECT 1'}, kind => "'sql'") ]);
	$r = outcome_of_run('nests', '{"items": [[1, 2, 3], [], [4, 5, 6, 7]]}');
	is($r->{state}, 'completed', 'maps of workflows with maps of workflows') or diag(explain($r));
	is(step_of($r->{id}, 'm', 'output'), '[[4, 8, 12], [], [16, 20, 24, 28]]', 'have their outputs in place');
	return;
}

# ---------------------------------------------------------------- B3

sub added
{
	app(<<'SQL');
CREATE FUNCTION app.adds(d jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM orchestrator.add_steps(ARRAY(SELECT orchestrator.step('n' || i, 'app.work') FROM generate_series(1, (d #>> '{input,n}')::int) i)
                                 || orchestrator.step('join', 'app.work', needs => ARRAY(SELECT 'n' || i FROM generate_series(1, (d #>> '{input,n}')::int) i))::orchestrator.step_spec,
                                 delay => (d #>> '{input,delay}')::interval);
  IF (d #>> '{input,fail}')::int >= (orchestrator.current_task()).attempt THEN
    RAISE EXCEPTION 'planned';
  END IF;
  RETURN '"added"';
END $$;
SELECT orchestrator.define('adds', 'app.adds', max_attempts => 1);
SQL
	workflow('plan', [ step('plan', handler => "'app.adds'", max_attempts => 3, retry_delay => "'0'"), step('done', needs => "'{plan}'") ], 'max_steps => 8');
	my $r = outcome_of_run('plan', '{"n": 3, "fail": 1}');
	is($r->{state}, 'completed', 'a step adds steps, not when it fails');
	is_deeply($r->{output}, { done => 'done', join => 'join' }, 'that are its siblings');
	is(app("SELECT string_agg(step || ' ' || n, ', ') FROM (SELECT step, count(*) AS n FROM app.ledger WHERE run = $r->{id} GROUP BY step ORDER BY step) x"), 'done 1, join 1, n1 1, n2 1, n3 1', 'each runs once');
	$r = outcome_of_run('plan', '{"n": 1, "delay": "0.3 s"}');
	is(app("SELECT min(a.started_at) - p.finished_at >= interval '0.29 s' FROM orchestrator.task a, orchestrator.task p WHERE a.parent_id = $r->{id} AND a.name = 'n1' AND p.parent_id = $r->{id} AND p.name = 'plan' GROUP BY p.finished_at"), 't', 'after a delay');
	$r = outcome_of_run('plan', '{"n": 6}');
	is("$r->{state} " . sqlstate_of($r), 'failed OR007', 'no more than max_steps');
	is(ledger($r->{id}), '', 'none of them ran');

	my $id = start('adds', '{"input": {"n": 2, "delay": "0.2 s"}}');
	$node->wait_for("SELECT state = 'waiting' FROM orchestrator.task WHERE id = $id", 't', 'a plain task waits for the steps it added');
	$r = outcome_of($node, 'app', $id);
	is("$r->{state} $r->{output}", 'completed added', 'its output is its own') or diag(explain($r));
	like(ledger($id), qr/^n\d n\d join$/, 'and they ran');

	$id = start('abc', '{"b": {"sleep": 0.6}}');
	running_ok($id, 'b');
	app("SELECT orchestrator.add_steps($id, ARRAY[" . step('late', needs => "'{c}'") . ', ' . step('now') . '])');
	$r = outcome_of($node, 'app', $id);
	is_deeply($r->{output}, { late => 'late', now => 'now' }, 'steps are added from outside while it runs');
	is(ledger($id), 'a now b c late', 'and begin when they can');
	like(refused($node, 'app', "SELECT orchestrator.add_steps($id, ARRAY[" . step('more') . '])'), qr/cannot add steps to|only a|finished/i, 'not to a finished one');
	return;
}

# ---------------------------------------------------------------- B5

sub waits
{
	workflow('wait', [ step('a'), step('w', needs => "'{a}'", wait_for => "'go'"), step('b', needs => "'{w}'") ]);
	workflow('sleep', [ step('s', sleep => "'0.5 s'"), step('b', needs => "'{s}'") ]);
	foreach my $time (20, 0.5)
	{
		workflow("approval $time", [ step('ok', wait_for => "'ok'", timeout => "'$time s'", on_timeout => "'late'"), step('go', needs => "'{ok}'"), step('late') ]);
	}
	my $early = start('wait', '{"a": {"sleep": 0.2}}');
	app("SELECT orchestrator.signal($early, 'go', '\"early\"')");
	my @late = split /\n/, app(q{SELECT orchestrator.enqueue('wait') FROM generate_series(1, 3)});
	my $sleep = start('sleep');
	my ($timely, $rejected) = map { start('approval 20') } 1, 2;
	my $overdue = start('approval 0.5');
	is(outcome_of($node, 'app', $early)->{state}, 'completed', 'a signal that came early');
	is(step_of($early, 'w', 'output'), '"early"', 'with its payload');

	# What waits holds nothing.
	$node->wait_for('SELECT count(*) = 3 FROM orchestrator.task WHERE name = \'w\' AND state = \'waiting\' AND parent_id IN (' . join(', ', @late) . ')', 't', 'others wait');
	idle_ok();
	is($node->safe_psql('postgres', q{SELECT count(*) FROM orchestrator.worker_status WHERE kind = 'executor' AND (task_id IS NOT NULL OR claimed > 0)}), 0, 'no worker is held');
	$node->wait_for(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'orchestrator%' AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL OR xact_start IS NOT NULL)}, 0, 'no transaction, no snapshot');
	$node->wait_for(q{SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE a.backend_type LIKE 'orchestrator%' AND l.locktype <> 'virtualxid' AND l.database IS NOT NULL}, 0, 'no lock');
	app("SELECT orchestrator.approve($timely, 'ok', '{\"n\": 1}'), orchestrator.reject($rejected, 'ok', 'no')");
	app("SELECT orchestrator.signal($_, 'go', '$_')") foreach @late;
	is(join(' ', map { outcome_of($node, 'app', $_)->{state} . ' ' . step_of($_, 'w', 'output') } @late), join(' ', map { "completed $_" } @late), 'signals that come late');
	my $r = outcome_of($node, 'app', $timely);
	is("$r->{state} " . ledger($timely), 'completed go', 'approved: goes on, without the branch');
	is(step_of($timely, 'ok', q{(output ->> 'approved') || ' ' || (output ->> 'by') || ' ' || (output -> 'payload')}), 'true app {"n": 1}', 'with who and what');
	is(step_of($timely, 'late', 'state'), 'skipped', 'which is skipped');
	$r = outcome_of($node, 'app', $rejected);
	is("$r->{state} " . sqlstate_of($r) . ' ' . $r->{error}{detail}, 'failed OR006 no', 'rejected');
	is(outcome_of($node, 'app', $sleep)->{state}, 'completed', 'a sleep');
	is(app("SELECT finished_at - created_at BETWEEN interval '0.5 s' AND interval '2 s' FROM orchestrator.task WHERE id = $sleep"), 't', 'takes its time');
	$r = outcome_of($node, 'app', $overdue);
	is("$r->{state} " . ledger($overdue), 'completed late', 'nobody decided: the branch');
	is(step_of($overdue, 'go', 'state'), 'skipped', 'instead of what follows');

	# Two that signal each other at once, from a step.
	app(<<'SQL');
CREATE FUNCTION app.send(d jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  v bigint := (orchestrator.current_task()).parent_id;
BEGIN
  PERFORM orchestrator.signal((SELECT a + b - v FROM app.pair WHERE v IN (a, b)), 'hello', to_jsonb(v));
  PERFORM pg_sleep(0.01);
  RETURN NULL;
END $$;
SQL
	workflow('talk', [ step('send', handler => "'app.send'"), step('hear', wait_for => "'hello'"), step('end', needs => "'{send,hear}'", input => q{'{"heard": "$.steps.hear"}'}) ]);
	my $deadlocks = $node->safe_psql('postgres', q{SELECT deadlocks FROM pg_stat_database WHERE datname = 'postgres'});
	app(q{INSERT INTO app.pair SELECT orchestrator.enqueue('talk'), orchestrator.enqueue('talk') FROM generate_series(1, 30)});
	ended('pairs that signal each other end');
	is(app(q{SELECT count(*) FROM app.pair p JOIN orchestrator.task a ON a.parent_id = p.a AND a.name = 'hear' JOIN orchestrator.task b ON b.parent_id = p.b AND b.name = 'hear' WHERE a.output = to_jsonb(p.b) AND b.output = to_jsonb(p.a)}),
		30, 'each heard the other');
	is(app(q{SELECT count(*) FROM app.pair p JOIN orchestrator.task t ON t.id IN (p.a, p.b) WHERE t.state = 'completed'}), 60, 'all completed');
	is(app(q{SELECT count(*) FROM app.pair p JOIN orchestrator.task t ON t.parent_id IN (p.a, p.b) WHERE t.attempt > 1}), 0, 'at the first attempt');
	is($node->safe_psql('postgres', q{SELECT deadlocks FROM pg_stat_database WHERE datname = 'postgres'}), $deadlocks, 'without a deadlock');
	return;
}

# ---------------------------------------------------------------- control

sub control
{
	my $run = start('abc', '{"b": {"sleep": 60}}');
	running_ok($run, 'b');
	measure_ok(3, 'a run is cancelled while a step runs', sub {
		is(app("SELECT orchestrator.cancel($run, 'enough')"), 'cancelled', 'cancel');
		is(outcome_of($node, 'app', $run)->{state}, 'cancelled', 'the run is');
		idle_ok('the step is interrupted');
	});
	is(app("SELECT string_agg(name || ' ' || state, ', ' ORDER BY step) FROM orchestrator.task WHERE parent_id = $run"), 'a completed, b cancelled', 'its steps');
	is(ledger($run), 'a', 'nothing goes on');

	$run = start('abc', '{"b": {"sleep": 0.6}}');
	running_ok($run, 'b');
	app("SELECT orchestrator.pause($run)");
	$node->wait_for("SELECT count(*) = 2 FROM app.ledger WHERE run = $run", 't', 'paused: the step that runs ends');
	usleep(200_000);
	is(ledger($run) . ' ' . state_of($run), 'a b paused', 'and nothing follows');
	app("SELECT orchestrator.resume($run)");
	is(outcome_of($node, 'app', $run)->{state} . ' ' . ledger($run), 'completed a b c', 'resumed: the rest');
	$run = start('abc', '{"b": {"sleep": 0.6}}');
	running_ok($run, 'b');
	app("SELECT orchestrator.pause($run, force => true)");
	idle_ok('paused by force: it is interrupted');
	is(ledger($run) . ' ' . state_of($run), 'a paused', 'without effect');
	app("SELECT orchestrator.resume($run)");
	is(outcome_of($node, 'app', $run)->{state} . ' ' . ledger($run), 'completed a b c', 'resumed: it runs again');

	workflow('slow', [ step('m', handler => "'app.span'", each => q{'$.input.items'}), step('z', needs => "'{m}'") ]);
	$run = start('slow', '{"sleep": 60, "items": [' . join(',', (0) x 1000) . ']}');
	$node->wait_for("SELECT count(*) = 8 FROM orchestrator.task_status WHERE root_id = $run AND name = 'm' AND worker_pid IS NOT NULL", 't', 'eight of 1,000 items run');
	measure_ok(5, 'a map of 1,000 items is cancelled', sub {
		app("SELECT orchestrator.cancel($run)");
		idle_ok();
	});
	is(app("SELECT count(*) FROM orchestrator.task WHERE root_id = $run AND state = 'cancelled'"), 1001, 'with all of them');
	is(app("SELECT count(*) FROM app.ledger WHERE run = " . task_of($run, 'm')), 0, 'none had an effect');
	left_behind();
	return;
}

# A step that lives under a finished run, as nothing should leave one: control
# locks the run, then the step; the executor, in the fast lane, has deleted the
# step and wants the run, so it must give way. One executor, and a handler that
# takes many, which the watch does not stop.
sub left_behind
{
	$node->set('orchestrator.executors_per_role' => 1);
	lane('on');
	app(<<'SQL');
CREATE FUNCTION app.called(jsonb[]) RETURNS jsonb[] LANGUAGE plpgsql AS $$
BEGIN
  IF $1[1] ? 'gate' THEN
    PERFORM pg_advisory_xact_lock(1);
  END IF;
  INSERT INTO app.ledger (step, task) SELECT 'called', b.task_id FROM orchestrator.current_batch() b;
  RETURN $1;
END $$;
SELECT orchestrator.define('called', 'app.called', batch_size => 10), orchestrator.enqueue('called');
SQL
	ended('the step is known to be short');
	my $hold = session($node, 'app');
	$hold->query('SELECT pg_advisory_lock(1)');
	my $run = app(q{SELECT orchestrator.enqueue_batch('called', ARRAY['{"gate": true}']::jsonb[])});
	$node->wait_for(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'orchestrator executor' AND wait_event = 'advisory'}, 't', 'a step runs');
	my $step = app("SELECT id FROM orchestrator.task WHERE parent_id = $run");
	$node->safe_psql('postgres', <<"SQL");
WITH gone AS (DELETE FROM orchestrator.task_live l WHERE l.id = $run RETURNING l.*)
INSERT INTO orchestrator.task_finished
  SELECT f.* FROM gone g, jsonb_populate_record(g::orchestrator.task, '{"live": false, "state": "failed", "finished_at": "now"}') f
SQL
	is(state_of($run) . ' ' . state_of($step), 'failed pending', 'in the fast lane, under a finished run');
	my $control = session($node, 'app');
	$control->send("SELECT orchestrator.pause($step)");
	$node->wait_for(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE usename = 'app' AND wait_event = 'transactionid'}, 't', 'pause waits for its row');
	$hold->quit;
	my $state = $control->answer;   # the executor may take it again first
	like($state . $control->errors, qr/^(paused|running)$/, 'and gets it: no deadlock');
	app("SELECT orchestrator.resume($step)") if $state eq 'paused';
	is(outcome_of($node, 'app', $step)->{state}, 'completed', 'the step goes on');
	is(app("SELECT count(*) FROM app.ledger WHERE task = $step"), 1, 'and has its effect once');
	$control->quit;
	$node->set('orchestrator.executors_per_role' => 8);
	lane('on');
	return;
}

# ---------------------------------------------------------------- B8

sub undo
{
	my %undo = (undo => "'app.work'", max_attempts => 2, retry_delay => "'0'");
	workflow('saga', [ step('a', %undo), step('b', %undo, needs => "'{a}'"), step('c', %undo, needs => "'{b}'"), step('d', needs => "'{c}'", max_attempts => 1) ]);
	my $done = sub { $node->wait_for("SELECT compensation IN ('done', 'failed') FROM orchestrator.task WHERE id = $_[0]", 't', 'it is compensated') };
	my $all = sub { app("SELECT state || ' ' || compensation FROM orchestrator.task WHERE id = $_[0]") };
	my $r = outcome_of_run('saga', '{"d": {"fail": 1}}');
	$done->($r->{id});
	is(ledger($r->{id}), 'a b c undo c undo b undo a', 'undone in reverse order');
	is($all->($r->{id}), 'failed done', 'and the run tells');
	$r = outcome_of_run('saga', '{"d": {"fail": 1}, "undo b": {"fail": 9}, "undo c": {"fail": 1}}');
	$done->($r->{id});
	is(ledger($r->{id}), 'a b c undo c2 undo a', 'an undo that fails is retried, and does not stop the others');
	is($all->($r->{id}), 'failed failed', 'but is told');
	is(app("SELECT string_agg(attempt || ' ' || state, ', ' ORDER BY step) FROM orchestrator.task WHERE parent_id = $r->{id} AND step < 0"), '2 completed, 2 failed, 1 completed', 'with its attempts');

	# Cancelled, and cancelled again while it is undone.
	my $run = start('saga', '{"c": {"sleep": 60}, "undo b": {"sleep": 0.4}}');
	running_ok($run, 'c');
	app("SELECT orchestrator.cancel($run)");
	running_ok($run, 'b (undo)');
	is(app("SELECT orchestrator.cancel($run)"), 'cancelled', 'a run that is being undone is cancelled already');
	isnt(refused($node, 'app', "SELECT orchestrator.retry($run)"), '', 'and cannot be retried');
	$done->($run);
	is(ledger($run) . ' ' . $all->($run), 'a b undo b undo a cancelled done', 'its undo goes on');
	return;
}

# ---------------------------------------------------------------- B7

sub back
{
	workflow('points', chain([ 'a' .. 'e' ], max_attempts => 1), 'checkpoint_interval => 2');
	my $r = outcome_of_run('points');
	my $run = $r->{id};
	is(app("SELECT string_agg(name, ', ' ORDER BY id) FROM orchestrator.checkpoint WHERE task_id = $run"), 'after 2 steps, after 4 steps', 'a checkpoint every two steps');
	is(ledger($run), 'a b c d e', 'of a chain');
	app("SELECT orchestrator.restore($run, 'after 2 steps')");
	is(outcome_of($node, 'app', $run)->{state} . ' ' . ledger($run), 'completed a b c d e c d e', 'restore: from there');
	app("SELECT orchestrator.rerun_from($run, 'e')");
	is(outcome_of($node, 'app', $run)->{state} . ' ' . ledger($run), 'completed a b c d e c d e e', 'rerun_from');
	my $fork = app("SELECT orchestrator.fork($run, 'd')");
	is(outcome_of($node, 'app', $fork)->{state} . ' ' . ledger($fork), 'completed d e', 'fork: a run of its own');
	is(state_of($run) . ' ' . ledger($run), 'completed a b c d e c d e e', 'leaves the old one');

	# While it runs.
	$run = start('points', '{"d": {"sleep": 0.5}}');
	running_ok($run, 'd');
	app("SELECT orchestrator.rerun_from($run, 'b')");
	is(outcome_of($node, 'app', $run)->{state} . ' ' . ledger($run), 'completed a b c b c d e', 'rerun_from while a later step runs');

	app(q{CREATE FUNCTION app.flaky() RETURNS void LANGUAGE plpgsql AS $$ BEGIN IF (SELECT count(*) = 0 FROM app.pair WHERE a = -1) THEN RAISE EXCEPTION 'not yet'; END IF; END $$});
	$r = outcome_of_run('points', '{"c": {"sql": "SELECT app.flaky()"}}');
	is("$r->{state} " . ledger($r->{id}), 'failed a b', 'a run fails');
	app('INSERT INTO app.pair VALUES (-1)');
	app("SELECT orchestrator.retry($r->{id})");
	is(outcome_of($node, 'app', $r->{id})->{state} . ' ' . ledger($r->{id}), 'completed a b c2 d e', 'retry: completed steps stay');
	return;
}

# ---------------------------------------------------------------- B6, B9, B12

sub around
{
	workflow('changing', [ step('a'), step('old', needs => "'{a}'") ]);
	my $run = start('changing', '{"a": {"sleep": 0.4}}');
	running_ok($run, 'a');
	is(workflow('changing', [ step('a'), step('new', needs => "'{a}'") ]), 2, 'a definition is changed while it runs');
	is(outcome_of_run('changing')->{output}, 'new', 'a new run takes the new version');
	is(outcome_of($node, 'app', $run)->{output}, 'old', 'one under way ends on its own');

	app(q{CREATE FUNCTION app.called(d jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN INSERT INTO app.ledger (run, step) VALUES ((d ->> 'task')::bigint, concat_ws(' ', (orchestrator.current_task()).definition, d ->> 'state', d -> 'output', d #>> '{error,step}', d #>> '{input,x}')); END $$;
		SELECT orchestrator.define(n, 'app.called') FROM unnest('{good,bad,whatever}'::text[]) n});
	workflow('calls', chain([ 'a', 'b' ], max_attempts => 1), "success_callback => 'good', failure_callback => 'bad'");
	my $r = outcome_of_run('calls');
	ended();
	is(ledger($r->{id}), 'a b good completed "b"', 'success_callback');
	$r = outcome_of_run('calls', '{"b": {"fail": 1}}');
	ended();
	is(ledger($r->{id}), 'a bad failed null b', 'failure_callback');
	$run = start('calls', '{"a": {"sleep": 0.3}}');
	app("SELECT orchestrator.on_completion($run, 'whatever', '{\"x\": 7}')");
	outcome_of($node, 'app', $run);
	app("SELECT orchestrator.on_completion($run, 'whatever', '{\"x\": 8}')");
	ended();
	is(app("SELECT string_agg(step, ', ' ORDER BY step) FROM app.ledger WHERE run = $run AND step LIKE '% %'"), 'good completed "b", whatever completed "b" 7, whatever completed "b" 8', 'on_completion');
	$run = start('calls', '{"a": {"sleep": 60}}');
	running_ok($run, 'a');
	app("SELECT orchestrator.cancel($run)");
	ended();
	is(ledger($run), 'bad cancelled null', 'of a cancelled one');

	app(q{SELECT orchestrator.define('item', 'app.work', max_attempts => 1)});
	my $batch = app(q{SELECT orchestrator.enqueue_batch('item', ARRAY(SELECT jsonb_build_object('input', jsonb_build_object('item', jsonb_build_object('fail', (i = 13)::int))) FROM generate_series(1, 100) i), on_completion => 'whatever', completion_input => '{"x": 9}')});
	is(app("SELECT state FROM orchestrator.wait_batch($batch, '20 s')"), 'completed', 'wait_batch');
	ended();
	is(app("SELECT (output ->> 'completed') || ' ' || (output ->> 'failed') FROM orchestrator.task WHERE id = $batch"), '99 1', 'a batch with an item that fails');
	is(app("SELECT count(*) FROM app.ledger WHERE run = $batch AND step = 'item'"), 99, 'each of the others once');
	like(app("SELECT string_agg(step, ', ') FROM app.ledger WHERE run = $batch AND step LIKE 'whatever%'"), qr/^whatever completed \{.*\} 9$/, 'calls back once');
	$batch = app(q{SELECT orchestrator.enqueue_batch('abc', ARRAY(SELECT '{}'::jsonb FROM generate_series(1, 20)))});
	is(app("SELECT state FROM orchestrator.wait_batch($batch, '20 s')"), 'completed', 'a batch of workflows');
	is(app("SELECT count(*) FROM app.ledger l JOIN orchestrator.task t ON t.id = l.run WHERE t.parent_id = $batch"), 60, 'each step once');
	return;
}

# ---------------------------------------------------------------- B4, B10

sub others
{
	workflow('choice', [ step('a'), step('yes', needs => "'{a}'", when => q{'$.steps.a == "left"'}), step('no', needs => "'{a}'", when => q{'$.steps.a != "left"'}),
		step('end', needs => "'{yes,no}'") ]);
	is(ledger(outcome_of_run('choice', '{"a": {"output": "left"}}')->{id}), 'a yes end', 'when: one way');
	is(ledger(outcome_of_run('choice', '{"a": {"output": "right"}}')->{id}), 'a no end', 'or the other');
	workflow('optional', [ step('a', optional => 'true', max_attempts => 1), step('b'), step('c', needs => "'{a,b}'") ]);
	my $r = outcome_of_run('optional', '{"a": {"fail": 1}, "b": {"sleep": 0.1}}');
	is("$r->{state} " . ledger($r->{id}), 'completed b c', 'an optional step may fail');
	workflow('loop', [ step('a', handler => "'app.count'", repeat_while => q{'$.iteration < 4'}), step('b', needs => "'{a}'") ]);
	$r = outcome_of_run('loop');
	is("$r->{state} " . ledger($r->{id}), 'completed 1 1 1 1 b', 'a step that repeats');

	app(<<'SQL');
CREATE PROCEDURE app.durable(d jsonb) LANGUAGE plpgsql AS $$
DECLARE
  v jsonb;
BEGIN
  INSERT INTO app.ledger (run, step) VALUES ((orchestrator.current_task()).parent_id, 'call');
  PERFORM orchestrator.step_once('one', 'INSERT INTO app.ledger (run, step) SELECT $1::bigint, ''one''', to_jsonb((orchestrator.current_task()).parent_id));
  CALL orchestrator.sleep_until(clock_timestamp() + interval '0.1 s', 'nap');
  CALL orchestrator.wait_signal('go', v);
  INSERT INTO app.ledger (run, step) VALUES ((orchestrator.current_task()).parent_id, v #>> '{}');
END $$;
SQL
	workflow('durable', [ step('a'), step('p', handler => "'app.durable'", kind => "'procedure'", needs => "'{a}'"), step('b', needs => "'{p}'") ]);
	my $run = start('durable');
	$node->wait_for("SELECT count(*) = 1 FROM orchestrator.task WHERE parent_id = $run AND name = 'p' AND state = 'waiting'", 't', 'a durable procedure as a step waits');
	app("SELECT orchestrator.signal($run, 'go', '\"went\"')");
	is(outcome_of($node, 'app', $run)->{state}, 'completed', 'and goes on');
	is(app("SELECT string_agg(step, ' ' ORDER BY n) FROM app.ledger WHERE run = $run AND step <> 'call'"), 'a one went b', 'with each of its effects once');

	app(q{SELECT orchestrator.share_definition('abc', 'other')});
	$r = outcome($node, 'other', q{orchestrator.enqueue('abc')});
	is($r->{state}, 'completed', 'a shared workflow') or diag(explain($r));
	is(app("SELECT string_agg(step || ' ' || who, ', ' ORDER BY n) FROM app.ledger WHERE run = $r->{id}"), 'a other, b other, c other', 'runs as who enqueued it');
	return;
}

# ---------------------------------------------------------------- crashes

sub crashes
{
	app('TRUNCATE app.ledger');
	my @runs = split /\n/, app(q{SELECT orchestrator.enqueue('hundreds', '{"nap": 0.001}') FROM generate_series(1, 4)});
	workflow('items', [ step('m', handler => "'app.work'", each => q{'$.input.items'}, max_attempts => 5, retry_delay => "'0'"), step('z', needs => "'{m}'") ]);
	push @runs, app(q{SELECT orchestrator.enqueue('items', jsonb_build_object('items', (SELECT jsonb_agg(i) FROM generate_series(0, 499) i), 'm', '{"sleep": 0.004}'::jsonb))});
	push @runs, split /\n/, app(q{SELECT orchestrator.enqueue('diamond') FROM generate_series(1, 50)});
	$node->wait_for(q{SELECT count(*) > 300 FROM app.ledger}, 't', 'chains and a map run');
	my $offset = log_end($node);
	my ($pid) = workers($node, 'executor');
	kill_hard($pid);
	await_ready($node, $offset);
	my $all = join ', ', @runs;
	ok(defined within(20, sub { (value($node, "SELECT count(*) FROM orchestrator.task WHERE id IN ($all) AND state = 'completed'") // 0) == @runs }), 'an executor is killed: all of them complete')
	  or diag(value($node, "SELECT string_agg(DISTINCT id || ' ' || state || ' ' || coalesce(error::text, ''), ', ') FROM orchestrator.task WHERE id IN ($all) AND state <> 'completed'"));
	is(app("SELECT count(*) || ' ' || count(DISTINCT (run, step)) FROM app.ledger WHERE run IN ($runs[0], $runs[1], $runs[2], $runs[3])"), '1200 1200', 'each step of the chains once');
	is(app("SELECT count(*) || ' ' || count(DISTINCT item) FROM app.ledger WHERE run = " . task_of($runs[4], 'm')), '500 500', 'each item once');
	is(app('SELECT count(*) || \' \' || count(DISTINCT (run, step)) FROM app.ledger WHERE run IN (' . join(', ', @runs[ 5 .. $#runs ]) . ')'), '200 200', 'each step of the diamonds once');

	# A step that is known to be short, and crashes the server each time.
	workflow('poison', [ @{ chain([ 'a', 'b' ], max_attempts => 5, retry_delay => "'0'") }, step('c', needs => "'{b}'", max_attempts => 2, retry_delay => "'0'"), step('d', needs => "'{c}'") ]);
	$node->stop('fast');   # straight on again
	forget_crashes($node);
	$node->set('orchestrator.executors_per_role' => 1);
	$node->start;
	foreach my $try (1 .. 2)
	{
		app(q{SELECT orchestrator.enqueue('poison') FROM generate_series(1, 10)});
		ended('it is short');
	}
	cmp_ok(straight_on(q{plan = (SELECT id FROM orchestrator.definition WHERE name = 'poison')}), '>', 0, 'and gone straight on to');
	$offset = log_end($node);
	# Not before its own session is through.
	my $bad = app(q{SELECT orchestrator.enqueue('poison', '{"c": {"crash": 1}}', delay => '1 s')});
	my $good = value($node, q{SELECT orchestrator.enqueue('thousand')}, 'app');
	ok(defined within(30, sub { (value($node, "SELECT state FROM orchestrator.task WHERE id = $bad") // '') eq 'failed' }), 'a step that crashes the server each time is given up')
	  or diag(value($node, "SELECT string_agg(concat_ws(' ', name, state, attempt, error), ', ') FROM orchestrator.task WHERE parent_id = $bad OR id = $bad"));
	is(value($node, "SELECT string_agg(name || ' ' || state || ' ' || attempt || coalesce(' ' || (error ->> 'sqlstate'), ''), ', ' ORDER BY step) FROM orchestrator.task WHERE parent_id = $bad") =~ s/^a completed \d, b completed \d/a, b/r,
		'a, b, c failed 2 OR003', 'after its attempts');
	my $restarts = () = log_since($node, $offset) =~ /all server processes terminated; reinitializing/g;
	cmp_ok($restarts, '<=', 3, "the server was restarted $restarts times");
	is(value($node, "SELECT error ->> 'step' FROM orchestrator.task WHERE id = $bad"), 'c', 'its run tells which');
	SKIP:
	{
		skip 'not enqueued', 1 unless $good;
		is(outcome_of($node, 'app', $good)->{output}, 1000, 'another run goes on');
	}
	is(app("SELECT string_agg(step || ' ' || n, ', ') FROM (SELECT step, count(*) AS n FROM app.ledger WHERE run = $bad GROUP BY step ORDER BY 1) x"), 'a 1, b 1', 'what went before has its effect once');
	return;
}

sub not_preloaded
{
	my $bare = new_node(name => 'bare', shared_preload_libraries => '');
	$bare->start;
	$bare->create_extension;
	$bare->plain_role('app');
	$bare->psql_as('app', q{SELECT orchestrator.define_workflow('w', ARRAY[orchestrator.step('a', 'SELECT 1', 'sql'), orchestrator.step('b', 'SELECT 2', 'sql', needs => '{a}')])});
	my @ids = ($bare->psql_as('app', q{SELECT orchestrator.enqueue('w')}), $bare->psql_as('app', q{SELECT orchestrator.enqueue_workflow(ARRAY[orchestrator.step('x', 'SELECT 3', 'sql')])}));
	is($bare->psql_as('app', "SELECT string_agg(state::text, ' ' ORDER BY id) FROM orchestrator.task"), 'waiting pending waiting pending', 'workflows are enqueued');
	$bare->stop;
	$bare->set(shared_preload_libraries => 'orchestrator');
	$bare->start;
	is(join(' ', map { outcome_of($bare, 'app', $_)->{state} } @ids), 'completed completed', 'preloaded, they run');
	$bare->stop;
	return;
}
