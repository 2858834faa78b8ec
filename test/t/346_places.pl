# Roles share the places of outside calls: calls of one that hang keep no other from
# its first, and what is free goes to who has the fewest. Nor do paths that take for
# ever keep others from it.

use strict;
use warnings;

use OrchestratorOutside;
use OrchestratorStep;
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $server = outside();
my $node = new_node(name => 'places', 'orchestrator.courier_max_in_flight' => 8, 'orchestrator.courier_memory' => '256MB');
$node->start;
$node->create_extension;
$node->plain_role($_) foreach 'a', 'b', 'c', 'd';
$node->safe_psql('postgres', <<"SQL");
CREATE SERVER here FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url '$server->{url}', allow_private 'on', timeout '1 h');
CREATE SERVER vectors FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url '$server->{url}/sleep/3600000', provider 'openai', allow_private 'on', timeout '1 h');
GRANT USAGE ON FOREIGN SERVER here, vectors TO a, b, c, d;
SQL
foreach my $role ('a', 'b', 'c', 'd')
{
	$node->psql_as($role, <<'SQL');
SELECT orchestrator.define_queue('other'), orchestrator.define_queue('narrow', max_running => 1);
SELECT orchestrator.define('hang', NULL, 'http', endpoint => 'here', request => '{"path": "/hang"}'),
       orchestrator.define('also', NULL, 'http', 'other', endpoint => 'here', request => '{"path": "/hang"}'),
       orchestrator.define('narrow', NULL, 'http', 'narrow', endpoint => 'here', request => '{"path": "/hang"}'),
       orchestrator.define('echo', NULL, 'http', endpoint => 'here', request => '{"path": "/echo"}'),
       orchestrator.define('embed', NULL, 'embedding', endpoint => 'vectors', batch_size => 10, request => '{"model": "m", "input": "text"}');
SQL
}

sub hang
{
	my ($role, $n, $definition) = @_;
	$definition //= 'hang';
	return $node->psql_as($role, "SELECT count(*) FROM unnest(orchestrator.enqueue_many('$definition', array_fill('{}'::jsonb, ARRAY[$n])))");
}

sub cancel
{
	my ($role, $n) = @_;
	return $node->psql_as($role, "SELECT count(orchestrator.cancel(task_id)) FROM (SELECT task_id FROM orchestrator.task_status WHERE state = 'running' LIMIT $n) r");
}

# Who has how many calls under way, in the end.
sub places_are
{
	my ($expected, $name) = @_;
	return $node->wait_for(q{SELECT string_agg(o.name || n, ' ' ORDER BY o.name) FROM (SELECT owner, count(*) AS n FROM orchestrator.task_live WHERE state = 'running' GROUP BY 1) l
		JOIN orchestrator.owner o ON o.id = l.owner}, $expected, $name);
}

hang('a', 20);
places_are('a8', 'a role alone has all places');
measure_ok(1, 'a call of another', sub {
	my $id = $node->psql_as('b', q{SELECT orchestrator.enqueue('echo')});
	$node->psql_as('b', "CALL orchestrator.await($id, '20 s')");
	is($node->psql_as('b', "SELECT state FROM orchestrator.task WHERE id = $id"), 'completed', 'is made at once');
});
hang('b', 20);
places_are('a8 b1', 'one place is kept');
hang('c', 20);
hang('c', 20, 'also');
cancel('a', 4);
places_are('a4 b2 c2', 'what is free goes to who has the fewest');
is($node->psql_as('c', q{SELECT count(DISTINCT queue) FROM orchestrator.task_status WHERE state = 'running'}), '2', 'in all of its queues');
cancel('c', 1);
places_are('a4 b2 c2', 'a place that is given back is not taken by who has more');
hang('d', 1);
places_are('a4 b2 c2 d1', 'the kept one is for the next');
cancel('d', 1);
places_are('a4 b2 c2', 'and is kept when it is free');
$node->psql_as('a', q{SELECT orchestrator.cancel_many('hang', all_tasks => true)});
places_are('b4 c4', 'roles that want all have as many');
hang('d', 5, 'narrow');
places_are('b4 c4 d1', 'who comes has the kept one');
$node->psql_as('c', 'SELECT orchestrator.cancel_many(all_tasks => true)');
places_are('b7 d1', 'what a limit holds up leaves its places to others');
$node->safe_psql('postgres', q{ALTER SYSTEM SET orchestrator.courier_max_in_flight = 16; SELECT pg_reload_conf()});
places_are('b15 d1', 'more of them are used at once');
$node->psql_as('b', 'SELECT orchestrator.cancel_many(all_tasks => true)');
$node->psql_as('d', 'SELECT orchestrator.cancel_many(all_tasks => true)');
is($node->safe_psql('postgres', q{SELECT count(*) FROM orchestrator.task_live}), '0', 'nothing is left');
hang('a', 10, 'embed');
places_are('a10', 'calls that go in one request');
hang('a', 20);
places_are('a25', 'have one place');
hang('d', 1);
places_are('a25 d1', 'others have theirs');
$node->psql_as($_, 'SELECT orchestrator.cancel_many(all_tasks => true)') foreach 'a', 'd';
hang('a', 20);
places_are('a16', 'all places were given back');
$node->psql_as('a', 'SELECT orchestrator.cancel_many(all_tasks => true)');

