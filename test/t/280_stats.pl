# Statistics and positions with executors: what is counted is what happened, the
# percentiles are those of the tasks' own times, each minute is written once and
# is never seen twice, and a restart loses no minute that was written.

use strict;
use warnings;
use lib 'test/chaos';

use Fault;
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $offset = 0;
my $node = new_node(
	name => 'stats',
	'autovacuum' => 'off',
	'orchestrator.executors_per_role' => 1);
$node->start;
$node->create_extension;
handlers($node);
$node->plain_role($_) foreach 'app', 'other';
$node->safe_psql('postgres', 'GRANT CREATE ON SCHEMA public TO app');
$node->psql_as('app', <<'SQL');
CREATE FUNCTION public.nap(input jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_sleep(coalesce((input ->> 's')::float8, exp(random() * 5) / 10000));
END $$;
SELECT orchestrator.define('nap', 'public.nap'), orchestrator.define('noop', 'chaos.noop'),
       orchestrator.define('fails', 'SELECT 1/0', 'sql', max_attempts => 3, retry_delay => '0', retry_jitter => 0),
       orchestrator.define('fussy', 'SELECT 1/0', 'sql', never_retry => '{22}'),
       orchestrator.define('late', 'SELECT 1', 'sql', queue_timeout => '0.1 second'),
       orchestrator.define_queue('slow'), orchestrator.define_queue('held'), orchestrator.pause_queue('held'),
       orchestrator.define_workflow('flow', ARRAY[
         orchestrator.step('a', definition => 'noop'),
         orchestrator.step('b', definition => 'noop', needs => '{a}')]::orchestrator.step_spec[]);
SQL

subtest 'what is counted' => \&counts;
subtest 'percentiles' => \&percentiles;
subtest 'a minute is over' => \&minute_over;
subtest 'then nothing happens' => \&idle;
subtest 'restarts' => \&restarts;
subtest 'the postmaster is killed' => \&killed;
subtest 'a locked table' => \&locked;
subtest 'the estimated start' => \&estimate;
subtest 'an extension that is made again' => \&made_again;
subtest 'switched off' => \&off;
subtest 'without preload' => \&without_preload;
$node->stop('fast');
done_testing();

# What is counted of a queue or a definition, over all hours.
sub total
{
	my ($kind, $name, $role) = @_;
	return value($node, "SELECT concat_ws(' ', coalesce(sum(started), 0), coalesce(sum(completed), 0), coalesce(sum(failed), 0),"
		  . " coalesce(sum(cancelled), 0), coalesce(sum(retried), 0), coalesce(sum(expired), 0)) FROM orchestrator.${kind}_stats"
		  . " WHERE $kind = '$name' AND period = 'hour'", $role || 'app');
}

sub total_is
{
	my ($kind, $name, $expected, $what, $role) = @_;
	my $got;
	within(10, sub { ($got = total($kind, $name, $role)) eq $expected });
	return is($got, $expected, $what);
}

sub drained
{
	return ok(defined within(60, sub { (value($node, "SELECT count(*) FROM orchestrator.task WHERE live AND state <> 'paused' AND queue NOT IN (SELECT id FROM orchestrator.queue WHERE paused)") // 1) == 0 }),
		'the queues are empty');
}

# Move the clock of the server to the middle of a later minute.
sub next_minute
{
	my $second = value($node, 'SELECT extract(second FROM orchestrator._now())::int');
	$offset += 90 - $second;
	$node->set('orchestrator.test_clock_offset' => $offset);
	$node->reload;
	return;
}

sub unsaved
{
	return value($node, 'SELECT count(*) FROM orchestrator._live_stats()');
}

sub saved_ok
{
	return ok(defined within(10, sub { (unsaved() // 1) == 0 }), 'it is written');
}

sub counts
{
	next_minute();    # not at its end
	$node->psql_as('app', q{SELECT count(orchestrator.enqueue('noop')) FROM generate_series(1, 500)});
	$node->psql_as('app', q{SELECT orchestrator.enqueue_many('fails', array_fill('{}'::jsonb, array[7]))});
	$node->psql_as('app', q{SELECT orchestrator.enqueue('fussy'), orchestrator.enqueue('flow')});
	drained();
	total_is('definition', 'noop', '502 502 0 0 0 0', 'plain successes');
	total_is('definition', 'fails', '21 0 7 0 14 0', 'failures after retries');
	total_is('definition', 'fussy', '1 0 1 0 0 0', 'a failure for good at once');
	total_is('definition', 'flow', '0 1 0 0 0 0', 'a run is completed, and was not started by an executor');
	total_is('queue', 'default', '524 502 8 0 14 0', 'the queue has all that stood in it, and not the run');
	total_is('queue', 'default', '0 0 0 0 0 0', 'another role sees nothing of it', 'other');
	is($node->psql_as('app', q{SELECT failure_rate || ' ' || round(retry_rate::numeric, 3) FROM orchestrator.definition_stats WHERE definition = 'fails' AND period = 'hour'}),
		'1 0.667', 'rates');
	ok($node->psql_as('app', q{SELECT run_p50 < interval '10 s' AND run_p50 > '0' AND wait_p50 IS NULL FROM orchestrator.definition_stats WHERE definition = 'flow' AND period = 'hour'}) eq 't',
		'a run has its own time');

	# What SQL ends, and when: at commit.
	my @held = split /\n/, $node->psql_as('app', q{SELECT orchestrator.enqueue('noop', queue => 'held') FROM generate_series(1, 6)});
	$node->psql_as('app', "BEGIN; SELECT orchestrator.cancel($held[0]); ROLLBACK");
	$node->psql_as('app', "BEGIN; SELECT orchestrator.cancel($held[0]); SAVEPOINT s; SELECT orchestrator.cancel($held[1]); ROLLBACK TO s;"
		  . " SAVEPOINT t; SELECT orchestrator.cancel($held[2]); RELEASE t; COMMIT");
	total_is('queue', 'held', '0 0 0 2 0 0', 'a cancelled task is counted when that is committed, and not when it is rolled back');
	$node->psql_as('app', q{SELECT orchestrator.cancel_many(queue => 'held')});
	total_is('queue', 'held', '0 0 0 6 0 0', 'many at once');
	$node->psql_as('app', q{SELECT orchestrator.enqueue('late', queue => 'held')});
	total_is('definition', 'late', '0 0 1 0 0 1', 'one that was not started in time');
	return;
}

# Of the very times that stand in the rows.
sub percentiles
{
	$node->psql_as('app', q{SELECT count(orchestrator.enqueue('nap')) FROM generate_series(1, 800)});
	drained();
	total_is('definition', 'nap', '800 800 0 0 0 0', 'all are counted');
	foreach my $of ('run', 'wait')
	{
		foreach my $percent (50, 95, 99)
		{
			my $ratio = $node->psql_as('app', <<"SQL");
SELECT extract(epoch FROM s.${of}_p$percent) / x.exact
FROM orchestrator.definition_stats s, (
  SELECT percentile_disc(0.$percent) WITHIN GROUP (ORDER BY extract(epoch FROM CASE '$of' WHEN 'run' THEN t.finished_at - t.started_at ELSE t.started_at - t.created_at END)) AS exact
  FROM orchestrator.task_status t WHERE t.definition = 'nap') x
WHERE s.definition = 'nap' AND s.period = 'hour'
SQL
			cmp_ok(abs($ratio - 1), '<=', 0.0505, "p$percent of the $of time is " . sprintf('%.3f', $ratio) . ' of the exact one');
		}
	}
	return;
}

# Readers that look all the time must always find the same.
sub minute_over
{
	my $before = total('queue', 'default');
	my (%seen, $rows);
	my $old = $node->background_psql('postgres');
	my $sum = q(SELECT sum(started) FROM orchestrator.queue_stats WHERE period = 'hour');
	$old->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ');
	my $then = $old->query_safe($sum);
	next_minute();
	my $until = time + 10;
	do { $seen{ total('queue', 'default') }++ } until unsaved() == 0 || time > $until;
	$seen{ total('queue', 'default') }++;
	is_deeply([ keys %seen ], [$before], 'nothing is missed or seen twice while it is written');
	saved_ok();
	is($old->query_safe($sum), $then, 'nor by a snapshot from before');
	$old->quit;
	$rows = value($node, q{SELECT count(*) FROM orchestrator.stats WHERE kind = 'definition' AND id = (SELECT id FROM orchestrator.definition WHERE name = 'nap')});
	cmp_ok($rows, '>=', 1, 'it stands in the table');
	is(value($node, 'SELECT count(*) - count(DISTINCT (at, kind, id, owner)) FROM orchestrator.stats'), 0, 'once');
	return;
}

# The cells of written minutes are freed without SQL.
sub idle
{
	my $xid = value($node, 'SELECT pg_snapshot_xmax(pg_current_snapshot())');
	my $rows = value($node, 'SELECT count(*) FROM orchestrator.stats');
	foreach (1 .. 6)
	{
		next_minute();
		usleep(300_000);
	}
	is(value($node, 'SELECT count(*) FROM orchestrator.stats'), $rows, 'minutes without tasks write nothing');
	is(value($node, 'SELECT pg_snapshot_xmax(pg_current_snapshot())'), $xid, 'no transaction wrote anything');
	return;
}

sub run_some
{
	$node->psql_as('app', q{SELECT count(orchestrator.enqueue('noop')) FROM generate_series(1, 100)});
	drained();
	return;
}

sub restarts
{
	foreach my $mode ('fast', 'smart')
	{
		run_some();
		my ($before) = map { /^(\d+)/ } total('queue', 'default');
		cmp_ok(unsaved(), '>', 0, 'a minute is under way');
		$node->stop($mode);
		$node->start;
		my ($after) = map { /^(\d+)/ } total('queue', 'default');
		is($after, $before, "after a $mode shutdown all is there");
		is(unsaved(), 0, 'written');
	}
	return;
}

sub killed
{
	next_minute();
	run_some();
	next_minute();
	saved_ok();
	my $written = total('queue', 'default');
	run_some();
	isnt(total('queue', 'default'), $written, 'more is counted');
	my $pid = postmaster($node);
	my @children = children($pid);
	kill_hard($pid);
	start_again($node, @children);
	is(total('queue', 'default'), $written, 'the minutes that were written are there, the last one is lost');
	run_some();
	my ($before) = $written =~ /^(\d+)/;
	ok(defined within(10, sub { total('queue', 'default') =~ /^(\d+)/ && $1 == $before + 100 }), 'and it goes on');
	return;
}

# Neither the supervisor nor the end of the server waits for a lock.
sub locked
{
	my $before = total('queue', 'default');
	my $holder = $node->background_psql('postgres');
	$holder->query_safe('BEGIN; LOCK orchestrator.stats IN SHARE MODE');
	run_some();
	next_minute();
	usleep(1_500_000);
	cmp_ok(unsaved(), '>', 0, 'while somebody locks the table nothing is written');
	$holder->query_safe('COMMIT');
	saved_ok();
	my ($n) = $before =~ /^(\d+)/;
	like(total('queue', 'default'), qr/^@{[$n + 100]} /, 'it is written later');
	$holder->quit;
	return;
}

sub estimate
{
	$node->psql_as('app', q{SELECT orchestrator.enqueue_many('nap', array_fill('{"s": 0.02}'::jsonb, array[60]), queue => 'slow')});
	drained();
	my @ids = split /,/, $node->psql_as('app', q{SELECT array_to_string(orchestrator.enqueue_many('nap', array_fill('{"s": 0.02}'::jsonb, array[150]), queue => 'slow'), ',')});
	my ($at) = $node->psql_as('app', q{SELECT orchestrator._now()});
	my ($position, $start, $ahead, $status) = split /\|/, $node->psql_as('app',
		"SELECT p.position, p.estimated_start, s.jobs_ahead, s.estimated_start FROM orchestrator.queue_position($ids[-1]) p, orchestrator.task_status s WHERE s.task_id = $ids[-1]");
	cmp_ok($position, '>=', 100, 'the last stands far behind');
	cmp_ok(abs($position - $ahead), '<=', 20, 'task_status says the same');
	drained();
	foreach my $estimate ([ 'queue_position', $start ], [ 'task_status', $status ])
	{
		my ($name, $value) = @$estimate;
		my $ratio = $node->psql_as('app', "SELECT extract(epoch FROM '$value'::timestamptz - '$at') / extract(epoch FROM started_at - '$at') FROM orchestrator.task WHERE id = $ids[-1]");
		ok($ratio > 0.4 && $ratio < 2.5, "$name: the estimate is " . sprintf('%.2f', $ratio) . ' of the time it took');
	}
	$node->psql_as('app', q{SELECT orchestrator.pause_queue('slow')});
	my $id = $node->psql_as('app', q{SELECT orchestrator.enqueue('nap', queue => 'slow')});
	is($node->psql_as('app', "SELECT p FROM orchestrator.queue_position($id) p"), '(0,)', 'of a paused queue there is none');
	return;
}

# Its definitions and owners have the numbers of the one before.
sub made_again
{
	my $sql = sub { return $node->safe_psql('again', shift) };
	$node->safe_psql('postgres', 'CREATE DATABASE again');
	$sql->('CREATE EXTENSION orchestrator');
	$sql->(q{SELECT orchestrator.define('one', 'SELECT 1', 'sql')});
	$sql->(q{SELECT orchestrator.enqueue('one')});
	ok(defined within(20, sub { $sql->(q{SELECT coalesce(sum(completed), 0) FROM orchestrator.definition_stats WHERE period = 'hour'}) == 1 }), 'counted');
	$sql->('DROP EXTENSION orchestrator');
	$sql->('CREATE EXTENSION orchestrator');
	$sql->(q{SELECT orchestrator.define('other', 'SELECT 1', 'sql')});
	is($sql->('SELECT count(*) FROM orchestrator.definition_stats'), 0, 'nothing is counted yet');
	next_minute();
	$sql->(q{SELECT orchestrator.enqueue('other')});
	ok(defined within(20, sub { $sql->(q{SELECT coalesce(sum(completed), 0) FROM orchestrator.definition_stats WHERE period = 'hour'}) == 1 }), 'counted');
	next_minute();
	ok(defined within(20, sub { $sql->('SELECT coalesce(sum(completed), 0) FROM orchestrator.stats') > 0 }), 'written');
	is($sql->(q{SELECT string_agg(kind || completed, ' ' ORDER BY kind) FROM orchestrator.stats}), 'definition1 queue1', 'and no more');
	$node->safe_psql('postgres', 'DROP DATABASE again WITH (FORCE)');
	return;
}

sub off
{
	$node->set('orchestrator.statistics' => 'off');
	$node->reload;
	ok(defined within(10, sub { (value($node, 'SHOW orchestrator.statistics') // '') eq 'off' }), 'off');
	run_some();    # the executor has read it when this is done
	my $before = total('queue', 'default');
	run_some();
	is(total('queue', 'default'), $before, 'nothing is counted');
	return;
}

sub without_preload
{
	my $before = total('queue', 'default');
	$node->set(shared_preload_libraries => '');
	$node->restart;
	like($before, qr/^\d{3,} /, 'there is something to see');
	is(total('queue', 'default'), $before, 'what was written can be read');
	my @ids = split /,/, $node->psql_as('app', q{SELECT array_to_string(orchestrator.enqueue_many('nap', array_fill('{}'::jsonb, array[5000])), ',')});
	is($node->psql_as('app', "SELECT p FROM orchestrator.queue_position($ids[4]) p"), '(4,)', 'a position');
	my $position = $node->psql_as('app', "SELECT p.position FROM orchestrator.queue_position($ids[-1]) p");
	cmp_ok(abs($position - 4999), '<=', 4, 'one further behind');
	is($node->psql_as('app', "SELECT estimated_start FROM orchestrator.task_status WHERE task_id = $ids[-1]"), '', 'and no estimate');
	$node->psql_as('app', "SELECT orchestrator.cancel($ids[0])");
	is(total('queue', 'default'), $before, 'nothing is counted');
	return;
}
