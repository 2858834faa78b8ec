# pg_dump and pg_restore keep definitions, queues, tasks in all states, keys,
# traces, grants and sequences; what was restored does not run before activate().

use strict;
use warnings;

use OrchestratorStep;
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node(name => 'origin', wal_level => 'replica', max_wal_senders => 4);
$node->start;
$node->create_extension;
$node->plain_role($_) foreach qw(app friend);
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE done (task bigint, at timestamptz DEFAULT clock_timestamp());
GRANT ALL ON done TO PUBLIC;
CREATE SCHEMA app AUTHORIZATION app;
GRANT USAGE ON SCHEMA app TO friend;
CREATE ROLE viewer LOGIN;
SELECT orchestrator.grant_usage('viewer', 'viewer');
SQL

# ---------------------------------------------------------------- one of each

$node->psql_as('app', <<'SQL');
CREATE FUNCTION app.work(jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO public.done (task) SELECT task_id FROM orchestrator.current_task();
  RETURN $1;
END $$;
SELECT orchestrator.define('work', 'app.work', retry_delay => '2 seconds', metadata => '{"a": 1}'),
       orchestrator.define('work', 'app.work', retry_delay => '3 seconds', never_retry => '{23,22012}'),
       orchestrator.define('fails', 'SELECT 1/0', 'sql', max_attempts => 2, retry_delay => '0'),
       orchestrator.define('later', 'SELECT 1/0', 'sql', retry_delay => '1 hour'),
       orchestrator.define('slow', 'SELECT pg_sleep(600)', 'sql'),
       orchestrator.define_queue('own', description => 'mine'), orchestrator.define_queue('stopped');
SELECT orchestrator.pause_queue('stopped');
SELECT orchestrator.share_definition('work', 'friend'), orchestrator.share_queue('own', 'friend');
SQL

my %id;
$id{completed} = outcome($node, 'app', q{orchestrator.enqueue('work', '{"n": [1, null, "\u00e9"]}', name => 'n', key => 'k1', metadata => '{"m": 1}')})->{id};
$id{failed}    = outcome($node, 'app', q{orchestrator.enqueue('fails')})->{id};
$id{cancelled} = $node->psql_as('app', q{SELECT orchestrator.enqueue('work', delay => '1 day')});
$node->psql_as('app', "SELECT orchestrator.cancel($id{cancelled}, 'why')");
$id{scheduled} = $node->psql_as('app', q{SELECT orchestrator.enqueue('work', run_at => '2099-01-01', deadline => '2100-01-01')});
$id{retrying}  = $node->psql_as('app', q{SELECT orchestrator.enqueue('later', queue => 'own')});
$node->wait_for("SELECT state = 'scheduled' FROM orchestrator.task WHERE id = $id{retrying} AND attempt = 1");
$id{paused}  = $node->psql_as('app', q{SELECT orchestrator.enqueue('work', queue => 'stopped')});
$node->psql_as('app', "SELECT orchestrator.pause($id{paused})");
$id{pending} = $node->psql_as('friend', q{SELECT orchestrator.enqueue('work', queue => 'own', delay => '1 day')});
$id{ready}   = $node->psql_as('app', q{SELECT orchestrator.enqueue('work', queue => 'stopped', key => 'k2', priority => 7)});
$id{windowed} = $node->psql_as('app', q{SELECT orchestrator.enqueue('work', queue => 'stopped', key => 'k3', key_window => '1 year')});
$id{one_off} = $node->psql_as('app', q{SELECT orchestrator.run('INSERT INTO public.done SELECT -1', queue => 'stopped')});
# Webhooks, one behind the other.
$node->safe_psql('postgres', q{CREATE SERVER hooks FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url 'https://127.0.0.1', provider 'webhook', secret 'key');
	GRANT USAGE ON FOREIGN SERVER hooks TO app});
