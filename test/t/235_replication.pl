# Servers that follow another one, and the server that comes after: a standby
# runs nothing and takes over when it is promoted; a synchronous standby that is
# gone does not keep the server from stopping; publications of all tables do no
# harm, and where the rows arrive nothing runs; pg_upgrade keeps everything.

use strict;
use warnings;

use OrchestratorStep;
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $workers = q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'orchestrator %' AND backend_type <> 'orchestrator launcher'};

my $primary = new_node(name => 'primary', wal_level => 'logical', max_wal_senders => 8, hot_standby => 'on');
$primary->start;
$primary->create_extension;
$primary->plain_role('app');
$primary->safe_psql('postgres', 'CREATE TABLE done (task bigint, at timestamptz DEFAULT clock_timestamp()); GRANT ALL ON done TO app');
$primary->psql_as('app', <<'SQL');
SELECT orchestrator.define('work', 'INSERT INTO done SELECT task_id FROM orchestrator.current_task() RETURNING task', 'sql', retry_delay => '0'),
       orchestrator.define('slow', 'SELECT pg_sleep(600)', 'sql', max_attempts => 2);
SQL
is(outcome($primary, 'app', q{orchestrator.enqueue('work')})->{state}, 'completed', 'tasks run');

# A server that follows $primary, started.
sub standby
{
	my ($name) = @_;
	$primary->backup($name);
	my $standby = PostgreSQL::Test::Cluster->new($name);
	$standby->init_from_backup($primary, $name, has_streaming => 1);
	bless $standby, ref $primary;
	$standby->start;
	return $standby;
}

sub effects_once
{
	my ($node, $name) = @_;
	return is($node->safe_psql('postgres', q{SELECT count(*) FROM orchestrator.task t JOIN orchestrator.definition d ON d.id = t.definition
		WHERE d.name = 'work' AND (t.state = 'completed')::int <> (SELECT count(*) FROM done WHERE task = t.id)}), 0, $name);
}

subtest 'a standby, and its promotion' => sub {
	my $standby = standby('standby');
	my $running = $primary->psql_as('app', q{SELECT orchestrator.enqueue('slow')});
	$primary->wait_for("SELECT state = 'running' FROM orchestrator.task_status WHERE task_id = $running");
	my $delayed = $primary->psql_as('app', q{SELECT orchestrator.enqueue('work', delay => '1 hour')});
	$primary->psql_as('app', q{SELECT count(*) FROM unnest(orchestrator.enqueue_many('work', array_fill('{}'::jsonb, '{3000}')))});
	$primary->wait_for_catchup($standby);

	is($standby->safe_psql('postgres', $workers), 0, 'a standby has no workers');
	is($standby->psql_as('app', "SELECT state FROM orchestrator.task_status WHERE task_id = $delayed"), 'scheduled', 'the views can be read there');
	is($standby->psql_as('app', 'SELECT count(*) > 0 FROM orchestrator.queue_status'), 't', 'all of them');
	like(refused($standby, 'app', q{SELECT orchestrator.enqueue('work')}), qr/read-only transaction|during recovery/, 'nothing is enqueued there');
	like(refused($standby, 'app', "SELECT orchestrator.cancel($delayed)"), qr/read-only transaction|during recovery/, 'nor cancelled');
	is($standby->psql_as('app', "SELECT state FROM orchestrator.wait($delayed, '0 s')"), 'scheduled', 'wait() tells the state');

	$primary->stop('immediate');
	measure_ok(5, 'promoted: its workers start by themselves, and a task runs', sub {
			$standby->promote;
			is(outcome($standby, 'app', q{orchestrator.enqueue('work', priority => 1000)})->{state}, 'completed', 'a new task');
		});
	$standby->wait_for(q{SELECT count(*) = 0 FROM orchestrator.task WHERE state = 'pending'}, 't', 'what waited is done');
	effects_once($standby, 'each once');
	$standby->wait_for("SELECT state = 'running' FROM orchestrator.task_status WHERE task_id = $running", 't', 'what ran on the old primary runs again');
	is($standby->safe_psql('postgres', "SELECT attempt FROM orchestrator.task_status WHERE task_id = $running"), 1, 'without an attempt more');
	is($standby->psql_as('app', "SELECT orchestrator.cancel($running)"), 'cancelled', 'and is cancelled');
	is($standby->psql_as('app', "SELECT state FROM orchestrator.task_status WHERE task_id = $delayed"), 'scheduled', 'what is due later waits');
	$standby->stop;
	$primary->start;
};

