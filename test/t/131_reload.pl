# The server is told to reload a hundred times a second while tasks run (RULES
# F58): no worker leaves, no wake-up is lost, and what was set applies at once.

use strict;
use warnings;
use lib 'test/chaos';

use Fault;
use OrchestratorStep;
use OrchestratorTest;
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $node = new_node(name => 'reload', 'orchestrator.executors_per_role' => 2, log_min_messages => 'log');
$node->start;
$node->create_extension;
$node->plain_role('app');
handlers($node);
$node->safe_psql('postgres', 'CREATE SCHEMA app AUTHORIZATION app');
$node->psql_as('app', <<'SQL');
-- What an executor knows.
CREATE FUNCTION app.tell(input jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM chaos.note(input);
  RETURN to_jsonb(current_setting('orchestrator.batch_time'));
END $$;
-- One task after another, each third of them due a little later. A wake-up that
-- is lost nothing else makes good for: the system does not poll.
CREATE PROCEDURE app.rounds(n int) LANGUAGE plpgsql AS $$
DECLARE
  v_id bigint;
  v_state text;
BEGIN
  FOR i IN 1 .. n LOOP
    v_id := orchestrator.enqueue('tell', delay => CASE WHEN i % 3 = 0 THEN interval '20 ms' END);
    COMMIT;
    v_state := (orchestrator.wait(v_id, '10 s')).state;
    COMMIT;
    IF v_state <> 'completed' THEN
      RAISE 'task % is %', v_id, v_state;
    END IF;
  END LOOP;
END $$;
SELECT orchestrator.define('tell', 'app.tell', max_attempts => 1), orchestrator.define('pass', 'chaos.pass', max_attempts => 1);
SQL
# Executors leave once more when an extension is a second old.
$node->restart;
my $accepted = 0;

sub add
{
	my ($n) = @_;
	$node->psql_as('app', "SELECT cardinality(orchestrator.enqueue_many('tell', array_fill('{}'::jsonb, '{$n}')))");
	$accepted += $n;
	return;
}

sub told { return outcome($node, 'app', q{orchestrator.enqueue('tell')})->{output} }

add(1000);
$node->wait_for('SELECT count(*) = 0 FROM orchestrator.task WHERE live');
my @workers = workers($node);
my $offset = log_end($node);
my $reloads = sub { return scalar(() = log_since($node, $offset) =~ /received SIGHUP/g) };
my $postmaster = postmaster($node);
my $storm = fork;
die "fork: $!" unless defined $storm;
if ($storm == 0)
{
	usleep(10_000) while kill 'HUP', $postmaster;
	POSIX::_exit(0);
}

my @clients = map { session($node, 'app') } 1 .. 3;
while ($reloads->() < 300)
{
	$_->send('CALL app.rounds(30)') foreach @clients;
	add(2000);
	$_->answer foreach @clients;
	is(join('', map { $_->errors } @clients), '', 'no wake-up is lost');
	$accepted += 30 * @clients;
}
$node->wait_for('SELECT count(*) = 0 FROM orchestrator.task WHERE live', 't', 'all tasks are finished');
my %still = map { $_ => 1 } workers($node);
is(scalar(grep { !$still{$_} } @workers), 0, 'no worker was replaced');

# What is set is known by the next reload, of which there is one each 10 ms.
foreach my $value (7, 11)
{
	$node->safe_psql('postgres', "ALTER SYSTEM SET orchestrator.batch_time = '$value ms'");
	measure_ok(1, 'a setting applies to executors', sub {
			my $tries = 0;
			$tries++, $accepted++ until told() eq "${value}ms" || $tries == 1000;
			$accepted++;
		});
}
close_gate();
$node->safe_psql('postgres', q{ALTER SYSTEM SET orchestrator.executors_per_role = 3});
$node->psql_as('app', q{SELECT orchestrator.enqueue('pass', '{"gate": "reload"}') FROM generate_series(1, 3)});
$accepted += 3;
measure_ok(1, 'and to the supervisor', sub { $node->wait_for(q{SELECT count(*) = 3 FROM orchestrator.worker_status WHERE task_id IS NOT NULL}, 't', 'a third executor runs') });
$node->safe_psql('postgres', 'DELETE FROM chaos.gate');
$node->safe_psql('postgres', 'ALTER SYSTEM SET orchestrator.enabled = off');
ok(defined within(1, sub { !workers($node, 'executor') }), 'turned off, executors leave');
$node->safe_psql('postgres', 'ALTER SYSTEM SET orchestrator.enabled = on');
$accepted++;
measure_ok(2, 'turned on', sub { is(told(), '11ms', 'tasks run') });

kill 'KILL', $storm;
waitpid $storm, 0;
is($node->safe_psql('postgres', q{SELECT count(*) || ' ' || count(DISTINCT task_id) FROM chaos.ledger}), "$accepted $accepted", 'each task has run, once');
is($node->safe_psql('postgres', q{SELECT string_agg(DISTINCT state || ' ' || attempt, ',') FROM orchestrator.task}), 'completed 1', 'in its first attempt');
unlike(log_since($node, $offset), qr/(?:WARNING|ERROR|FATAL|PANIC):/, 'the log has no complaint');
$_->quit foreach @clients;
$node->stop;
done_testing();

sub close_gate { return $node->safe_psql('postgres', q{INSERT INTO chaos.gate VALUES ('reload', true)}) }
