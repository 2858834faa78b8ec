# An idle system does nothing: no SQL, no transaction, no snapshot, no wake-up.
# Seen from another database, so that the observer does not count.

use strict;
use warnings;
use lib 'test/chaos';

use Fault;
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $seconds = 6;
my $node = new_node(
	name => 'idle',
	'autovacuum' => 'off',
	'orchestrator.statistics' => 'off',    # a minute that had tasks is written: 280_stats.pl
	'max_prepared_transactions' => 0);
$node->start;
$node->create_extension;
$node->safe_psql('postgres', 'CREATE DATABASE observer');
handlers($node);
$node->plain_role('app');
$node->psql_as('app',
	q(SELECT orchestrator.define('noop', 'chaos.noop'), orchestrator.define('note', 'chaos.note', max_attempts => 2)));

subtest 'before the first task' => sub { observe(0) };

$node->psql_as('app', q(SELECT orchestrator.enqueue('noop') FROM generate_series(1, 1000)));
$node->psql_as('app', q(SELECT orchestrator.enqueue('note', delay => '0.2 second', deadline => now() + interval '1 hour')));
ok(defined within(30, sub { value($node, 'SELECT count(*) FROM orchestrator.task WHERE live') == 0 }), 'tasks were run');
subtest 'with warm executors' => sub { observe(1) };

# What is due later is no work now.
$node->psql_as('app', q(SELECT orchestrator.enqueue('noop', delay => '1 hour')));
$node->safe_psql('postgres', q(SELECT orchestrator.define_queue('held'), orchestrator.pause_queue('held')));
$node->safe_psql('postgres', q(SELECT orchestrator.share_queue('held', 'app')));
$node->psql_as('app', q(SELECT orchestrator.enqueue('noop', queue => 'held') FROM generate_series(1, 10)));
subtest 'with a task that is due later, and a paused queue' => sub { observe(1) };

# Executors that leave are not started again for nothing.
$node->set('orchestrator.executor_idle_timeout' => '1s');
$node->reload;
$node->psql_as('app', q(SELECT orchestrator.enqueue('noop')));
ok(defined within(30, sub { !workers($node, 'executor') }), 'idle executors leave');
subtest 'after executors left' => sub { observe(0); is(scalar workers($node, 'executor'), 0, 'none was started again') };

# The look that comes a minute after work, where it finds none.
$node->psql_as('app', q(SELECT orchestrator.cancel_many(all_tasks => true)));
foreach my $minute (1 .. 3)
{
	ok(defined within(30, sub { !workers($node, 'executor') }), 'no executor is left');
	my ($started, %seen) = (0);
	$node->set('orchestrator.test_clock_offset' => $minute * 61);
	$node->reload;
	within(1, sub { $started += grep { !$seen{$_}++ } workers($node, 'executor'); 0 });
	is($started, 0, "minute $minute: none is started");
}

$node->stop('fast');
done_testing();

# All that would change if anything were done.
sub look
{
	my $activity = $node->safe_psql('observer', <<'SQL');
SELECT pid, backend_type, state, query_start, state_change, xact_start, backend_xid, backend_xmin
FROM pg_stat_activity WHERE backend_type LIKE 'orchestrator%' ORDER BY pid
SQL
	my $statistics = $node->safe_psql('observer', <<'SQL');
SELECT xact_commit + xact_rollback, tup_returned + tup_fetched, tup_inserted + tup_updated + tup_deleted, blks_hit + blks_read
FROM pg_stat_database WHERE datname = 'postgres'
SQL
	my $xid = $node->safe_psql('observer', 'SELECT pg_snapshot_xmax(pg_current_snapshot())');
	return "$activity\n$statistics\n$xid";
}

# How often each worker was woken until now.
sub wakes
{
	return map { $_ => slurp_file("/proc/$_/status") =~ /^voluntary_ctxt_switches:\s+(\d+)/m ? $1 : 0 } workers($node);
}

# Watch for so long: this is the one test that has to wait, for nothing.
sub observe
{
	my ($executors) = @_;
	my $last = '';

	# Statistics of what went before may come late.
	defined within(30, sub { my $now = look(); my $same = $now eq $last; $last = $now; usleep(500_000) unless $same; return $same })
	  or fail('it never becomes quiet');
	cmp_ok(scalar workers($node, 'executor'), '>=', 1, 'there are executors') if $executors;

	my $before = look();
	my %woken = wakes();
	my $until = time + $seconds;
	my $same = 1;
	while ($same && time < $until)
	{
		usleep(200_000);
		$same = look() eq $before;
	}
	ok($same, "nothing changes for $seconds seconds") or is(look(), $before);
	my %woken_since = wakes();
	foreach my $pid (sort { $a <=> $b } keys %woken)
	{
		my $times = ($woken_since{$pid} // 1e9) - $woken{$pid};
		cmp_ok($times, '<=', $seconds, title($pid) . " woke $times times");
	}
	my @busy = grep { (split /\|/)[5] || (split /\|/)[7] } grep { /orchestrator/ } split /\n/, $before;
	is("@busy", '', 'no worker is in a transaction or holds a snapshot');
	return;
}
