# Limits of queues, definitions, workflows and keys, with real executors: a
# ledger of when each step ran never shows one too many, whoever dies meanwhile;
# and nobody waits for a permit that is free.

use strict;
use warnings;
use lib 'test/chaos';

use Fault;
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(clock_gettime CLOCK_MONOTONIC time usleep);

$PostgreSQL::Test::Utils::timeout_default = 30;

my $node = new_node(
	name => 'limits',
	max_worker_processes => 24,
	'orchestrator.executors_per_role' => 8,
	'orchestrator.max_executors' => 12);
$node->start;
$node->create_extension;
$node->plain_role($_) foreach 'app', 'other';
$node->safe_psql('postgres', 'CREATE SCHEMA app AUTHORIZATION app');

# A step notes when it began and ended.  Two that overlap were there at once.
$node->psql_as('app', <<'SQL');
GRANT USAGE ON SCHEMA app TO other;
CREATE TABLE app.ledger (task bigint, tag text, since timestamptz, upto timestamptz);
GRANT SELECT, INSERT ON app.ledger TO other;
CREATE FUNCTION app.work(d jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  v_since timestamptz := clock_timestamp();
BEGIN
  PERFORM pg_sleep(coalesce((d ->> 's')::float8, 0));
  INSERT INTO app.ledger SELECT c.task_id, d ->> 'tag', v_since, clock_timestamp() FROM orchestrator.current_task() c;
  RETURN NULL;
END $$;
CREATE FUNCTION app.step(d jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  RETURN app.work(d -> 'input');
END $$;
SQL

sub app { return $node->psql_as('app', $_[0]) }
sub ended { return $node->wait_for('SELECT count(*) = 0 FROM orchestrator.task WHERE live', 't', $_[0]) }

# The most steps that ran at one moment.
sub overlap
{
	my $tag = $_[0] ? "tag = '$_[0]'" : 'true';
	return app("WITH l AS MATERIALIZED (SELECT * FROM app.ledger WHERE $tag) SELECT max((SELECT count(*) FROM l o WHERE o.since <= l.since AND o.upto > l.since)) FROM l");
}

# The most that began within a period, wherever it starts.
sub most_within
{
	my ($tag, $period) = @_;
	return app("SELECT max((SELECT count(*) FROM app.ledger o WHERE o.tag = '$tag' AND o.since > l.since - interval '$period' AND o.since <= l.since)) FROM app.ledger l WHERE tag = '$tag'");
}

sub enqueue
{
	my ($definition, $n, $input) = @_;
	return app("SELECT count(*) FROM unnest(orchestrator.enqueue_many('$definition', ARRAY(SELECT $input FROM generate_series(1, $n) i)))");
}

sub input { return sprintf q{jsonb_build_object('s', %s, 'tag', '%s')}, @_ }

foreach my $lane ('on', 'off')
{
	subtest "fast lane $lane" => sub {
		$node->set('orchestrator.fast_lane' => $lane);
		subtest 'queue' => \&queue;
		subtest 'definition' => \&definition;
		subtest 'key' => \&key;
		subtest 'rate' => \&rate;
	};
}
subtest 'workflow' => \&workflow;
subtest 'role' => \&role;
subtest 'changes' => \&changes;
subtest 'control of parked tasks' => \&parked;
subtest 'many keys' => \&many_keys;
subtest 'all at once' => \&all_at_once;
subtest 'crashes' => \&crashes;
subtest 'rates after a restart' => \&restart;
subtest 'rates after a restart of the machine' => \&machine_restart;
$node->stop('fast');
done_testing();

sub queue
{
	app('TRUNCATE app.ledger');
	app(q{SELECT orchestrator.define_queue('three', max_running => 3); SELECT orchestrator.share_queue('three', 'other')});
	app(q{SELECT orchestrator.define('in_three', 'app.work', queue => 'three'); SELECT orchestrator.share_definition('in_three', 'other')});
	enqueue('in_three', 150, input(0.01, 'a'));
	$node->psql_as('other', 'SELECT count(orchestrator.enqueue(\'in_three\', ' . input(0.01, 'b') . ')) FROM generate_series(1, 50)');
	ended('the tasks of two roles end');
	is(app('SELECT count(*) FROM app.ledger'), 200, 'all ran');
	is(overlap(), 3, 'eight executors, three at once');
	isnt(app('SELECT count(*) FROM orchestrator._permits()'), 0, 'its owner may look at what is taken');
	is($node->psql_as('other', 'SELECT count(*) FROM orchestrator._permits()'), 0, 'nobody else');
	return;
}

# What is blocked does not hold up what stands behind it.
sub definition
{
	app('TRUNCATE app.ledger');
	app(q{SELECT orchestrator.define('two', 'app.work', max_running => 2); SELECT orchestrator.define('free', 'app.work')});
	enqueue('two', 3000, input(0.002, 'two'));
	enqueue('free', 40, input(0.01, 'free'));
	ended('limited and free tasks end');
	is(overlap('two'), 2, 'two at once');
	cmp_ok(overlap('free'), '>', 2, 'more of the others');
	is(app(q{SELECT (SELECT max(upto) FROM app.ledger WHERE tag = 'free') < (SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY upto) FROM app.ledger WHERE tag = 'two')}),
		't', 'which do not wait for those before them');
	is(app(q{SELECT count(*) || ' ' || count(DISTINCT task) FROM app.ledger}), '3040 3040', 'each once');
	return;
}

sub key
{
	app('TRUNCATE app.ledger');
	app(q{SELECT orchestrator.define('keyed', 'app.work', concurrency_key => '$.tag', key_max_running => 1)});
	enqueue('keyed', 90, q{jsonb_build_object('s', 0.01, 'tag', 'k' || i % 3)});
	enqueue('keyed', 10, q{jsonb_build_object('s', 0.01)});
	ended('tasks with keys end');
	is(overlap("k$_"), 1, "one of key k$_ at once") foreach 0 .. 2;
	cmp_ok(overlap(), '>', 2, 'different keys at once');
	is(app('SELECT count(DISTINCT task) FROM app.ledger'), 100, 'and those without a key');
	return;
}

sub rate
{
	app('TRUNCATE app.ledger');
	app(q{SELECT orchestrator.define('rated', 'app.work', rate_limit => 10, rate_period => '0.5 s')});
	app(q{SELECT orchestrator.define('key_rated', 'app.work', concurrency_key => '$.tag', key_rate_limit => 4, key_rate_period => '0.5 s')});
	app(q{SELECT orchestrator.define_queue('rated', rate_limit => 5, rate_period => '0.4 s')});
	app(q{SELECT orchestrator.define('in_rated', 'app.work', queue => 'rated')});
	my $began = time;
	enqueue('rated', 35, input(0, 'rated'));
	enqueue('key_rated', 12, input(0, 'key_rated'));
	enqueue('in_rated', 16, input(0.01, 'in_rated'));
	ended('they end');
	my $took = time - $began;
	is(app('SELECT count(DISTINCT task) FROM app.ledger'), 63, 'all ran');
	is(most_within('rated', '0.5 s'), 10, 'ten in half a second, wherever it begins');
	is(most_within('key_rated', '0.5 s'), 4, 'four of a key');
	is(most_within('in_rated', '0.4 s'), 5, 'five in a queue');
	cmp_ok($took, '<', 4, 'and no fewer than there could be') or diag("took $took s");
	return;
}

# Of a workflow, its steps.
sub workflow
{
	$node->set('orchestrator.fast_lane' => 'on');
	app('TRUNCATE app.ledger');
	app(q{SELECT orchestrator.define_workflow('w', ARRAY[orchestrator.step('a', 'app.step'), orchestrator.step('b', 'app.step', needs => '{a}'), orchestrator.step('c', 'app.step', needs => '{a}')], max_running => 2)});
	enqueue('w', 20, input(0.01, 'w'));
	ended('workflows end');
	is(app('SELECT count(DISTINCT task) FROM app.ledger'), 60, 'all steps ran');
	is(overlap(), 2, 'two at once, of all its runs');
	return;
}

# What an administrator allows a role.
sub role
{
	app('TRUNCATE app.ledger');
	app(q{SELECT orchestrator.define('free', 'app.work'); SELECT orchestrator.share_definition('free', 'other')});
	$node->safe_psql('postgres', q{SELECT orchestrator.set_quota('app', max_running => 2)});
	enqueue('free', 40, input(0.02, 'app'));
	$node->psql_as('other', 'SELECT count(orchestrator.enqueue(\'free\', ' . input(0.02, 'other') . ')) FROM generate_series(1, 40)');
	ended('two roles end');
	is(overlap('app'), 2, 'two of the one at once');
	cmp_ok(overlap('other'), '>', 2, 'more of the other');
	$node->safe_psql('postgres', q{SELECT orchestrator.set_quota('app')});
	is($node->safe_psql('postgres', q{SELECT count(*) FROM orchestrator.quota_status WHERE role = 'app' AND max_running IS NOT NULL}), 0, 'any number again');
	return;
}

sub changes
{
	app('TRUNCATE app.ledger');
	app(q{SELECT orchestrator.define_queue('changes', max_running => 1); SELECT orchestrator.define('changing', 'app.work', queue => 'changes')});
	enqueue('changing', 30, input(0.1, 'one'));
	usleep(300_000);
	is(overlap(), 1, 'one at once');
	app(q{SELECT orchestrator.define_queue('changes', max_running => 6)});
	my $at = app('SELECT clock_timestamp()');
	ended('they end');
	is(overlap(), 6, 'a limit that is raised serves at once');
	cmp_ok(app("SELECT extract(epoch FROM min(l.since) - '$at') FROM app.ledger l WHERE (SELECT count(*) FROM app.ledger o WHERE o.since <= l.since AND o.upto > l.since) > 2"), '<', 0.5, 'within half a second');
	app(q{SELECT orchestrator.define_queue('changes', max_running => 2)});
	$at = app('SELECT clock_timestamp()');
	enqueue('changing', 20, input(0.02, 'two'));
	ended('they end');
	is(app("SELECT max((SELECT count(*) FROM app.ledger o WHERE o.tag = 'two' AND o.since <= l.since AND o.upto > l.since)) FROM app.ledger l WHERE tag = 'two'"), 2, 'one that is lowered, too');

	app('TRUNCATE app.ledger');
	app(q{SELECT orchestrator.define('changing', 'app.work', max_running => 1)});
	enqueue('changing', 80, input(0.05, 'd'));
	usleep(200_000);
	app(q{SELECT orchestrator.define('changing', 'app.work', max_running => 5)});
	ended('they end');
	is(overlap(), 5, 'of a definition it holds for what was enqueued before');
	return;
}

sub parked
{
	app('TRUNCATE app.ledger');
	app(q{SELECT orchestrator.define_queue('p'); SELECT orchestrator.define('parked', 'app.work', queue => 'p', max_running => 1, max_attempts => 1)});
	enqueue('parked', 12, input(0.15, 'p'));
	$node->wait_for(q{SELECT count(*) > 8 FROM orchestrator.task WHERE parked_on IS NOT NULL}, 't', 'tasks are parked');
	my @tasks = split /\n/, app(q{SELECT id FROM orchestrator.task WHERE live AND parked_on IS NOT NULL ORDER BY id});
	is(app("SELECT state FROM orchestrator.task_status WHERE task_id = $tasks[-1]"), 'pending', 'they are pending');
	is(app("SELECT orchestrator.cancel($tasks[-1])"), 'cancelled', 'one is cancelled');
	app("SELECT orchestrator.pause($tasks[-2])");
	app(q{SELECT orchestrator.pause_queue('p')});
	$node->wait_for(q{SELECT count(*) = 0 FROM orchestrator.task_status WHERE state = 'running'}, 't', 'the queue is paused');
	my $ran = app('SELECT count(*) FROM app.ledger');
	usleep(300_000);
	is(app('SELECT count(*) FROM app.ledger'), $ran, 'nothing of it starts');
	app(q{SELECT orchestrator.resume_queue('p')});
	$node->wait_for("SELECT count(*) = 1 FROM orchestrator.task WHERE live", 't', 'it goes on');
	app("SELECT orchestrator.resume($tasks[-2])");
	ended('and so does what was paused');
	is(app('SELECT count(*) || \' \' || count(DISTINCT task) FROM app.ledger'), '11 11', 'each once');
	is(overlap(), 1, 'one at once');
	return;
}

# Far more keys than executors, and more than there is room for permits in
# many a set of the table.
sub many_keys
{
	app('TRUNCATE app.ledger');
	enqueue('keyed', 12000, q{jsonb_build_object('tag', 'k' || i % 5000, 's', 0.001)});
	ended('12,000 tasks of 5,000 keys end');
	is(app('SELECT count(DISTINCT task) FROM app.ledger'), 12000, 'all ran');
	is(app(q{SELECT count(*) FROM app.ledger a JOIN app.ledger b ON b.tag = a.tag AND b.task <> a.task AND b.since <= a.since AND b.upto > a.since}), 0, 'none beside another of its key');
	return;
}

sub all_at_once
{
	app('TRUNCATE app.ledger');
	app(q{SELECT orchestrator.define_queue('all', max_running => 4, rate_limit => 40, rate_period => '0.5 s')});
	app(q{SELECT orchestrator.define('all', 'app.work', queue => 'all', max_running => 3, rate_limit => 30, rate_period => '0.5 s', concurrency_key => '$.tag', key_max_running => 2, key_rate_limit => 20, key_rate_period => '0.5 s')});
	enqueue('all', 120, q{jsonb_build_object('s', 0.003, 'tag', 'k' || i % 3)});
	ended('under all kinds of limits they end');
	is(app('SELECT count(*) || \' \' || count(DISTINCT task) FROM app.ledger'), '120 120', 'each once');
	cmp_ok(overlap(), '<=', 3, 'the narrowest holds');
	cmp_ok(overlap("k$_"), '<=', 2, "and that of key $_") foreach 0 .. 2;
	is(app(q{SELECT max((SELECT count(*) FROM app.ledger o WHERE o.since > l.since - interval '0.5 s' AND o.since <= l.since)) <= 30 FROM app.ledger l}), 't', 'and the rate');
	return;
}

# ---------------------------------------------------------------- crashes

# Executors die by the dozen, now and then the server with them: no permit
# leaks, and none is there twice.
sub crashes
{
	app('TRUNCATE app.ledger');
	enqueue('in_three', 400, input(0.02, 'a'));
	enqueue('two', 400, input(0.02, 'two'));
	foreach my $kill (1 .. 50)
	{
		usleep(60_000);
		my @pids = workers($node, 'executor') or redo;
		if ($kill % 17 == 0)
		{
			my $offset = log_end($node);
			forget_crashes($node);
			kill_hard($pids[ rand @pids ]);
			await_ready($node, $offset);
		}
		else { kill 'TERM', $pids[ rand @pids ] }
	}
	my @children = children(postmaster($node));
	kill_hard(postmaster($node));
	start_again($node, @children);
	forget_crashes($node);
	ended('50 kills and a dead postmaster: all end');
	is(app(q{SELECT count(*) || ' ' || count(DISTINCT task) FROM app.ledger WHERE tag = 'a'}), '400 400', 'each once');
	cmp_ok(overlap('a'), '<=', 3, 'never more than three in the queue');
	cmp_ok(overlap('two'), '<=', 2, 'never more than two of the definition');
	app('TRUNCATE app.ledger');
	enqueue('in_three', 12, input(0.4, 'a'));
	enqueue('two', 8, input(0.4, 'two'));
	ended('the pools are filled');
	is(overlap('a') . ' ' . overlap('two'), '3 2', 'and hold exactly what they should');
	is($node->safe_psql('postgres', q{SELECT sum(running) FROM orchestrator._permits()}), '0', 'no permit is left over');
	return;
}

sub restart
{
	use_up('slowly', 6, '5 s');
	$node->stop('immediate');
	$node->start;
	ended('the rest goes on');
	is(most_within('slowly', '5 s'), 6, 'a restart does not begin another one');
	return;
}

# The first of a definition run, as many as its rate allows; two more wait.
sub use_up
{
	my ($name, $limit, $period) = @_;
	app('TRUNCATE app.ledger');
	app("SELECT orchestrator.define_queue('$name', rate_limit => $limit, rate_period => '$period'); SELECT orchestrator.define('$name', 'app.work', queue => '$name')");
	enqueue($name, $limit + 2, input(0, $name));
	$node->wait_for("SELECT count(*) = $limit FROM app.ledger", 't', 'a period is used up');
	return;
}

# Its clock begins anew: what was started is from before that.
sub machine_restart
{
	use_up('anew', 20, '4 s');
	$node->stop('immediate');
	start_with_clock($node, STARTED => clock_gettime(CLOCK_MONOTONIC));
	my $until = time + 3;
	enqueue('anew', 1, input(0, 'anew')) while time < $until;
	app(q{SELECT orchestrator.cancel_many(definition => 'anew')});
	is(most_within('anew', '4 s'), 20, 'nor does a restart of the machine');
	return;
}