$node->psql_as('app', q{SELECT orchestrator.define('tell', NULL, 'webhook', endpoint => 'hooks', queue => 'stopped', max_attempts => 1)});
$node->psql_as('app', "SELECT orchestrator.on_completion($id{completed}, 'tell') FROM generate_series(1, 2)");
# A range of ids further on, and so a partition of its own.
$node->safe_psql('postgres', q{SELECT setval('orchestrator.task_id_seq', 3000000)});
$id{far} = outcome($node, 'app', q{orchestrator.enqueue('work')})->{id};
$id{running} = $node->psql_as('app', q{SELECT orchestrator.enqueue('slow')});
$node->wait_for("SELECT state = 'running' FROM orchestrator.task_status WHERE task_id = $id{running}");
$node->safe_psql('postgres', q{SELECT orchestrator._decide(1, NULL, 3, 'start', '{"steps": 0}')});
# A claim of the slow lane: the row itself says that it runs.
$node->safe_psql('postgres', "UPDATE orchestrator.task SET name = 'touched' WHERE id = $id{scheduled}");

# ---------------------------------------------------------------- compare

# Everything, by content and in order; the identity is what must differ.
my $contents = <<'SQL';
SELECT 'task', to_jsonb(t) FROM orchestrator.task t WHERE state <> 'running' ORDER BY id;
SELECT 'running', id, input FROM orchestrator.task WHERE state = 'running';
SELECT 'trace', to_jsonb(t) FROM orchestrator.trace t WHERE event <> 'started' OR detail IS NOT NULL ORDER BY task_id, at, event;
SELECT 'definition', to_jsonb(d) FROM orchestrator.definition d ORDER BY id;
SELECT 'queue', to_jsonb(q) FROM orchestrator.queue q ORDER BY id;
SELECT 'key', to_jsonb(k) FROM orchestrator.task_key k ORDER BY queue, key;
SELECT 'webhook', to_jsonb(w) FROM orchestrator.webhook w ORDER BY task_id;
SELECT 'share', to_jsonb(s) FROM orchestrator.definition_share s;
SELECT 'share', to_jsonb(s) FROM orchestrator.queue_share s;
SELECT 'decision', to_jsonb(d) FROM orchestrator.queue_decision d ORDER BY queue, number;
SELECT 'grant', o.name, g.level FROM orchestrator.usage_grant g JOIN orchestrator.owner o ON o.id = g.grantee ORDER BY 2;
SELECT 'owner', id, name FROM orchestrator.owner ORDER BY id;
SELECT 'partition', c.relname, pg_get_expr(c.relpartbound, c.oid), c.relrowsecurity, c.relforcerowsecurity
  FROM pg_class c WHERE c.relnamespace = 'orchestrator'::regnamespace AND c.relispartition AND c.relkind <> 'i' ORDER BY 2;
SELECT 'index', indexname, indexdef FROM pg_indexes WHERE schemaname = 'orchestrator' ORDER BY 2;
SQL
my $original = $node->safe_psql('postgres', $contents);
my $last_id = $node->safe_psql('postgres', q{SELECT last_value FROM orchestrator.task_id_seq});
my $dump = $node->basedir . '/tasks.dump';
command_ok([ 'pg_dump', '-Fc', '-f', $dump, '-d', $node->connstr('postgres') ], 'pg_dump while a task runs');
my $roles = $node->basedir . '/roles.sql';
command_ok([ 'pg_dumpall', '--roles-only', '-f', $roles, '-d', $node->connstr('postgres') ], 'pg_dumpall --roles-only');

# What psql writes to standard error.
sub said_to_app
{
	my ($to, $database, $sql) = @_;
	my ($status, $out, $err) = $to->psql($database, $sql, extra_params => [ '-U', 'app' ]);
	is($status, 0, $sql) or diag($err);
	return $err;
}

