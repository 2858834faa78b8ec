# Remote workers and followers of progress that use client libraries nobody here
# wrote, node-postgres and psycopg (test/clients): directly, and the workers also
# through pgbouncer in transaction mode. LISTEN needs a connection of its own.

use strict;
use warnings;
use utf8;

use Encode qw(decode_utf8);

use OrchestratorRemote;
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $missing = missing_clients();
plan skip_all => "$missing is not installed" if $missing;
$PostgreSQL::Test::Utils::timeout_default = 30;

my $node = new_node(name => 'clients');
$node->start;
$node->create_extension;
$node->plain_role('app');
$node->safe_psql('postgres', q{CREATE ROLE worker LOGIN; SELECT orchestrator.grant_usage('worker', 'worker')});
my $pooled = start_pooler($node);

sub app { return $node->psql_as('app', $_[0]) }
sub ended { return $node->wait_for('SELECT count(*) = 0 FROM orchestrator.task WHERE live', 't', $_[0]) }

app(<<'SQL');
SELECT orchestrator.define_queue('far'), orchestrator.share_queue('far', 'worker', claim => true);
SELECT orchestrator.define(n, NULL, 'remote', queue => 'far', max_attempts => 2, retry_delay => '0.1 s', notify => 'all')
FROM unnest('{double,pages,unheard}'::text[]) n;
SQL

foreach my $client ('worker.js', 'worker.py')
{
	my @lines = split /\n/, slurp_file("test/clients/$client");
	cmp_ok(scalar(@lines), '<', 60, "$client has less than 60 lines");
	subtest "$client, directly" => sub { works($client, $node->port) };
	subtest "$client, through pgbouncer" => sub { works($client, $pooled) };
}
subtest 'both at once, and one is killed' => \&together;
subtest "$_ draws" => sub { draws($_) } foreach 'progress.js', 'progress.py';
subtest 'told to stop while there is no server' => sub {
	local $ENV{PATIENCE} = 1;    # second
	my @workers = map { start_client($node, $_, ['far'], role => 'worker') } 'worker.js', 'worker.py';
	$node->wait_for(q{SELECT count(*) >= 2 FROM pg_stat_activity WHERE query LIKE 'CALL orchestrator.await_work%'}, 't', 'both wait for work');
	$node->stop('fast');
	kill 'TERM', map { $_->{pid} } @workers;
	cmp_ok(ended_client($_), '<', 128, 'they end all the same') foreach @workers;
};
done_testing();

# All that a worker does: batches, progress, failures, cancel, and to stop when it
# is told to.
sub works
{
	my ($program, $port) = @_;
	my $worker = start_client($node, $program, ['far'], port => $port, role => 'worker');
	my $first = app(q{SELECT min(i) FROM unnest(orchestrator.enqueue_many('double', ARRAY(SELECT jsonb_build_object('n', i) FROM generate_series(1, 200) i))) i});
	ended('200 tasks end');
	is(app("SELECT count(*) || ' ' || count(DISTINCT output) || ' ' || bool_and(output -> 'double' = to_jsonb(2 * (input ->> 'n')::int)) FROM orchestrator.task WHERE id >= $first AND state = 'completed' AND attempt = 1"),
		'200 200 true', 'once, each with its output');

	my $pages = app(q{SELECT orchestrator.enqueue('pages', '{"pages": 3, "ms": 30}')});
	my $unheard = app(q{SELECT orchestrator.enqueue('unheard')});
	ended('it is woken, and works');
	is(app("SELECT output FROM orchestrator.task WHERE id = $pages"), '{"pages": 3}', 'a longer one');
	is(app("SELECT state || ' ' || attempt FROM orchestrator.task WHERE id = $unheard"), 'failed 1', 'one that it has no handler for fails for good');

	my $long = app(q{SELECT orchestrator.enqueue('pages', '{"pages": 1000, "ms": 20}')});
	$node->wait_for("SELECT message LIKE 'page % of 1000' FROM orchestrator.task_status WHERE task_id = $long", 't', 'its progress is seen');
	app("SELECT orchestrator.cancel($long)");
	my $next = app(q{SELECT orchestrator.enqueue('double', '{"n": 1}')});
	$node->wait_for("SELECT state FROM orchestrator.task WHERE id = $next", 'completed', 'cancelled, it goes on to the next');

	my @short = map { app(q{SELECT orchestrator.enqueue('pages', '{"pages": 20, "ms": 30}')}) } 1 .. 2;
	$node->wait_for(q{SELECT count(*) > 0 FROM orchestrator.task_status WHERE message LIKE 'page %' AND state = 'running'}, 't', 'some run');
	is(stop_client($worker), 0, 'told to stop, it leaves as it should');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM orchestrator.lease'), 0, 'and holds nothing');
	is(app(qq{SELECT string_agg(DISTINCT state::text, ' ') FROM orchestrator.task WHERE id IN ($short[0], $short[1]) AND NOT (state = 'completed' OR state = 'pending' AND attempt = 0)}), '', 'what it had is completed, or given back');
	app('SELECT orchestrator.cancel_many(all_tasks => true)');
	is(said($worker), '', 'it has nothing to complain of');
	return;
}

sub together
{
	my @workers = map { start_client($node, $_, ['far'], port => $pooled, role => 'worker') } 'worker.js', 'worker.py', 'worker.js';
	app(q{SELECT orchestrator.define('pages', NULL, 'remote', queue => 'far', max_attempts => 5, retry_delay => '0')});
	app(q{SELECT count(*) FROM unnest(orchestrator.enqueue_many('pages', ARRAY(SELECT jsonb_build_object('pages', 3, 'ms', 10) FROM generate_series(1, 150) i)))});
	$node->wait_for(q{SELECT count(*) > 20 FROM orchestrator.task WHERE state = 'completed'}, 't', 'they work');
	is(stop_client($workers[2], 'KILL'), 128 + 9, 'one is killed');
	ended('what it had comes back when its leases end');
	is(app(q{SELECT count(*) FROM orchestrator.task WHERE state <> 'completed' AND input -> 'ms' = '10'}), 0, 'and is completed by the others');
	is(stop_client($_), 0, 'they stop') foreach @workers[0, 1];
	return;
}

sub draws
{
	my ($program) = @_;
	my $task = app(q{SELECT orchestrator.enqueue('pages', '{"pages": 10, "ms": 50}')});
	my $follower = start_client($node, $program, [$task]);
	$node->wait_for(q{SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN orchestrator_task_%' OR query LIKE '%FROM orchestrator.task_status WHERE task_id%' AND usename = 'app'}, 1, 'it listens');
	my $worker = start_client($node, $program =~ /js$/ ? 'worker.js' : 'worker.py', ['far'], role => 'worker');
	is(ended_client($follower), 0, 'it ends with the task');
	my $said = decode_utf8(said($follower));
	note(said($follower));
	like($said, qr/^░{20}   0 %  pending\n/, 'from its beginning');
	like($said, qr/^█{10}░{10}  50 %  running page 5 of 10\n/m, 'on its way');
	like($said, qr/^█{20} 100 %  completed\n\z/m, 'to its end');
	is(stop_client($worker), 0, 'the worker stops');
	return;
}
