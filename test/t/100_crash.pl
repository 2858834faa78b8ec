# Faults one by one: what dies, who pays an attempt for it, and how soon the
# tasks run again.  test/chaos does the same at random, under load.

use strict;
use warnings;
use lib 'test/chaos';

use Fault;
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $node;
my %node;
my %definition = (max_attempts => 10, retry_delay => q('1 minute'), retry_jitter => 0);

foreach my $lane ('on', 'off')
{
	subtest "fast lane $lane" => sub {
		start_server($lane);
		subtest 'executor killed' => \&executor_killed;
		subtest 'executor terminated' => \&executor_terminated;
		subtest 'executor stopped and continued' => \&executor_stopped;
		foreach my $kind ('supervisor', 'launcher')
		{
			subtest "$kind terminated and killed" => sub { leader_ended($kind) };
		}
		subtest 'supervisor terminated again and again' => \&ended_again;
		subtest 'supervisor and executor ended together' => \&both_terminated;
		subtest 'postmaster killed' => \&postmaster_killed;
		foreach my $mode ('immediate', 'fast', 'smart')
		{
			subtest "$mode shutdown" => sub { shut_down($mode) };
		}
	};
}
subtest 'a step that crashes' => sub { poison('crash') };
subtest 'a step that crashes at commit' => sub { poison('crash_at_commit') };
subtest 'many steps that crash' => \&storm;
in_lanes(sub { $node->stop('fast') });
done_testing();

# ---------------------------------------------------------------- set-up

sub start_server
{
	my ($lane) = @_;
	$node = $node{$lane} = new_node(
		name => "crash_$lane",
		'orchestrator.fast_lane' => $lane,
		'orchestrator.max_executors' => 6,
		'orchestrator.executors_per_role' => 1);
	$node->start;
	$node->create_extension;
	handlers($node);
	foreach my $role ('app', 'other', 'bad')
	{
		$node->plain_role($role);
		$node->safe_psql('postgres', "GRANT pg_execute_server_program TO $role");
		foreach my $handler ('noop', 'pass', 'crash', 'crash_at_commit')
		{
			$node->psql_as($role,
				"SELECT orchestrator.define('$handler', 'chaos.$handler', "
				  . join(', ', map { "$_ => $definition{$_}" } sort keys %definition) . ')');
		}
	}
	return;
}

sub enqueue
{
	my ($role, $handler, $gate, $n, $delay) = @_;
	my $ids = $node->psql_as($role,
		sprintf q(SELECT orchestrator.enqueue('%s', jsonb_build_object('gate', '%s', 'token', i), delay => %s) FROM generate_series(1, %d) i),
		$handler, $gate || '', $delay || 'NULL', $n || 1);
	return split /\n/, $ids;
}

# Steps that crash the server: not before their client has the answer.
sub enqueue_crash { return enqueue('bad', $_[0], '', $_[1], q('0.3 s')) }

sub close_gate { $node->safe_psql('postgres', "INSERT INTO chaos.gate VALUES ('$_[0]', true)"); return }
sub open_gate  { $node->safe_psql('postgres', "UPDATE chaos.gate SET closed = false WHERE name = '$_[0]'"); return }

sub ids { return join ', ', @_ }