sub check_restored
{
	my ($to, $database, $where) = @_;
	is($to->safe_psql($database, $contents), $original, "$where: everything is as it was");
	is($to->safe_psql($database, 'SELECT count(*) FROM done'), $node->safe_psql('postgres', 'SELECT count(*) FROM done'), 'the effects, too');

	# Rights, as the roles see them.
	is($to->psql_as('friend', q{SELECT string_agg(name, ',') FROM orchestrator.definition WHERE is_current}, database => $database), 'work', 'rights are there');
	is($to->psql_as('app', 'SELECT count(*) FROM orchestrator.task', database => $database),
		$node->psql_as('app', 'SELECT count(*) FROM orchestrator.task'), 'each sees its own');
	like(refused($to, 'app', q{DELETE FROM orchestrator.task}, database => $database), qr/permission denied/, 'and no more');
	like(refused($to, 'app', q{SELECT * FROM orchestrator.task_finished_3}, database => $database), qr/permission denied/, 'nor past the policies');

	# Whoever enqueues or waits is told, once in a session, and so is the log.
	my $told = qr/WARNING:  tasks do not run in database "$database": it is a copy\nHINT:  An administrator lets them with orchestrator\.activate\(\)\./;
	foreach my $call ("enqueue('work')", q{enqueue_many('work', '{"{}"}')}, q{run('SELECT 1')}, q{enqueue_batch('work', '{"{}"}')},
		q{enqueue_workflow(ARRAY[orchestrator.step('a', 'app.work')])}, "wait($id{ready}, '10 ms')")
	{
		is(scalar(() = said_to_app($to, $database, "BEGIN; SELECT orchestrator.$call; SELECT orchestrator.$call; ROLLBACK") =~ /$told/g), 1, "$call says once that nothing runs");
	}
	like(said_to_app($to, $database, "CALL orchestrator.await($id{ready}, '10 ms', NULL)"), $told, 'await() says it, too');
	is(said_to_app($to, $database, "SELECT orchestrator.wait($id{completed})"), '', 'not when there is nothing to wait for');

	# Nothing fires, and calls work.
	my $new = $to->psql_as('app', q{SELECT orchestrator.enqueue('work')}, database => $database);
	cmp_ok($new, '>', $last_id, 'the next id goes on');
	is($to->psql_as('app', q{SELECT orchestrator.enqueue('work', key => 'k1')}, database => $database), $id{completed}, 'a key is still held');
	$to->psql_as('app', q{SELECT orchestrator.resume_queue('stopped')}, database => $database);
	is($to->psql_as('app', "SELECT state FROM orchestrator.wait($new, '0.5 s')", database => $database), 'pending', 'nothing runs');
	$to->wait_for_log(qr/orchestrator supervisor WARNING:  tasks do not run in database "$database": it is a copy/);
	is($to->safe_psql($database, q{SELECT count(*) FROM orchestrator.worker_status WHERE kind = 'executor'}), 0, 'there is no executor');
	is($to->psql_as('app', "SELECT orchestrator.cancel($id{scheduled})", database => $database), 'cancelled', 'cancel works');
	is($to->psql_as('app', "SELECT orchestrator.retry($id{cancelled})", database => $database), 'scheduled', 'retry works');
	like(refused($to, 'app', 'SELECT orchestrator.activate()', database => $database), qr/permission denied/, 'activate() is not for everybody');

	# Now it may.
	$to->safe_psql($database, 'SELECT orchestrator.activate()');
	is(said_to_app($to, $database, "BEGIN; SELECT orchestrator.enqueue('work'); ROLLBACK"), '', 'after activate() there is no warning');
	foreach my $task ($new, @id{qw(ready windowed one_off)})
	{
		is(outcome_of($to, 'app', $task, database => $database)->{state}, 'completed', 'after activate() task ' . $task . ' runs');
	}
	ok($to->poll_query_until($database, "SELECT count(*) = 2 FROM orchestrator.task WHERE metadata \@> '{\"task\": $id{completed}}' AND state = 'failed'"), 'so do webhooks, one after the other');
	is($to->psql_as('app', "SELECT orchestrator.resume($id{paused})", database => $database), 'pending', 'a paused one is resumed');
	is(outcome_of($to, 'app', $id{paused}, database => $database)->{state}, 'completed', 'and runs');
	is($to->psql_as('app', "SELECT orchestrator.retry($id{failed})", database => $database), 'pending', 'a failed one is retried');
	is(outcome_of($to, 'app', $id{failed}, database => $database)->{state}, 'failed', 'and fails');
	ok($to->poll_query_until($database, "SELECT state = 'running' FROM orchestrator.task_status WHERE task_id = $id{running}"), 'what was running runs again');
	is($to->psql_as('app', "SELECT orchestrator.cancel($id{running})", database => $database), 'cancelled', 'and is cancelled');
	is(outcome($to, 'friend', q{orchestrator.enqueue('work')}, database => $database)->{state}, 'completed', 'a shared definition works');
	is($to->psql_as('app', q{SELECT orchestrator.define('work', 'app.work', retry_delay => '3 seconds', never_retry => '{23,22012}')}, database => $database), 2,
		'an equal definition has the version it had');
	is($to->psql_as('app', q{SELECT orchestrator.define('work', 'app.work')}, database => $database), 3, 'a changed one gets the next');
	is($to->safe_psql($database, 'SELECT count(*) - count(DISTINCT id) FROM orchestrator.task'), 0, 'no id is used twice');
	return;
}