subtest 'a synchronous standby that is gone' => sub {
	$primary->psql_as('app', q{SELECT orchestrator.cancel_many(all_tasks => true)});
	my $standby = standby('sync');
	$primary->set(synchronous_standby_names => 'sync');
	$primary->reload;
	$primary->wait_for(q{SELECT sync_state = 'sync' FROM pg_stat_replication});
	is(outcome($primary, 'app', q{orchestrator.enqueue('work')})->{state}, 'completed', 'with it tasks run');
	$standby->stop('immediate');

	# The commit of the enqueue waits for the standby, and so does that of the step.
	my $client = session($primary, 'app');
	$client->send(q{SELECT orchestrator.enqueue('work')});
	$primary->wait_for(q{SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep'});
	measure_ok(5, 'a fast stop', sub { $primary->stop('fast') });
	$client->kill;
	$primary->set(synchronous_standby_names => '');
	$primary->start;
	is(outcome($primary, 'app', q{orchestrator.enqueue('work')})->{state}, 'completed', 'without it tasks run');
	$primary->wait_for(q{SELECT count(*) = 0 FROM orchestrator.task WHERE state IN ('pending', 'running')}, 't', 'all of them');
	effects_once($primary, 'each once');
	$standby->clean_node;
};

# A publication of all tables has those of the extension, too.
subtest 'logical replication' => sub {
	my $app = sub { return $primary->psql_as('app', "SELECT $_[0]") };
	$primary->safe_psql('postgres', 'CREATE PUBLICATION everything FOR ALL TABLES');
	my $id = $app->(q{orchestrator.define('fails', 'SELECT 1/0', 'sql', max_attempts => 2, retry_delay => '0')}) && outcome($primary, 'app', q{orchestrator.enqueue('fails')})->{id};
	is($app->("state || ' ' || attempt FROM orchestrator.task WHERE id = $id"), 'failed 2', 'it does not keep tasks from being retried, nor from failing');
	is($app->("orchestrator.retry($id)"), 'pending', 'nor from being retried by hand,');
	is(outcome_of($primary, 'app', $id)->{state}, 'failed', 'and ending again');
	$id = $app->(q{orchestrator.enqueue('work', delay => '1 hour', key => 'once', key_window => '1 ms')});
	is($app->("orchestrator.pause($id)") . $app->("orchestrator.resume($id)") . $app->("orchestrator.cancel($id)"), 'pausedscheduledcancelled', 'paused, resumed, cancelled');
	is(outcome($primary, 'app', q{orchestrator.enqueue_workflow(ARRAY[orchestrator.step('a', 'SELECT 1', 'sql'), orchestrator.step('b', 'SELECT 2', 'sql', needs => '{a}')])})->{state},
		'completed', 'a workflow runs');
	isnt($app->(q{orchestrator.enqueue('work', key => 'once')}), $id, 'a key is taken over');
	cmp_ok($primary->safe_psql('postgres', q{SELECT orchestrator.purge('fails')}), '>', 0, 'tasks are purged');

	# Where they arrive nothing runs: the copied identity is not that of the database.
	my $subscriber = new_node(name => 'subscriber', wal_level => 'logical');
	$subscriber->start;
	$subscriber->create_extension;
	$subscriber->safe_psql('postgres', <<'SQL');
CREATE ROLE app LOGIN;
CREATE TABLE done (task bigint, at timestamptz DEFAULT clock_timestamp());
GRANT ALL ON done TO app;
SELECT orchestrator._make_partitions(1);
SQL
	my $from = 'host=' . $primary->host . ' port=' . $primary->port . ' dbname=postgres';
	$subscriber->safe_psql('postgres', "CREATE SUBSCRIPTION everything CONNECTION '$from' PUBLICATION everything");
	$subscriber->wait_for_subscription_sync($primary, 'everything');
	my $work = outcome($primary, 'app', q{orchestrator.enqueue('work')})->{id};
	$app->(q{orchestrator.define_queue('closed')});
	$app->(q{orchestrator.pause_queue('closed')});
	my $ready = $app->(q{orchestrator.enqueue('work', queue => 'closed')});
	$primary->wait_for_catchup('everything');
	is($subscriber->safe_psql('postgres', "SELECT string_agg(state::text, ',' ORDER BY id) FROM orchestrator.task WHERE id IN ($work, $ready)"), 'completed,pending', 'tasks arrive');
	is($subscriber->safe_psql('postgres', "SELECT count(*) FROM done WHERE task = $work"), 1, 'and their effects, once');
	$subscriber->restart;
	$subscriber->wait_for(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'orchestrator supervisor'});
	$subscriber->safe_psql('postgres', q{UPDATE orchestrator.queue SET paused = false; SELECT orchestrator._invalidate()});
	is($subscriber->safe_psql('postgres', "SELECT state FROM orchestrator.wait($ready, '1 s')"), 'pending', 'none runs there');
	is($subscriber->safe_psql('postgres', q{SELECT count(*) FROM orchestrator.worker_status WHERE kind = 'executor'}), 0, 'no executor is there');
	$subscriber->safe_psql('postgres', q{DROP SUBSCRIPTION everything});
	$subscriber->safe_psql('postgres', q{SELECT orchestrator.activate(), orchestrator.grant_usage('app')});
	is(outcome_of($subscriber, 'app', $ready)->{state}, 'completed', 'after activate() they do: the subscriber has taken over');
	is(outcome($subscriber, 'app', q{orchestrator.enqueue('work')})->{state}, 'completed', 'and goes on');
	$primary->safe_psql('postgres', 'DROP PUBLICATION everything');
	$subscriber->stop;
};

subtest 'pg_upgrade' => sub {
	my %id;
	$id{completed} = outcome($primary, 'app', q{orchestrator.enqueue('work', key => 'k')})->{id};
	$id{delayed} = $primary->psql_as('app', q{SELECT orchestrator.enqueue('work', delay => '1 hour')});
	$id{paused} = $primary->psql_as('app', q{SELECT orchestrator.enqueue('work', delay => '1 hour')});
	$primary->psql_as('app', "SELECT orchestrator.pause($id{paused})");
	$id{running} = $primary->psql_as('app', q{SELECT orchestrator.enqueue('slow')});
	$primary->wait_for("SELECT state = 'running' FROM orchestrator.task_status WHERE task_id = $id{running}");
	my $contents = <<'SQL';
SELECT to_jsonb(t) - '{state,attempt,epoch,worker,started_at,sort_key,changed_at}'::text[] FROM orchestrator.task t ORDER BY id;
SELECT to_jsonb(w) FROM orchestrator.trace w WHERE event NOT IN ('started', 'released') ORDER BY task_id, at, event;
SELECT to_jsonb(d) FROM orchestrator.definition d ORDER BY id;
SELECT to_jsonb(k) FROM orchestrator.task_key k ORDER BY key;
SQL
	my $before = $primary->safe_psql('postgres', $contents);
	my $last_id = $primary->safe_psql('postgres', 'SELECT last_value FROM orchestrator.task_id_seq');
	$primary->stop;

	my $upgraded = new_node(name => 'upgraded');
	my $bindir = $primary->config_data('--bindir');
	chdir $PostgreSQL::Test::Utils::tmp_check or die;
	command_ok([ 'pg_upgrade', '--no-sync', '-b', $bindir, '-B', $bindir, '-d', $primary->data_dir, '-D', $upgraded->data_dir,
			'-s', $upgraded->host, '-p', $primary->port, '-P', $upgraded->port ], 'pg_upgrade');
	$upgraded->start;
	is($upgraded->safe_psql('postgres', $contents), $before, 'everything is as it was');
	is($upgraded->safe_psql('postgres', q{SELECT count(*) FROM orchestrator.worker_status WHERE kind = 'executor'}), 0, 'nothing runs');
	$upgraded->safe_psql('postgres', 'SELECT orchestrator.activate()');
	my $r = outcome($upgraded, 'app', q{orchestrator.enqueue('work')});
	is($r->{state}, 'completed', 'after activate() tasks run');
	cmp_ok($r->{id}, '>', $last_id, 'ids go on');
	is($upgraded->psql_as('app', q{SELECT orchestrator.enqueue('work', key => 'k')}), $id{completed}, 'keys hold');
	$upgraded->wait_for("SELECT state = 'running' FROM orchestrator.task_status WHERE task_id = $id{running}", 't', 'what was running runs again');
	is($upgraded->psql_as('app', "SELECT orchestrator.cancel($id{running})"), 'cancelled', 'and is cancelled');
	is($upgraded->psql_as('app', "SELECT orchestrator.resume($id{paused})"), 'scheduled', 'a paused task is resumed');
	$upgraded->stop;
};

done_testing();
