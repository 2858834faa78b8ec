# 2,000 calls that hang at once (F53): nothing crashes, others go on, and each ends
# by its time-out or a cancel.

use strict;
use warnings;

use OrchestratorOutside;
use OrchestratorStep;
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $n = 2000;
$PostgreSQL::Test::Utils::timeout_default = 60;
chomp(my $limit = `sh -c 'ulimit -Hn'`);
plan skip_all => "not so many files may be open: $limit" if $limit =~ /^\d+$/ && $limit < $n + 200;

my $server = outside();
my $node = new_node(name => 'hangs', 'orchestrator.courier_max_in_flight' => 3000);
$node->start;
$node->create_extension;
$node->plain_role('app');
$node->safe_psql('postgres', <<"SQL");
CREATE SERVER hung FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url '$server->{url}', allow_private 'on', timeout '1 h');
GRANT USAGE ON FOREIGN SERVER hung TO app;
SQL
app(<<'SQL');
SELECT orchestrator.define_queue('other');
SELECT orchestrator.define('hang', NULL, 'http', endpoint => 'hung', max_attempts => 1, request => '{"path": "/hang"}'),
       orchestrator.define('brief', NULL, 'http', endpoint => 'hung', max_attempts => 1, timeout => '4 s', request => '{"path": "/hang"}'),
       orchestrator.define('echo', NULL, 'http', 'other', endpoint => 'hung', request => '{"path": "/echo"}'),
       orchestrator.define('plain', 'SELECT 1', 'sql', 'other');
SQL

sub app { return $node->psql_as('app', $_[0]) }
sub final { my $id = app("SELECT orchestrator.enqueue('$_[0]')"); app("CALL orchestrator.await($id, '20 s')"); return app("SELECT state FROM orchestrator.task WHERE id = $id") }
sub hang { return app("SELECT count(*) FROM unnest(orchestrator.enqueue_many('$_[0]', array_fill('{}'::jsonb, ARRAY[$n])))") }
sub courier { return $node->safe_psql('postgres', q{SELECT pid FROM orchestrator.worker_status WHERE kind = 'courier'}) }

# Open connections of the program to the server.
sub connections
{
	my $port = sprintf ':%04X', $server->{port};
	return scalar grep { (split)[2] =~ /$port$/ && (split)[3] eq '01' } split /\n/, slurp_file('/proc/net/tcp');
}

# Until there are no fewer, or no more; the seconds that took.
sub until_connections
{
	my ($least, $most) = @_;
	my $began = time;
	my $until = $began + $PostgreSQL::Test::Utils::timeout_default;
	my $now;
	usleep(20_000) until ($now = connections()) >= $least && $now <= $most || time > $until;
	my $took = time - $began;
	ok($now >= $least && $now <= $most, "$least to $most connections are open") or diag("$now are");
	return $took;
}

final('echo');
my $courier = courier();
my $started = $node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()');

# Cancelled
hang('hang');
until_connections($n, $n + 5);
measure_ok(1, 'another call is made', sub { is(final('echo'), 'completed', 'while all hang') });
measure_ok(1, 'and a step of another kind', sub { is(final('plain'), 'completed', 'likewise') });
$node->safe_psql('postgres', 'CREATE DATABASE elsewhere');
measure_ok(2, 'F19: another database is dropped', sub { $node->safe_psql('postgres', 'DROP DATABASE elsewhere') });
foreach (1 .. 5)
{
	my $before = connections();
	app(q{SELECT orchestrator.cancel(min(task_id)) FROM orchestrator.task_status WHERE state = 'running' AND definition = 'hang'});
	cmp_ok(until_connections(0, $before - 1), '<=', 1, 'a cancel ends its transfer');
}
measure_ok(1, "to cancel the other calls, and end their transfers", sub {
	app(q{SELECT orchestrator.cancel_many('hang', all_tasks => true)});
	until_connections(0, 5);
});
is(app(q{SELECT string_agg(DISTINCT state::text, ' ') FROM orchestrator.task_status WHERE definition = 'hang'}), 'cancelled', 'all are cancelled');

# Timed out
hang('brief');
until_connections($n, $n + 5);
measure_ok(5, 'that all transfers end by their time-out', sub { until_connections(0, 5) });
$node->wait_for(q{SELECT count(*) FROM orchestrator.task_status WHERE definition = 'brief' AND state = 'failed' AND error ->> 'sqlstate' = 'OR004'}, $n, 'each as timed out');
cmp_ok(app(q{SELECT extract(epoch FROM max(finished_at - started_at)) FROM orchestrator.task_status WHERE definition = 'brief'}), '<=', 5, 'within a second of it');
is(courier(), $courier, 'the courier is the one it was');
is($node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()'), $started, 'and the server went on');
unlike(slurp_file($node->logfile), qr/the program that makes outside calls (ended|hung)/, 'as did its program');
$node->stop('fast');
done_testing();