$node->safe_psql('postgres', 'CREATE DATABASE restored');
command_ok([ 'pg_restore', '--exit-on-error', '-d', $node->connstr('restored'), $dump ], 'pg_restore into the same server');
check_restored($node, 'restored', 'the same server');
is($node->safe_psql('postgres', $contents), $original, 'the original is untouched');
is(outcome($node, 'app', q{orchestrator.enqueue('work')})->{state}, 'completed', 'and goes on');

# Parallel, and once more from what was restored.
my $folder = $node->basedir . '/folder.dump';
command_ok([ 'pg_dump', '-Fd', '-j', '2', '-f', $folder, '-d', $node->connstr('restored') ], 'dump of a restored database, in parallel');
$node->safe_psql('postgres', 'CREATE DATABASE again');
$node->safe_psql('again', 'ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO app');
command_ok([ 'pg_restore', '--exit-on-error', '-j', '2', '-d', $node->connstr('again'), $folder ], 'and restored, in parallel');
is($node->safe_psql('again', $contents), $node->safe_psql('restored', $contents), 'the same again');
$node->safe_psql('again', 'SELECT orchestrator.activate()');
is($node->safe_psql('again', q{SELECT string_agg(c.relname, ',') FROM pg_class c WHERE c.relnamespace = 'orchestrator'::regnamespace AND c.relkind IN ('r', 'p')
	AND has_table_privilege('app', c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER')}), '', 'default privileges reach nothing of it, from activate() on');

# Another server, where the roles have other OIDs.
my $other = new_node(name => 'other');
$other->start;
$other->safe_psql('postgres', 'CREATE ROLE takes_a_number; CREATE ROLE takes_another; CREATE ROLE app_is_not_me');
my ($status) = $other->psql('postgres', slurp_file($roles), on_error_stop => 0);
$other->safe_psql('postgres', 'CREATE DATABASE restored');
command_ok([ 'pg_restore', '--exit-on-error', '-d', $other->connstr('restored'), $dump ], 'pg_restore into another server');
isnt($other->safe_psql('postgres', q{SELECT oid FROM pg_roles WHERE rolname = 'app'}), $node->safe_psql('postgres', q{SELECT oid FROM pg_roles WHERE rolname = 'app'}),
	'where the roles have other numbers');

# Before activate() the owners are those of the other server: what a role of this
# one sees then is nothing of anybody else.
my $before = $other->psql_as('app', 'SELECT count(*) FROM orchestrator.task', database => 'restored');
cmp_ok($before, '==', 0, 'nobody sees tasks of a role that only has the number of its owner');
$other->safe_psql('restored', 'SELECT orchestrator.activate()');
is($other->psql_as('app', 'SELECT count(*) FROM orchestrator.task', database => 'restored'), $node->psql_as('app', "SELECT count(*) FROM orchestrator.task WHERE id <= $last_id"),
	'after activate() each role finds its own by name');
is(outcome($other, 'app', q{orchestrator.enqueue('work')}, database => 'restored')->{state}, 'completed', 'and they run');
my $of_other = $other->psql_as('app', q{SELECT orchestrator.enqueue('work', key => 'k1')}, database => 'restored');
is($of_other, $id{completed}, 'keys hold');
cmp_ok($other->psql_as('app', q{SELECT orchestrator.enqueue('work')}, database => 'restored'), '>', $last_id, 'ids go on');

# A physical copy looks identical: orchestrator.enabled = off is for that.
$node->safe_psql('postgres', 'DROP DATABASE again');
$node->backup('copy');
my $clone = PostgreSQL::Test::Cluster->new('clone');
$clone->init_from_backup($node, 'copy');
bless $clone, ref $node;
$clone->set('orchestrator.enabled' => 'off');
my $ran = $node->safe_psql('postgres', 'SELECT count(*) FROM done');
$clone->start;
is($clone->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'orchestrator executor'}), 0, 'a clone with enabled = off runs nothing');
my $id = $clone->psql_as('app', q{SELECT orchestrator.enqueue('work')});
is($clone->psql_as('app', "SELECT state FROM orchestrator.wait($id, '0.5 s')"), 'pending', 'also not what is enqueued there');

$_->stop foreach $clone, $other, $node;
done_testing();