sub run_ids
{
	my (@ids) = @_;
	return defined within(60,
		sub { (value($node, 'SELECT count(*) FROM orchestrator.task WHERE NOT live AND id IN (' . ids(@ids) . ')') // 0) == @ids });
}

# Make executors of these roles that know the definition to be short: the next
# step of it takes the fast lane, if that is on.
sub warm_up
{
	forget_crashes($node);
	foreach my $role (@_)
	{
		die "the tasks of $role do not run" unless run_ids(enqueue($role, 'pass', '', 3));
	}
	return;
}

# Process id of the executor that runs the task now.
sub runner
{
	my ($id) = @_;
	my $pid;
	defined within(30,
		sub { $pid = value($node, "SELECT pid FROM orchestrator.worker_status WHERE task_id = $id") })
	  or die "task $id is not run";
	return $pid;
}

# Start a step that waits at a gate: the task and who runs it.
sub start_step
{
	my ($role, $gate) = @_;
	my ($id) = enqueue($role, 'pass', $gate);
	return ($id, runner($id));
}

sub is_attempt
{
	my ($id, $attempt, $name) = @_;
	return is(value($node, "SELECT state || ' ' || attempt FROM orchestrator.task WHERE id = $id"),
		"completed $attempt", $name);
}

sub effects_once
{
	my (@ids) = @_;
	return is(
		value($node,
			'SELECT count(*) || \' of \' || count(DISTINCT task_id) FROM chaos.ledger WHERE task_id IN (' . ids(@ids) . ')'),
		@ids . ' of ' . @ids,
		'every step had its effect once');
}

# Seconds from a time until a step of one of the tasks starts.
sub seconds_to_start
{
	my ($from, @ids) = @_;
	my $started;
	within(30,
		sub {
			$started = value($node,
				'SELECT min(extract(epoch FROM started_at)) FROM orchestrator.task_status '
				  . "WHERE started_at > to_timestamp($from) AND task_id IN (" . ids(@ids) . ')');
		});
	return $started ? $started - $from : 1000;
}

sub at_most
{
	my ($value, $limit, $name) = @_;
	return ok($value <= $limit, sprintf '%s: %.2f s, at most %g', $name, $value, $limit);
}

# ---------------------------------------------------------------- executors

sub executor_killed
{
	warm_up('app', 'other');
	close_gate('killed');
	my ($innocent) = start_step('other', 'killed');

	# Its supervisor cannot take back what is claimed behind the first step.
	my ($supervisor) = workers($node, 'supervisor');
	kill 'STOP', $supervisor;
	my ($guilty, @behind) = enqueue('app', 'pass', 'killed', 6);
	my $pid = runner($guilty);
	my $offset = log_end($node);
	kill_hard($pid);
	kill 'CONT', $supervisor;

	my $ready = await_ready($node, $offset);
	at_most(seconds_to_start($ready, $guilty, @behind), 2, 'its tasks run again after the server is ready');
	at_most(seconds_to_start($ready, $innocent), 2, 'so does the other one');
	open_gate('killed');
	ok(run_ids($guilty, $innocent, @behind), 'all tasks were finished');
	is_attempt($guilty, 2, 'the step that ran in the process has spent an attempt');
	is_attempt($innocent, 1, 'a step of another process has not');
	is_attempt($_, 1, "neither has task $_, claimed but not started") foreach @behind;
	is(value($node, "SELECT string_agg(event || coalesce(' ' || (detail ->> 'sqlstate'), ''), ', ' ORDER BY at, event) FROM orchestrator.trace WHERE task_id = $guilty AND attempt = 1"),
		'started, retrying OR003', 'the trace tells of the lost attempt')
	  or diag(value($node, "SELECT * FROM orchestrator.trace WHERE task_id = $guilty ORDER BY at"));
	effects_once($guilty, $innocent, @behind);
	return;
}

sub executor_terminated
{
	warm_up('app');
	close_gate('terminated');
	my ($supervisor) = workers($node, 'supervisor');
	kill 'STOP', $supervisor;
	my ($guilty, @behind) = enqueue('app', 'pass', 'terminated', 6);
	my $pid = runner($guilty);
	my $from = time;
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
	kill 'CONT', $supervisor;

	at_most(seconds_to_start($from, $guilty, @behind), 1, 'its tasks run again');
	open_gate('terminated');
	ok(run_ids($guilty, @behind), 'all tasks were finished');
	is_attempt($guilty, 2, 'the step that ran in the process has spent an attempt');
	is_attempt($_, 1, "task $_, claimed but not started, has not") foreach @behind;
	effects_once($guilty, @behind);

	# At any moment of a claim.
	my @ids = enqueue('app', 'pass', '', 400);
	foreach (1 .. 15)
	{
		my ($executor) = workers($node, 'executor');
		kill 'TERM', $executor if $executor;
		usleep(rand 50_000);
		push @ids, enqueue('app', 'pass', '', 20);
	}
	ok(run_ids(@ids), 'tasks are finished whenever executors are terminated')
	  or diag(value($node, "SELECT state, count(*) FROM orchestrator.task WHERE live GROUP BY 1"),
		value($node, 'SELECT * FROM orchestrator.worker_status'));
	effects_once(@ids);
	return;
}

sub executor_stopped
{
	warm_up('app', 'other');
	close_gate('stopped');
	$node->set('orchestrator.executors_per_role' => 2);
	$node->reload;
	my ($stuck, $pid) = start_step('app', 'stopped');
	kill 'STOP', $pid;
	my $from = time;
	my ($others) = enqueue('other', 'pass');
	ok(run_ids($others), 'another role is served');
	my @own = enqueue('app', 'pass', '', 20);
	ok(run_ids(@own), 'another executor of the role serves its other tasks');
	at_most(time - $from, 5, 'meanwhile');
	kill 'CONT', $pid;
	open_gate('stopped');
	ok(run_ids($stuck), 'the stopped step is finished when it goes on');
	is_attempt($_, 1, "task $_ has spent no attempt") foreach $stuck, $others, $own[0];
	effects_once($stuck, $others, @own);
	$node->set('orchestrator.executors_per_role' => 1);
	$node->reload;
	return;
}

# ---------------------------------------------------------------- the others

sub leader_ended
{
	my ($kind) = @_;

	foreach my $signal ('TERM', 'KILL')
	{
		forget_crashes($node);
		my ($old) = workers($node, $kind);
		ok($old, "there is a $kind");
		my $offset = log_end($node);
		my $from = time;
		kill $signal, $old;
		await_ready($node, $offset) if $signal eq 'KILL';
		my $back = within(30, sub { grep { $_ != $old } workers($node, $kind) });
		at_most($back // 1000, 5, "another $kind runs after SIG$signal");
		at_most(time - $from, 5, 'counted from the signal');
		my ($id) = enqueue('app', 'pass');
		ok(run_ids($id), 'a task is run');

		# Due tasks and the events of others need a supervisor.
		($id) = split /\n/, $node->psql_as('app', q(SELECT orchestrator.enqueue('pass', delay => '0.1 second')));
		ok(run_ids($id), 'a delayed task is run');
	}
	return;
}

# Whoever ends it again and again does not keep it away: that it was told to
# leave is no failure.
sub ended_again
{
	my ($old) = workers($node, 'supervisor');
	foreach my $round (1 .. 6)
	{
		my ($new, $from) = (undef, time);
		kill 'TERM', $old;
		within(30, sub { ($new) = grep { $_ != $old } workers($node, 'supervisor') });
		at_most(time - $from, 5, "ended $round times in a row, another one runs");
		$old = $new;
	}
	return;
}

# Executors that end while no supervisor looks.
sub both_terminated
{
	warm_up('app', 'other');
	close_gate('both');
	my ($first, $pid) = start_step('app', 'both');
	my ($second) = start_step('other', 'both');
	my ($supervisor) = workers($node, 'supervisor');
	kill 'TERM', $supervisor;
	kill 'TERM', $pid;
	my $from = time;
	at_most(seconds_to_start($from, $first), 5, 'the task of the executor runs again');
	open_gate('both');
	ok(run_ids($first, $second), 'both tasks are finished');
	is_attempt($second, 1, 'the one that ran on has spent no attempt');
	effects_once($first, $second);
	return;
}

sub postmaster_killed
{
	warm_up('app', 'other');
	close_gate('postmaster');
	my ($first) = start_step('app', 'postmaster');
	my ($second) = start_step('other', 'postmaster');
	my $pid = postmaster($node);
	my @children = children($pid);
	my $offset = log_end($node);
	kill_hard($pid);
	at_most(start_again($node, @children), 2, 'its children are gone');
	my $ready = await_ready($node, $offset);
	at_most(seconds_to_start($ready, $_), 2, "task $_ runs again after the server is ready") foreach $first, $second;
	open_gate('postmaster');
	ok(run_ids($first, $second), 'both tasks are finished');
	is_attempt($_, 1, "task $_ has spent no attempt") foreach $first, $second;
	effects_once($first, $second);
	return;
}

sub shut_down
{
	my ($mode) = @_;

	warm_up('app', 'other');
	close_gate($mode);
	my ($first) = start_step('app', $mode);
	my ($second, @behind) = enqueue('other', 'pass', $mode, 6);
	runner($second);
	at_most(stop_timed($node, $mode), 3, 'the server stops');
	my $offset = log_end($node);
	$node->start;
	my $ready = await_ready($node, $offset);
	at_most(seconds_to_start($ready, @$_), 2, "task $$_[0] or one behind it runs again after the server is ready")
	  foreach [$first], [ $second, @behind ];
	open_gate($mode);
	ok(run_ids($first, $second, @behind), 'all tasks are finished');
	is_attempt($_, 1, "task $_ has spent no attempt") foreach $first, $second, @behind;
	effects_once($first, $second, @behind);
	return;
}

# ---------------------------------------------------------------- poison

# With the server of each lane: what one has to wait for passes meanwhile for the
# other.  The code gets what it keeps of its server from call to call.
sub in_lanes
{
	my ($code, $kept) = @_;

	foreach my $lane ('on', 'off')
	{
		$node = $node{$lane};
		$code->($kept->{$lane} //= {}, "lane $lane");
	}
	return;
}

sub restarts
{
	my ($offset) = @_;
	return scalar(() = log_since($node, $offset) =~ /all server processes terminated; reinitializing/g);
}

# It is tried max_attempts times.  The third crash within a minute trips the
# breaker, which lets executors run again five seconds later.
sub poison
{
	my ($handler) = @_;
	my %run;

	in_lanes(sub { give_poison($_[0], $handler) }, \%run);
	in_lanes(\&given_up, \%run);
	in_lanes(\&goes_on, \%run);
	return;
}

sub give_poison
{
	my ($run, $handler) = @_;

	warm_up('app');
	$node->psql_as('bad',
		"SELECT orchestrator.define('$handler', 'chaos.$handler', max_attempts => 3, retry_delay => '0.1 second', retry_jitter => 0)");
	$run->{offset} = log_end($node);
	$run->{from} = time;
	$run->{innocent} = [ enqueue('app', 'pass', '', 50) ];
	($run->{id}) = enqueue_crash($handler);
	return;
}

sub given_up
{
	my ($run, $where) = @_;
	my $id = $run->{id};

	$run->{done} = defined within(40,
		sub { (value($node, "SELECT state FROM orchestrator.task WHERE id = $id") // '') eq 'failed' });
	at_most($run->{done} ? time - $run->{from} : 1000, 20, "$where: it is given up");
	is(value($node, "SELECT state || ' ' || attempt || ' ' || (error ->> 'sqlstate') FROM orchestrator.task WHERE id = $id"),
		'failed 3 OR003', 'after its attempts');
	is(restarts($run->{offset}), 3, 'the server was restarted once for each of them');
	if (!$run->{done})
	{
		# Or the tests that follow would see nothing else.
		within(30, sub { defined value($node, "SELECT orchestrator.cancel($id)") });
		forget_crashes($node);
		return;
	}
	is(scalar(() = log_since($node, $run->{offset}) =~ /steps crashed the server too often/g), 1, 'the breaker tripped once');
	return;
}

sub goes_on
{
	my ($run, $where) = @_;

	return unless $run->{done};
	ok(run_ids(@{ $run->{innocent} }), "$where: the tasks of others are finished");
	effects_once(@{ $run->{innocent} });
	my ($after) = enqueue('app', 'pass');
	ok(run_ids($after), 'and new ones run');
	at_most(time - $run->{from}, 25, 'all of that');
	is(value($node, "SELECT count(*) FROM orchestrator.trace WHERE task_id = $run->{id} AND event IN ('retrying', 'failed') AND detail ->> 'sqlstate' = 'OR003'"),
		3, 'the trace shows three lost attempts');
	return;
}

sub storm
{
	my %run;

	in_lanes(\&begin_storm, \%run);
	in_lanes(\&fourth_crash, \%run);
	in_lanes(\&storm_is_over, \%run);
	return;
}

sub begin_storm
{
	my ($run) = @_;

	warm_up('app');
	$node->psql_as('bad',
		"SELECT orchestrator.define('crash', 'chaos.crash', max_attempts => 3, retry_delay => '0', retry_jitter => 0)");
	$run->{offset} = log_end($node);
	enqueue_crash('crash', 20);
	$run->{from} = time;
	return;
}

# Three crashes, five seconds, one, ten seconds.
sub fourth_crash
{
	my ($run, $where) = @_;

	within(60, sub { restarts($run->{offset}) >= 4 });
	at_most(time - $run->{from}, 20, "$where: the fourth crash comes");
	at_most(5, time - $run->{from}, 'but not before five seconds');
	await_ready($node, $run->{offset});
	within(10, sub { defined value($node, 'SELECT 1') });
	is(value($node, "SELECT count(*) FROM orchestrator.worker_status WHERE kind = 'executor'"),
		0, 'no executor is started for a while');

	# What an administrator would do.
	within(30, sub { defined value($node, q(SELECT orchestrator.cancel_many(definition => 'crash', all_tasks => true)), 'bad') })
	  // fail('the tasks could not be cancelled');
	return;
}

sub storm_is_over
{
	my ($run, $where) = @_;

	my ($id) = enqueue('app', 'pass');
	ok(run_ids($id), "$where: the tasks of others run when the time is over");
	at_most(time - $run->{from}, 40, 'all of that');
	is(restarts($run->{offset}), 4, 'the server was not restarted again');
	my $lines = () = log_since($node, $run->{offset}) =~ /WARNING: .*steps crashed the server too often/g;
	ok($lines <= 2, "$lines warnings of the breaker");
	is(value($node, 'SELECT count(*) FROM orchestrator.task WHERE live'), 0, 'nothing is left');
	forget_crashes($node);
	return;
}
