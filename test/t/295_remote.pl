# Remote workers against a running server: the limits hold for them and executors
# together, whoever dies meanwhile; they are woken at once and pin nothing while
# they sleep; and one owner's flood does not hold up another's task.

use strict;
use warnings;
use lib 'test/chaos';

use Fault;
use OrchestratorStep;
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

$PostgreSQL::Test::Utils::timeout_default = 30;

my $node = new_node(
	name => 'remote',
	max_worker_processes => 24,
	'orchestrator.executors_per_role' => 6,
	'orchestrator.max_executors' => 8);
$node->start;
$node->create_extension;
$node->plain_role($_) foreach 'app', 'other';
$node->safe_psql('postgres', <<'SQL');
CREATE ROLE worker LOGIN;
SELECT orchestrator.grant_usage('worker', 'worker');
CREATE SCHEMA app AUTHORIZATION app;
SQL

# A step notes when it began and ended, in an executor or remotely; two that
# overlap were there at once.  The loop of a worker claims in one transaction,
# works outside of any, and reports in another, as a client would.
$node->psql_as('app', <<'SQL');
GRANT USAGE ON SCHEMA app TO worker, other;
CREATE TABLE app.ledger (task bigint, tag text, since timestamptz, upto timestamptz);
GRANT SELECT, INSERT ON app.ledger TO worker, other;
CREATE FUNCTION app.work(d jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  v_since timestamptz := clock_timestamp();
BEGIN
  PERFORM pg_sleep(coalesce((d ->> 's')::float8, 0));
  INSERT INTO app.ledger SELECT c.task_id, d ->> 'tag', v_since, clock_timestamp() FROM orchestrator.current_task() c;
  RETURN NULL;
END $$;
CREATE PROCEDURE app.worker(queue text, name text, lease interval) LANGUAGE plpgsql AS $$
DECLARE
  c       orchestrator.claimed_task;
  v_since timestamptz;
BEGIN
  LOOP
    SELECT x.* INTO c FROM orchestrator.claim(ARRAY[queue], name, lease => lease) x;
    v_since := clock_timestamp();
    COMMIT;
    IF c.task_id IS NULL THEN
      PERFORM pg_sleep(0.002);
      CONTINUE;
    END IF;
    PERFORM pg_sleep((c.input ->> 's')::float8);
    INSERT INTO app.ledger VALUES (c.task_id, c.input ->> 'tag', v_since, clock_timestamp());
    PERFORM orchestrator.complete(c.task_id, c.token);
    COMMIT;
  END LOOP;
END $$;
SQL

sub app { return $node->psql_as('app', $_[0]) }
sub worker { return $node->psql_as('worker', $_[0]) }
sub ended { return $node->wait_for('SELECT count(*) = 0 FROM orchestrator.task WHERE live', 't', $_[0]) }

sub overlap
{
	my $tag = $_[0] ? "tag = '$_[0]'" : 'true';
	return app("WITH l AS MATERIALIZED (SELECT * FROM app.ledger WHERE $tag) SELECT max((SELECT count(*) FROM l o WHERE o.since <= l.since AND o.upto > l.since)) FROM l");
}

sub enqueue
{
	my ($definition, $n, $input) = @_;
	return app("SELECT count(*) FROM unnest(orchestrator.enqueue_many('$definition', ARRAY(SELECT $input FROM generate_series(1, $n) i)))");
}

sub input { return sprintf q{jsonb_build_object('s', %s, 'tag', '%s')}, @_ }

# Workers of a queue, in sessions of their own.
sub start_workers
{
	my ($n, $queue, $lease) = @_;
	my @sessions = map { session($node, 'worker') } 1 .. $n;

	$sessions[$_]->send("CALL app.worker('$queue', 'w$_', '" . ($lease // '30 s') . "')") foreach 0 .. $#sessions;
	return @sessions;
}

sub stop_workers
{
	my @sessions = @_;
	$node->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CALL app.worker%'});
	$_->kill foreach @sessions;
	return;
}

sub held { return $node->safe_psql('postgres', q{SELECT coalesce(sum(running), 0) FROM orchestrator._permits()}) }

subtest 'limits, with executors' => \&limits;
subtest 'limits, when workers die' => \&crashes;
subtest 'await_work' => \&await_work;
subtest 'fairness' => \&fairness;
subtest 'a claim without its lease' => \&no_lease;
$node->stop('fast');
subtest 'without preload' => \&not_preloaded;
done_testing();

sub limits
{
	app(q{SELECT orchestrator.define_queue('three', max_running => 3); SELECT orchestrator.share_queue('three', 'worker', claim => true)});
	app(q{SELECT orchestrator.define('near', 'app.work', queue => 'three'), orchestrator.define('far', NULL, 'remote', queue => 'three')});
	my @workers = start_workers(6, 'three');
	enqueue('near', 150, input(0.005, 'near'));
	enqueue('far', 150, input(0.005, 'far'));
	ended('tasks of both kinds end');
	is(overlap(), 3, 'six executors and six remote workers, three at once');
	cmp_ok(overlap('far'), '>', 1, 'remote ones among them');
	is(app('SELECT count(*) || \' \' || count(DISTINCT task) FROM app.ledger'), '300 300', 'each once');

	app('TRUNCATE app.ledger');
	app(q{SELECT orchestrator.define_queue('three')});
	app(q{SELECT orchestrator.define('far', NULL, 'remote', queue => 'three', max_running => 2)});
	app(q{SELECT orchestrator.define('keyed', NULL, 'remote', queue => 'three', concurrency_key => '$.tag', key_max_running => 1)});
	app(q{SELECT orchestrator.define('rated', NULL, 'remote', queue => 'three', rate_limit => 10, rate_period => '0.5 s')});
	enqueue('far', 40, input(0.01, 'two'));
	enqueue('keyed', 60, q{jsonb_build_object('s', 0.01, 'tag', 'k' || i % 3)});
	enqueue('rated', 30, input(0, 'rated'));
	ended('tasks under limits of their own end');
	is(overlap('two'), 2, 'a definition: two at once');
	is(overlap("k$_"), 1, "key k$_: one at once") foreach 0 .. 2;
	cmp_ok(overlap(), '>', 2, 'others meanwhile');
	cmp_ok(app(q{SELECT max((SELECT count(*) FROM app.ledger o WHERE o.tag = 'rated' AND o.since > l.since - interval '0.5 s' AND o.since <= l.since)) FROM app.ledger l WHERE tag = 'rated'}),
		'<=', 11, 'ten in half a second (as clocks of claims go)');

	app('TRUNCATE app.ledger');
	$node->safe_psql('postgres', q{SELECT orchestrator.set_quota('app', max_running => 2)});
	app(q{SELECT orchestrator.define('open', NULL, 'remote', queue => 'three')});
	enqueue('open', 40, input(0.01, 'open'));
	enqueue('near', 40, input(0.01, 'near'));
	ended('tasks of a role with a quota end');
	is(overlap(), 2, 'a quota of the role: two at once, here and there');
	$node->safe_psql('postgres', q{SELECT orchestrator.set_quota('app')});
	stop_workers(@workers);
	is(held(), 0, 'no permit is left over');
	return;
}

# Backends of workers are ended in the middle; one by SIGKILL, so that the server
# restarts and forgets what it knew.
sub crashes
{
	app('TRUNCATE app.ledger');
	app(q{SELECT orchestrator.define_queue('three', max_running => 3)});
	my @workers = start_workers(6, 'three', '5 s');
	enqueue('open', 300, input(0.01, 'open'));
	foreach (1 .. 10)
	{
		usleep(50_000);
		$node->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CALL app.worker%' ORDER BY random() LIMIT 1});
		push @workers, start_workers(1, 'three', '5 s');
	}
	ended('they end, however many workers were terminated in their transactions');
	is(overlap(), 3, 'never more than three');
	stop_workers(@workers);
	is(held(), $node->safe_psql('postgres', 'SELECT count(*) FROM orchestrator.lease'), 'what is held is what leases hold');

	# what is claimed stays claimed over a crash, and counts
	app('TRUNCATE app.ledger');
	$node->safe_psql('postgres', 'SELECT orchestrator.cancel_many(all_tasks => true)');
	enqueue('open', 5, input(0, 'open'));
	my @claims = map { [ split /\|/ ] } split /\n/, worker(q{SELECT task_id, token FROM orchestrator.claim('{three}', 'w', 2)});
	is(scalar(@claims), 2, 'two are claimed');
	my $pid = $node->safe_psql('postgres', q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'});
	kill 'KILL', $pid;
	$node->poll_query_until('postgres', 'SELECT true');
	my $more = 0;
	foreach (1 .. 100)
	{
		last if $more = worker(q{SELECT count(*) FROM orchestrator.claim('{three}', 'w', 5)});   # none before the supervisor knows
		usleep(50_000);
	}
	is($more, 1, 'after a crash of the server they still hold their permits: only one more may be claimed');
	is(held(), 3, 'that makes three');
	is(worker("SELECT orchestrator.complete($claims[0][0], '$claims[0][1]')"), '', 'and their tokens hold');
	is(worker(q{SELECT count(*) FROM orchestrator.claim('{three}', 'w', 5)}), 1, 'a report makes room');

	# a claim that is rolled back
	worker(q{BEGIN; SELECT count(*) FROM orchestrator.claim('{three}', 'w', 5); ROLLBACK});
	is(held(), 3, 'a claim that is rolled back holds nothing');
	worker("BEGIN; SAVEPOINT s; SELECT orchestrator.complete($claims[1][0], '$claims[1][1]'); ROLLBACK TO s; COMMIT");
	is(held(), 3, 'a report that is rolled back gives nothing back');
	worker("SELECT orchestrator.release($claims[1][0], '$claims[1][1]')");
	is(held(), 2, 'one that is not does');
	worker(q{BEGIN; SAVEPOINT s; SELECT count(*) FROM orchestrator.claim('{three}', 'w', 5); ROLLBACK TO s; COMMIT});
	is(held(), 2, 'nor does a claim in a subtransaction that is rolled back');
	$node->safe_psql('postgres', 'SELECT orchestrator.cancel_many(all_tasks => true)');
	is(held(), 0, 'cancelled, all are given back');
	return;
}

sub await_work
{
	app(q{SELECT orchestrator.define_queue('sleepy'); SELECT orchestrator.share_queue('sleepy', 'worker', claim => true)});
	app(q{SELECT orchestrator.define('far', NULL, 'remote', queue => 'sleepy')});
	is(worker(q{CALL orchestrator.await_work('{sleepy}', '0.1 s')}), 'f', 'nothing to do: the time is over');
	like(refused($node, 'worker', q{BEGIN; CALL orchestrator.await_work('{sleepy}'); COMMIT}), qr/cannot run inside a transaction block/, 'not in a transaction');
	like(refused($node, 'worker', q{CALL orchestrator.await_work('{nope}')}), qr/queue "nope" does not exist/, 'nor for a queue that is not there');

	my %ways = (
		'an enqueue' => q{SELECT orchestrator.enqueue('far')},
		'an enqueue of many' => q{SELECT orchestrator.enqueue_many('far', '{1,2}')},
		'one that becomes due' => q{SELECT orchestrator.enqueue('far', delay => '0.2 s')},
		'the step of a workflow' => q{SELECT orchestrator.enqueue_workflow(ARRAY[orchestrator.step('a', 'x', 'remote')], queue => 'sleepy')},
		'items of a map' => q{SELECT orchestrator.enqueue_workflow(ARRAY[orchestrator.step('a', 'x', 'remote', each => '$.input[*]')], '[1, 2]', queue => 'sleepy')},
	);
	foreach my $way (sort keys %ways)
	{
		my $sleeper = session($node, 'worker');
		$sleeper->send(q{CALL orchestrator.await_work('{sleepy}', '20 s')});
		$node->wait_for(q{SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CALL orchestrator.await_work%' AND wait_event_type = 'Extension'}, 1, 'it sleeps');
		is($node->safe_psql('postgres', q{SELECT count(backend_xmin) + count(backend_xid) FROM pg_stat_activity WHERE query LIKE 'CALL orchestrator.await_work%'}), 0, 'and pins nothing');
		my $began = time;
		app($ways{$way});
		is($sleeper->answer, 't', "woken by $way");
		cmp_ok(time - $began, '<', 5, 'at once');
		$sleeper->quit;
		worker(q{SELECT count(*) FROM orchestrator.claim('{sleepy}', 'w', 9)});
		$node->safe_psql('postgres', 'SELECT orchestrator.cancel_many(all_tasks => true)');
	}
	my ($task, $token) = split /\|/, (app(q{SELECT orchestrator.enqueue('far')}), worker(q{SELECT task_id, token FROM orchestrator.claim('{sleepy}', 'w')}))[1];
	my $sleeper = session($node, 'worker');
	$sleeper->send(q{CALL orchestrator.await_work('{sleepy}', '20 s')});
	usleep(100_000);
	worker("SELECT orchestrator.release($task, '$token')");
	is($sleeper->answer, 't', 'woken by a task that is given back');
	$sleeper->quit;
	$node->safe_psql('postgres', 'SELECT orchestrator.cancel_many(all_tasks => true)');

	# limits hold it up: it sleeps, and wakes when they do not
	app(q{SELECT orchestrator.define('one', NULL, 'remote', queue => 'sleepy', max_running => 1)});
	enqueue('one', 2, q{'1'::jsonb});
	($task, $token) = split /\|/, worker(q{SELECT task_id, token FROM orchestrator.claim('{sleepy}', 'w')});
	is(worker(q{CALL orchestrator.await_work('{sleepy}', '0.3 s')}), 'f', 'what a limit holds up is no work');
	$sleeper = session($node, 'worker');
	$sleeper->send(q{CALL orchestrator.await_work('{sleepy}', '20 s')});
	worker("SELECT orchestrator.complete($task, '$token')");
	is($sleeper->answer, 't', 'until there is room');
	$sleeper->quit;
	$node->safe_psql('postgres', 'SELECT orchestrator.cancel_many(all_tasks => true)');
	return;
}

# One application's ten thousand tasks, and another's single one behind them.
sub fairness
{
	app(q{SELECT orchestrator.share_queue('sleepy', 'other'); SELECT orchestrator.share_definition('far', 'other')});
	enqueue('far', 10_000, q{'1'::jsonb});
	my $task = $node->psql_as('other', q{SELECT orchestrator.enqueue('far', queue => 'sleepy')});
	my $claims = 0;
	while (++$claims < 60)
	{
		last if worker(q{SELECT max(task_id) FROM orchestrator.claim('{sleepy}', 'w')}) eq $task;
	}
	cmp_ok($claims, '<', 60, "the other's task came with claim $claims, not with the ten thousandth");
	my $other = $node->psql_as('other', q{SELECT orchestrator.enqueue('far', queue => 'sleepy')});
	is(worker("SELECT count(*) FROM orchestrator.claim('{sleepy}', 'w', 10) c WHERE c.task_id = $other"), 1, 'a batch has something of each');
	$node->safe_psql('postgres', 'SELECT orchestrator.cancel_many(all_tasks => true)');
	return;
}

# What a dump leaves out: the task runs nowhere, and is given back.
sub no_lease
{
	app(q{SELECT orchestrator.enqueue('far')});
	my $token = worker(q{SELECT token FROM orchestrator.claim('{sleepy}', 'w')});
	$node->safe_psql('postgres', 'DELETE FROM orchestrator.lease');
	$node->restart;
	$node->wait_for(q{SELECT count(*) FROM orchestrator.task WHERE live AND state = 'pending'}, 1, 'a claim without its lease is given back at start');
	isnt(worker(q{SELECT token FROM orchestrator.claim('{sleepy}', 'w')}), $token, 'and can be claimed again');
	return;
}

# All of it works, but for its speed: nobody but the workers sees to what is due,
# and limits are counted under locks.
sub not_preloaded
{
	$node->set(shared_preload_libraries => '');
	$node->start;
	$node->safe_psql('postgres', 'SELECT orchestrator.cancel_many(all_tasks => true)');
	app(q{SELECT orchestrator.define_queue('two', max_running => 2), orchestrator.share_queue('two', 'worker', claim => true)});
	app(q{SELECT orchestrator.define('bare', NULL, 'remote', queue => 'two', max_attempts => 2, retry_delay => '0.1 s')});
	enqueue('bare', 3, q{to_jsonb(i)});
	my @claims = map { [ split /\|/ ] } split /\n/, worker(q{SELECT task_id, token FROM orchestrator.claim('{two}', 'w', 5, '1 s')});
	is(scalar(@claims), 2, 'a limit of two gives two');
	is(worker(q{SELECT count(*) FROM orchestrator.claim('{two}', 'w', 5)}), 0, 'and no more');
	is(worker("SELECT state FROM orchestrator.complete_many('{$claims[0][0]}', '{$claims[0][1]}', '{1}')"), 'completed', 'a report');
	is(worker(q{CALL orchestrator.await_work('{two}', '5 s')}), 't', 'makes room for the next');
	is(worker(q{SELECT orchestrator.complete(task_id, token) IS NOT NULL FROM orchestrator.claim('{two}', 'w', 1) WHERE input = '3'}), 't', 'which is claimed, and completed');
	is(worker(q{CALL orchestrator.await_work('{two}', '10 s')}), 't', 'the lease that was not kept ends by the look of whoever waits');
	is(worker(q{SELECT task_id || ' ' || attempt FROM orchestrator.claim('{two}', 'w', 5)}), "$claims[1][0] 2", 'and its task is claimed in its next attempt');
	like(refused($node, 'worker', "SELECT orchestrator.complete($claims[1][0], '$claims[1][1]')"), qr/no longer claimed with this token/, 'its old token is worth nothing');
	$node->stop('fast');
	return;
}
