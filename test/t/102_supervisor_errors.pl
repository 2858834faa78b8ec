# What the supervisor does in a transaction that fails is not done: it does it
# again.

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

$node->stop('immediate');
done_testing();
