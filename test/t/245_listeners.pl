# A client that listens and does not read (RULES F59): its backend waits while
# it tells it, mostly with a snapshot.  Tasks and other listeners go on, and
# doctor says whom to end.

use strict;
use warnings;
use lib 'test/chaos';

use Fault;
use OrchestratorClient;
use OrchestratorStep;
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node(name => 'listeners');
$node->start;
$node->create_extension;
$node->plain_role('app');
handlers($node);
$node->safe_psql('postgres', 'CREATE SCHEMA app AUTHORIZATION app');
$node->psql_as('app', <<'SQL');
-- How many milliseconds 99 of 100 tasks take at most, from their commit to
-- their end as their client sees it.
CREATE PROCEDURE app.p99(n int, INOUT ms float8) LANGUAGE plpgsql AS $$
DECLARE
  v_id bigint;
  v_began timestamptz;
  v_took float8[];
BEGIN
  FOR i IN 1 .. n LOOP
    v_id := orchestrator.enqueue('note');
    v_began := clock_timestamp();
    COMMIT;
    IF (orchestrator.wait(v_id, '10 s')).state <> 'completed' THEN
      RAISE 'task % does not run', v_id;
    END IF;
    v_took := v_took || extract(epoch FROM clock_timestamp() - v_began) * 1000;
    COMMIT;
  END LOOP;
  SELECT percentile_disc(0.99) WITHIN GROUP (ORDER BY t) INTO ms FROM unnest(v_took) t;
END $$;
SELECT orchestrator.define('note', 'chaos.note', max_attempts => 1);
SQL
my $cli = client($node, 'app');
my $accepted = 0;

sub p99
{
	$accepted += 300;
	return $node->psql_as('app', 'CALL app.p99(300, NULL)');
}

# A session that listens, and its backend.
sub listener
{
	my $session = session($node, 'app');
	$session->query('LISTEN orchestrator');
	return ($session, $session->query('SELECT pg_backend_pid()'));
}

# psql reads what it is told when it has something to do.
sub reads { return $_[0]->query('SELECT 1') }

# Whether a task that ends now is heard of.
sub hears
{
	my ($session, $name) = @_;
	my $id = outcome($node, 'app', q{orchestrator.enqueue('note')})->{id};
	$accepted++;
	return ok(defined within(10, sub { reads($session) =~ /"task":$id,.*"event":"completed"/ }), $name);
}

my ($reader) = listener();
my ($stuck, $pid) = listener();

# Three events a task; a socket takes 200 kB.
sub flood
{
	$node->psql_as('app', q{SELECT cardinality(orchestrator.enqueue_many('note', array_fill('{}'::jsonb, '{500}')))});
	$accepted += 500;
	return within(30, sub { reads($reader); value($node, 'SELECT count(*) = 0 FROM orchestrator.task WHERE live') eq 't' });
}

# Until its backend waits in the middle of telling it.
sub stop
{
	my ($session, $pid) = @_;
	my $told = qq{SELECT wait_event = 'ClientWrite' FROM pg_stat_activity WHERE pid = $pid};
	kill 'STOP', $session->{run}{KIDS}[0]{PID};
	return ok(defined within(60, sub { flood(); value($node, $told) eq 't' }), 'a backend waits for its client');
}

my $before = p99();
hears($_, 'it reads, and hears of tasks') foreach $reader, $stuck;

stop($stuck, $pid);
flood() foreach 1 .. 5;
cmp_ok(p99(), '<=', 3 * $before + 20, 'tasks take no longer');
hears($reader, 'others hear of them');
my ($out) = $cli->exits(7, 'doctor');
like($out, qr/^warning  listeners  session $pid of role "app" listens and does not read\n.*pg_terminate_backend\($pid\)/m, 'doctor names it');

kill 'CONT', $stuck->{run}{KIDS}[0]{PID};
hears($stuck, 'it reads again, and hears of tasks');
$cli->exits(0, 'doctor');

# What doctor advises.
stop($stuck, $pid);
is($node->psql_as('app', "SELECT pg_terminate_backend($pid, 10000)"), 't', 'it can be ended');
kill 'CONT', $stuck->{run}{KIDS}[0]{PID};
$stuck->kill;
hears($reader, 'others hear of tasks');
$reader->quit;
is($node->safe_psql('postgres', q{SELECT count(*) || ' ' || count(DISTINCT task_id) FROM chaos.ledger}), "$accepted $accepted", 'each task has run, once');
$node->stop;
done_testing();
