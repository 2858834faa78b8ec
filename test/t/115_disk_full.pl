# A disk without room (RULES F55), for the data or for the WAL: who enqueues is
# told, tasks wait or fail with that error, and go on when there is room again.

use strict;
use warnings;
use lib 'test/chaos';

use Fault;
use OrchestratorStep;
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;
my ($control, $disk) = disk();
$ENV{LD_PRELOAD} = $disk;
my $node = new_node(name => 'disk', autovacuum => 'off', 'orchestrator.executors_per_role' => 2);
$node->start;
$node->create_extension;
$node->plain_role('app');
handlers($node);
$node->safe_psql('postgres', q{INSERT INTO chaos.gate VALUES ('disk', true)});
$node->psql_as('app', q{SELECT orchestrator.define('pass', 'chaos.pass')});
my $enqueue = q{SELECT orchestrator.enqueue('pass', jsonb_build_object('gate', 'disk', 'token', repeat('x', 500)))};
my $offset = log_end($node);

# No file of a folder of the data directory grows.
sub full { append_to_file("$control/full", $node->data_dir . "/$_[0]/*"); return }
sub room { unlink "$control/full" or die; return }

sub gate
{
	my ($closed) = @_;
	$node->safe_psql('postgres', "UPDATE chaos.gate SET closed = $closed");
	return;
}

# Two steps run, and the others wait.
sub begin
{
	my @ids = map { $node->psql_as('app', $enqueue) } 1 .. 50;
	$node->wait_for(q{SELECT count(*) = 2 FROM orchestrator.worker_status WHERE task_id IS NOT NULL}, 't', 'two steps run');
	return @ids;
}

# What was accepted, and nothing else, has run, once.
sub exact
{
	my ($seconds, @ids) = @_;
	ok(defined within($seconds, sub { (value($node, 'SELECT count(*) FROM orchestrator.task WHERE live') // 1) == 0 }), "all tasks are finished within $seconds s");
	is($node->safe_psql('postgres', q{SELECT string_agg(DISTINCT state::text, ',') FROM orchestrator.task}), 'completed', 'none has failed');
	is($node->safe_psql('postgres', 'SELECT string_agg(task_id::text, $$ $$ ORDER BY task_id) FROM chaos.ledger'), join(' ', sort { $a <=> $b } @ids), 'each has had its effect, once');
	return;
}

my @accepted;

subtest 'no room for data' => sub {
	@accepted = begin();
	my ($supervisor) = workers($node, 'supervisor');
	my $client = session($node, 'app');
	$client->query("\\set VERBOSITY sqlstate\nSELECT 1");
	full('base');
	foreach (1 .. 1000)
	{
		my $id = $client->query($enqueue);
		last if $client->errors;
		push @accepted, $id;
	}
	like($client->errors, qr/ERROR:  53100$/, 'who enqueues is told');
	$client->query(q{SELECT orchestrator.enqueue_many('pass', array_fill('{}'::jsonb, '{10000}'))});
	like($client->errors, qr/ERROR:  53100$/, 'so is who enqueues many');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM orchestrator.task'), @accepted, 'and nothing of it is there');
	gate('false');
	$node->wait_for_log(qr/orchestrator executor ERROR:  could not extend file/, $offset);
	is($node->safe_psql('postgres', q{SELECT count(*) FROM orchestrator.task WHERE state = 'failed'}), 0, 'tasks wait');
	room();
	exact(10, @accepted);
	is(join(' ', workers($node, 'supervisor')), $supervisor, 'the supervisor is the same');
	unlike(log_since($node, $offset), qr/PANIC:|FATAL:/, 'the log has no worse');
	$client->quit;
};

# PostgreSQL itself stops then, and cannot start.
subtest 'no room for WAL' => sub {
	gate('true');
	push @accepted, begin();
	full('pg_wal');
	my $postmaster = postmaster($node);
	my @children = children($postmaster);
	foreach (1 .. 100)
	{
		my $id = value($node, $enqueue, 'app');
		last unless defined $id;
		push @accepted, $id;
		value($node, 'SELECT pg_switch_wal()');
	}
	ok(defined within(60, sub { !alive($postmaster) }), 'the server has stopped');
	my @panics = log_since($node, $offset) =~ /PANIC:  (.*)/g;
	is(scalar(grep { !/^could not write to file "pg_wal\// } @panics), 0, 'for lack of room') or diag("@panics");
	cmp_ok(scalar(@panics), '>', 0, 'as it says');
	room();
	start_again($node, @children);
	gate('false');
	exact(20, @accepted);
};
$node->stop;
done_testing();