# Paths that take for ever, or all memory
sub courier { return $node->safe_psql('postgres', q{SELECT pid FROM orchestrator.worker_status WHERE kind = 'courier'}) }
my $many = '[' . join(',', (1) x 1_500) . ']';
my $deep = '[' x 1500 . ']' x 1500;
$node->psql_as('a', <<"SQL");
SELECT orchestrator.define('long', NULL, 'http', endpoint => 'here', max_attempts => 1, request => '{"path": ["echo", "\$.a[*] ? (exists(\$.a[*] ? (exists(\$.a[*] ? (@ == 0)))))"]}'),
       orchestrator.define('large', NULL, 'http', endpoint => 'here', max_attempts => 1, request => '{"path": "/echo", "body": "\$.**.**.**[*]"}'),
       orchestrator.define('judged', NULL, 'http', endpoint => 'here', max_attempts => 1,
         request => '{"path": "/type", "query": {"as": "application/json", "body": "\$.text"}, "expect": "exists(\$.body[*] ? (exists(\$.body[*] ? (exists(\$.body[*] ? (@ == 0))))))"}');
SQL
sub of_a { return $node->psql_as('a', $_[0]) }
sub result { my ($id) = @_; of_a("CALL orchestrator.await($id, '60 s')"); return of_a("SELECT concat_ws(' ', state, error ->> 'sqlstate', error ->> 'message') FROM orchestrator.task WHERE id = $id") }
my $pid = courier();
my $large = of_a("SELECT orchestrator.enqueue('large', '{\"a\": $deep}')");
is(result($large), 'failed OR004 its request cannot be made: its paths take too long, or too much memory', 'a path that takes all memory');
cmp_ok((slurp_file("/proc/$pid/status") =~ /^VmHWM:\s+(\d+)/m)[0] / 1024, '<', 600, 'has some of it');
my $judged = of_a("SELECT orchestrator.enqueue('judged', '{\"text\": \"$many\"}')");
is(result($judged), 'failed OR013 the answer could not be judged: its paths take too long, or too much memory', 'what an answer is judged by');
of_a("SELECT count(*) FROM unnest(orchestrator.enqueue_many('long', array_fill('{\"a\": $many}'::jsonb, ARRAY[20])))");
measure_ok(8, 'beside 20 of those, a call of another role', sub {
	my $id = $node->psql_as('b', q{SELECT orchestrator.enqueue('echo')});
	$node->psql_as('b', "CALL orchestrator.await($id, '60 s')");
	is($node->psql_as('b', "SELECT state FROM orchestrator.task WHERE id = $id"), 'completed', 'is made');
});
is(of_a(q{SELECT string_agg(DISTINCT concat_ws(' ', error ->> 'sqlstate', attempt), ', ') FROM orchestrator.task_status WHERE definition = 'long' AND state = 'failed'}), 'OR004 1', 'while some of them fail');
cmp_ok(of_a(q{SELECT orchestrator.cancel_many('long', all_tasks => true)}), '>', 0, 'and some wait');
is(courier(), $pid, 'all by one courier');
$node->stop('fast');
done_testing();
