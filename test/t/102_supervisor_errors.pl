# What the supervisor does in a transaction that fails is not done: it does it
# again.  So it is with what it reads.

use strict;
use warnings;
use lib 'test/chaos';

use Fault;
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node(name => 'errors', 'orchestrator.fast_lane' => 'off', 'orchestrator.executors_per_role' => 1);
$node->start;
$node->create_extension;
$node->plain_role('app');

# Changes of this table by the supervisor fail, at once or at the end of the
# transaction, until it is opened.
sub guard
{
	my ($table, $change, $when) = @_;
	$node->safe_psql('postgres', <<"SQL");
CREATE TABLE shut (word text);
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \$\$
BEGIN
  IF EXISTS (SELECT FROM public.shut) THEN
    RAISE 'no room for %', TG_TABLE_NAME;
  END IF;
  RETURN NULL;
END \$\$;
CREATE CONSTRAINT TRIGGER refuse AFTER $change ON orchestrator.$table DEFERRABLE INITIALLY $when FOR EACH ROW EXECUTE FUNCTION refuse();
INSERT INTO shut VALUES ('shut');
SQL
	return;
}

# It has failed, and then nothing is in its way.
sub open_guard
{
	my ($table, $offset) = @_;
	ok(defined within(30, sub { slurp_file($node->logfile, $offset) =~ /no room for $table/ }), 'the supervisor cannot');
	$node->safe_psql('postgres', "DROP FUNCTION refuse CASCADE; DROP TABLE shut");
	return;
}

subtest 'tasks of a server that is gone' => sub {
	my $offset = log_end($node);
	$node->psql_as('app', q{SELECT orchestrator.define('long', 'SELECT pg_sleep(600)', 'sql', max_attempts => 5); SELECT orchestrator.enqueue('long')});
	$node->wait_for(q{SELECT count(*) = 1 FROM orchestrator.worker_status WHERE task_id IS NOT NULL}, 't', 'a task runs');
	guard('task_live', 'UPDATE', 'DEFERRED');
	$node->stop('immediate');
	$node->start;
	open_guard('task_live', $offset);
	$node->wait_for('SELECT started_at > pg_postmaster_start_time() FROM orchestrator.task', 't', 'they run again all the same');
};

subtest 'alerts' => sub {
	my $offset = log_end($node);
	guard('alert', 'INSERT', 'IMMEDIATE');
	$node->psql_as('app', q{SELECT orchestrator.define_queue('deep', alert_depth => 1); SELECT orchestrator.pause_queue('deep'); SELECT orchestrator.define('late', 'SELECT 1', 'sql', queue => 'deep'); SELECT orchestrator.enqueue('late') FROM generate_series(1, 3)});
	open_guard('alert', $offset);
	$node->wait_for(q{SELECT count(*) = 1 FROM orchestrator.alert_status WHERE cleared_at IS NULL}, 't', 'it is raised all the same');
};

subtest 'starts that a rate counts' => sub {
	$node->psql_as('app', q{SELECT orchestrator.cancel_many('long')});
	$node->psql_as('app', <<'SQL');
SELECT orchestrator.define_queue('paced', rate_limit => 10, rate_period => '1 hour'), orchestrator.define('paced', 'SELECT 1', 'sql', queue => 'paced'),
       orchestrator.define('far', 'far', kind => 'remote', max_running => 2), orchestrator.enqueue('far');
SELECT orchestrator.enqueue('paced') FROM generate_series(1, 4);
SQL
	my $started = q{SELECT started FROM orchestrator.queue_status WHERE queue = 'paced'};
	$node->wait_for($started, '4', 'four were started');
	$node->safe_psql('postgres', q{SELECT orchestrator.grant_usage('app', 'worker')});
	my $claim = q{SELECT count(*) FROM orchestrator.claim('{default}', 'w', 10, '1 hour')};
	is($node->psql_as('app', $claim), '1', 'a remote worker has one');

	# They are counted, and then it fails.
	$node->safe_psql('postgres', <<'SQL');
ALTER FUNCTION orchestrator._restore_rate(text, int, text, int, interval, interval, int) RENAME TO restore;
CREATE FUNCTION orchestrator._restore_rate(kind text, number int, name text, rate_limit int, period interval, ago interval, n int) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  PERFORM orchestrator.restore($1, $2, $3, $4, $5, $6, $7);
  RAISE 'no room for rates';
END $$;
SQL
	my $offset = log_end($node);
	$node->restart;
	$node->psql_as('app', q{SELECT orchestrator.enqueue('paced')});
	ok(defined within(30, sub { (() = slurp_file($node->logfile, $offset) =~ /no room for rates/g) > 2 }), 'the supervisor cannot, again and again');
	is($node->safe_psql('postgres', q{SELECT count(*) FROM orchestrator.task WHERE name IS NULL AND live AND queue = (SELECT id FROM orchestrator.queue WHERE name = 'paced')}), '1', 'meanwhile the rate has no room');
	$node->safe_psql('postgres', <<'SQL');
DROP FUNCTION orchestrator._restore_rate(text, int, text, int, interval, interval, int);
ALTER FUNCTION orchestrator.restore(text, int, text, int, interval, interval, int) RENAME TO _restore_rate;
SQL
	$node->wait_for($started, '5', 'then it has, for what was refused, too, and each start counts once');
	$node->psql_as('app', q{SELECT orchestrator.enqueue('far') FROM generate_series(1, 2)});
	is($node->psql_as('app', $claim), '1', 'as does what the remote worker has: of two at once it gets one more');
};

$node->stop('immediate');
done_testing();
