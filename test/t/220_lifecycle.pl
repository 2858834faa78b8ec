# Databases, the extension and the server come and go while tasks run: DROP,
# RENAME and copies of databases, DROP, CREATE and UPDATE of the extension,
# restarts, too few workers.  Time limits are those of RULES G5 (5 s) and G6 (3 s);
# CYCLES=100 is how often they are asked for there.

use strict;
use warnings;

use File::Basename;
use OrchestratorStep;
use OrchestratorTest;
use POSIX qw(ceil);
use PostgreSQL::Test::Utils;
use Test::More;

my $cycles = $ENV{CYCLES} || 3;
my $node = new_node(
	name                              => 'lifecycle',
	'orchestrator.executors_per_role' => 2,
	'orchestrator.max_executors'      => 6,
	max_worker_processes              => 16);
$node->start;
$node->create_extension;

my $workers = q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'orchestrator %' AND datname = };

# A database with the extension in which tasks run: a long one, and many short
# ones (of two milliseconds, each of which writes).
sub busy_database
{
	my ($name) = @_;
	$node->safe_psql('postgres', "CREATE DATABASE $name");
	$node->safe_psql($name, <<'SQL');
CREATE EXTENSION orchestrator;
CREATE TABLE done (n int, at timestamptz DEFAULT clock_timestamp());
SQL
	fill($name);
	return;
}

sub fill
{
	my ($name) = @_;
	$node->safe_psql($name, <<'SQL');
SELECT orchestrator.define('short', 'INSERT INTO done SELECT ($1 #>> ''{}'')::int FROM pg_sleep(0.002)', 'sql');
SELECT orchestrator.define('long', 'SELECT pg_sleep(600)', 'sql');
SELECT orchestrator.enqueue('long');
SQL
	add_short($name);
	is_busy($name);
	return;
}

my $number = 0;

sub add_short
{
	my ($name) = @_;
	my $first = $number + 1;
	$number += 20000;
	$node->safe_psql($name, "SELECT orchestrator.enqueue_many('short', ARRAY(SELECT to_jsonb(n) FROM generate_series($first, $number) n))");
	return;
}

sub is_busy
{
	my ($name) = @_;
	my $was = $node->safe_psql($name, 'SELECT count(*) FROM done');
	is($node->safe_psql($name, q{SELECT count(*) - count(DISTINCT task_id) FROM orchestrator.worker_status WHERE task_id IS NOT NULL}), 0,
		'no task runs twice');
	return ok($node->poll_query_until($name, "SELECT count(*) > $was + 20 FROM done"), "tasks run in $name");
}

subtest 'DROP DATABASE' => sub {
	foreach my $round (1 .. $cycles)
	{
		busy_database("dropped$round");
		measure_ok(5, 'DROP DATABASE without FORCE', sub { $node->safe_psql('postgres', "DROP DATABASE dropped$round") });
	}
	busy_database('forced');
	measure_ok(5, 'DROP DATABASE WITH (FORCE)', sub { $node->safe_psql('postgres', 'DROP DATABASE forced WITH (FORCE)') });

	# A command that fails leaves everything as it was.
	busy_database('kept');
	my $holder = session($node, 'postgres', 'kept');
	$holder->query('SELECT 1');
	like(refused($node, 'postgres', 'DROP DATABASE kept'), qr/is being accessed by other users/, 'with a client inside it fails as ever');
	$holder->quit;
	is_busy('kept');
	$node->safe_psql('postgres', 'CREATE ROLE stranger LOGIN');
	like(refused($node, 'stranger', 'DROP DATABASE kept'), qr/must be owner/, 'a stranger may not');
	like(refused($node, 'stranger', 'CREATE DATABASE copy TEMPLATE kept'), qr/permission denied/, 'nor copy it');
	is($node->safe_psql('postgres', "$workers 'kept'") > 1, 1, 'and does not stop its workers');
	$node->safe_psql('postgres', 'DROP DATABASE kept');
	is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'orchestrator %' AND datname IS NOT NULL AND datname <> 'postgres'}),
		0, 'nobody is left');
};

subtest 'ALTER DATABASE' => sub {
	busy_database('old_name');
	measure_ok(5, 'ALTER DATABASE RENAME', sub { $node->safe_psql('postgres', 'ALTER DATABASE old_name RENAME TO new_name') });
	is_busy('new_name');
	is($node->safe_psql('new_name', q{SELECT orchestrator.cancel_many('short') > 0 AND orchestrator.cancel_many('long') = 1}), 't', 'tasks are cancelled there');
	is($node->safe_psql('new_name', q{SELECT count(*) - count(DISTINCT n) FROM done}), 0, 'none ran twice');

	# Closed to connections: workers leave, and come back.
	$node->safe_psql('postgres', 'ALTER DATABASE new_name ALLOW_CONNECTIONS false');
	$node->wait_for("SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type LIKE 'orchestrator %' AND datname = 'new_name'");
	$node->safe_psql('postgres', 'ALTER DATABASE new_name ALLOW_CONNECTIONS true');
	is(outcome($node, 'postgres', q{orchestrator.run('SELECT 1')}, database => 'new_name')->{state}, 'completed', 'opened again: tasks run');
};

subtest 'CREATE DATABASE TEMPLATE' => sub {
	busy_database('original');
	measure_ok(5, 'CREATE DATABASE TEMPLATE', sub { $node->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE original') });
	is_busy('original');
	my $done = $node->safe_psql('copy', 'SELECT count(*) FROM done');
	my $pending = $node->safe_psql('copy', q{SELECT count(*) FROM orchestrator.task WHERE state IN ('pending', 'running')});
	cmp_ok($pending, '>', 1000, 'the copy has tasks, too');
	my $id = $node->safe_psql('copy', q{SELECT orchestrator.run('SELECT 1', priority => 1000)});
	is_busy('original');
	is($node->safe_psql('copy', 'SELECT count(*) FROM done'), $done, 'nothing runs in the copy');
	is($node->safe_psql('copy', q{SELECT count(*) FROM orchestrator.worker_status WHERE kind = 'executor'}), 0, 'no executor is there');
	is($node->safe_psql('copy', "SELECT state FROM orchestrator.wait($id, '0 s')"), 'pending', 'nor what is enqueued there');
	$node->safe_psql('original', q{SELECT orchestrator.cancel_many('short')});
	$node->safe_psql('copy', 'SELECT orchestrator.activate()');
	is(outcome_of($node, 'postgres', $id, database => 'copy')->{state}, 'completed', 'after activate() tasks run in the copy');
	is_busy('copy');
	$node->safe_psql('copy', q{SELECT orchestrator.cancel_many(all_tasks => true)});
	is($node->safe_psql('copy', q{SELECT count(*) FROM orchestrator.task WHERE live}), 0, 'also what was running there');

	# Templates are left alone.
	$node->safe_psql('template1', 'CREATE EXTENSION orchestrator');
	$node->safe_psql('postgres', q{CREATE DATABASE from_template});
	is(outcome($node, 'postgres', q{orchestrator.run('SELECT 1')}, database => 'from_template')->{state}, 'completed',
		'a database made of a template that has the extension runs its tasks at once');
	$node->safe_psql('template1', 'DROP EXTENSION orchestrator; DROP SCHEMA orchestrator');
	$node->safe_psql('postgres', "DROP DATABASE $_") foreach qw(from_template copy original new_name);
};

subtest 'DROP EXTENSION and CREATE EXTENSION' => sub {
	$node->safe_psql('postgres', 'CREATE DATABASE comes_and_goes');
	$node->safe_psql('comes_and_goes', 'CREATE EXTENSION orchestrator; CREATE TABLE done (n int, at timestamptz DEFAULT clock_timestamp())');
	foreach my $round (1 .. $cycles)
	{
		fill('comes_and_goes');
		measure_ok(5, 'DROP EXTENSION under load', sub { $node->safe_psql('comes_and_goes', 'DROP EXTENSION orchestrator') });
		is($node->safe_psql('comes_and_goes', q{SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'orchestrator'}),
			0, 'nothing of it is left');
		$node->wait_for("$workers 'comes_and_goes'", '0', 'its workers leave');
		measure_ok(5, 'CREATE EXTENSION, and a task', sub {
				$node->safe_psql('comes_and_goes', 'DROP SCHEMA IF EXISTS orchestrator; CREATE EXTENSION orchestrator');
				is(outcome($node, 'postgres', q{orchestrator.run('SELECT 1')}, database => 'comes_and_goes')->{state}, 'completed', 'runs');
			});
	}

	fill('comes_and_goes');
	measure_ok(5, 'DROP and CREATE in one transaction', sub {
			$node->safe_psql('comes_and_goes', 'BEGIN; DROP EXTENSION orchestrator; DROP SCHEMA orchestrator; CREATE EXTENSION orchestrator; COMMIT');
			is(outcome($node, 'postgres', q{orchestrator.run('SELECT 1')}, database => 'comes_and_goes')->{state}, 'completed', 'a task runs');
		});
	is($node->safe_psql('comes_and_goes', 'SELECT count(*) FROM orchestrator.task'), 1, 'the old ones are gone');

	fill('comes_and_goes');
	measure_ok(5, 'DROP EXTENSION rolled back', sub { $node->safe_psql('comes_and_goes', 'BEGIN; DROP EXTENSION orchestrator; ROLLBACK') });
	is_busy('comes_and_goes');
	$node->safe_psql('comes_and_goes', 'SELECT orchestrator.cancel_many(all_tasks => true)');

	# A session that knew the old one.
	my $client = session($node, 'postgres', 'comes_and_goes');
	$client->query(q{SELECT orchestrator.define('work', 'SELECT 1', 'sql')});
	my $id = $client->query(q{SELECT orchestrator.enqueue('work')});
	is($client->query("SELECT state FROM orchestrator.wait($id, '10 s')"), 'completed', 'a client, before');
	$node->safe_psql('comes_and_goes', 'BEGIN; DROP EXTENSION orchestrator; DROP SCHEMA orchestrator; CREATE EXTENSION orchestrator; COMMIT');
	$client->query(q{SELECT orchestrator.enqueue('work')});
	like($client->errors, qr/definition "work" does not exist/, 'and after: it knows nothing of the old one');
	$client->query(q{SELECT orchestrator.define('work', 'SELECT 2 AS x', 'sql')});
	$id = $client->query(q{SELECT orchestrator.enqueue('work')});
	is($client->query("SELECT output FROM orchestrator.wait($id, '10 s')"), '[{"x": 2}]', 'and uses the new one');
	$client->quit;

	$node->safe_psql('postgres', 'CREATE DATABASE never');
	$node->safe_psql('never', 'BEGIN; CREATE EXTENSION orchestrator; SELECT orchestrator.run(\'SELECT 1\'); ROLLBACK');
	$node->wait_for("$workers 'never'", '0', 'CREATE EXTENSION rolled back: no worker stays');
	$node->safe_psql('never', 'CREATE EXTENSION orchestrator');
	is(outcome($node, 'postgres', q{orchestrator.run('SELECT 1')}, database => 'never')->{state}, 'completed', 'made in earnest: tasks run');

	# A schema of that name that is none of ours.
	$node->safe_psql('postgres', 'CREATE DATABASE bait');
	$node->safe_psql('bait', 'CREATE SCHEMA orchestrator; CREATE TABLE orchestrator.task_live (id int)');
	like(refused($node, 'postgres', 'CREATE EXTENSION orchestrator', database => 'bait'), qr/schema "orchestrator" is not empty/,
		'a schema with bait in it is refused');
	$node->safe_psql('bait', 'DROP SCHEMA orchestrator CASCADE; CREATE SCHEMA orchestrator AUTHORIZATION stranger');
	like(refused($node, 'postgres', 'CREATE EXTENSION orchestrator', database => 'bait'), qr/belongs to another role/, 'so is one of a stranger');
	$node->safe_psql('postgres', "DROP DATABASE $_") foreach qw(bait never comes_and_goes);
};

subtest 'ALTER EXTENSION UPDATE' => sub {
	# In the private installation that the server was told to use.
	my ($folder) = split /\n/, `$ENV{PG_REGRESS} --version >/dev/null 2>&1; pg_config --sharedir`;
	my $script = dirname($ENV{ORCHESTRATOR_CONF} || 'tmp_install/server.conf') . "$folder/extension/orchestrator--0.1.0--0.1.0test.sql";
	append_to_file($script, <<'SQL');
CREATE FUNCTION orchestrator.new_in_test() RETURNS int LANGUAGE sql SET search_path = pg_catalog, pg_temp AS 'SELECT 42';
ALTER TABLE orchestrator.definition ADD COLUMN new_in_test int;
SELECT orchestrator._announce();
SQL
	busy_database('updated');
	measure_ok(5, 'ALTER EXTENSION UPDATE under load', sub { $node->safe_psql('updated', q{ALTER EXTENSION orchestrator UPDATE TO '0.1.0test'}) });
	unlink $script;
	is($node->safe_psql('updated', q{SELECT extversion FROM pg_extension WHERE extname = 'orchestrator'}), '0.1.0test', 'the new version is there');
	is_busy('updated');
	is($node->safe_psql('updated', q{SELECT orchestrator.cancel_many('long')}), 1, 'the task that was running is still one');
	$node->safe_psql('updated', q{SELECT orchestrator.cancel_many('short')});
	is($node->safe_psql('updated', 'SELECT count(*) - count(DISTINCT n) FROM done'), 0, 'none ran twice');
	is($node->safe_psql('updated', q{SELECT count(*) FROM done d WHERE NOT EXISTS
		(SELECT FROM orchestrator.task t WHERE t.state = 'completed' AND t.input = to_jsonb(d.n))}), 0, 'none ran without being completed');
	$node->safe_psql('postgres', 'DROP DATABASE updated');
};

# An administrator may rewrite the table of live tasks: a step that runs meanwhile
# finds its row elsewhere, or the table shorter than where it was.
subtest 'VACUUM FULL and CLUSTER' => sub {
	$node->safe_psql('postgres', q{SELECT orchestrator.define('waits', 'SELECT pg_advisory_lock_shared(1), pg_advisory_unlock_shared(1)', 'sql', max_attempts => 1)});
	my $gate = session($node, 'postgres');
	foreach my $command ('VACUUM FULL orchestrator.task_live', 'CLUSTER orchestrator.task_live USING task_live_id')
	{
		$gate->query('SELECT pg_advisory_lock(1)');
		$node->safe_psql('postgres', q{SELECT count(*) FROM unnest(orchestrator.enqueue_many('waits', array_fill('{}'::jsonb, '{5000}'), delay => '1 hour'))});
		my $id = $node->safe_psql('postgres', q{SELECT orchestrator.enqueue('waits', delay => '2 hours')});
		$node->safe_psql('postgres', "SELECT orchestrator.pause($id)");

		# Before the step begins: what went later its own snapshot would keep.
		$node->safe_psql('postgres', q{SELECT orchestrator.cancel_many('waits', states => '{scheduled}')});
		$node->safe_psql('postgres', "UPDATE orchestrator.task_live SET run_at = now() WHERE id = $id");
		$node->safe_psql('postgres', "SELECT orchestrator.resume($id)");
		$node->wait_for("SELECT state = 'running' FROM orchestrator.task WHERE id = $id");
		my $block = $node->safe_psql('postgres', "SELECT split_part(trim('(' from ctid::text), ',', 1)::int FROM orchestrator.task_live WHERE id = $id");
		$node->safe_psql('postgres', $command);
		cmp_ok($node->safe_psql('postgres', q{SELECT pg_relation_size('orchestrator.task_live') / current_setting('block_size')::int}), '<=', $block, 'shorter than where the row was');
		$gate->query('SELECT pg_advisory_unlock(1)');
		is(outcome_of($node, 'postgres', $id)->{state}, 'completed', "$command: the step that ran is settled");
	}
	$gate->quit;
};

subtest 'restart' => sub {
	$node->safe_psql('postgres', 'CREATE TABLE done (n int, at timestamptz DEFAULT clock_timestamp())');
	fill('postgres');
	foreach my $mode ((qw(fast smart immediate fast)) x ceil($cycles / 3))
	{
		add_short('postgres') if $node->safe_psql('postgres', q{SELECT count(*) < 10000 FROM orchestrator.task_status WHERE state = 'pending'}) eq 't';
		my $long = $node->safe_psql('postgres', q{SELECT task_id FROM orchestrator.task_status WHERE definition = 'long' AND state = 'running'});
		my $was = $node->safe_psql('postgres', "SELECT attempt FROM orchestrator.task_status WHERE task_id = $long");
		measure_ok(3, "stop -m $mode with busy workers", sub { $node->stop($mode) });
		$node->start;
		is_busy('postgres');
		$node->wait_for("SELECT state = 'running' FROM orchestrator.task_status WHERE task_id = $long", 't', 'what was running runs again');
		is($node->safe_psql('postgres', "SELECT attempt FROM orchestrator.task_status WHERE task_id = $long"), $was, 'a shutdown spends no attempt');
	}
	$node->safe_psql('postgres', q{SELECT orchestrator.cancel_many(all_tasks => true)});
	is($node->safe_psql('postgres', 'SELECT count(*) - count(DISTINCT n) FROM done'), 0, 'no step ran twice');
	is($node->safe_psql('postgres', q{SELECT count(*) FROM orchestrator.task WHERE state = 'failed'}), 0, 'none failed');
};

subtest 'orchestrator.enabled' => sub {
	fill('postgres');
	$node->set('orchestrator.enabled' => 'off');
	$node->reload;
	$node->wait_for(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'orchestrator executor' AND query NOT LIKE '%long'}, 't',
		'off: executors leave, but for the one in a step');
	my $id = $node->safe_psql('postgres', q{SELECT orchestrator.run('SELECT 1', priority => 1000)});
	is($node->safe_psql('postgres', "SELECT state FROM orchestrator.wait($id, '0.2 s')"), 'pending', 'tasks are enqueued and wait');
	$node->safe_psql('postgres', q{SELECT orchestrator.cancel_many('long'), orchestrator.cancel_many('short')});
	$node->set('orchestrator.enabled' => 'on');
	$node->reload;
	is(outcome_of($node, 'postgres', $id)->{state}, 'completed', 'on: they run');
};

$node->stop;

subtest 'too few workers' => sub {
	# Launcher, two supervisors and no more.
	my $small = new_node(name => 'small', max_worker_processes => 4, max_parallel_workers => 0, max_logical_replication_workers => 0);
	$small->start;
	$small->create_extension;
	is(outcome($small, 'postgres', q{orchestrator.run('SELECT 1')})->{state}, 'completed', 'a task runs while there is room');
	$small->safe_psql('postgres', 'CREATE DATABASE second');
	$small->safe_psql('second', 'CREATE EXTENSION orchestrator');
	$small->poll_query_until('second', q{SELECT count(*) = 1 FROM orchestrator.worker_status WHERE kind = 'supervisor'});
	$small->plain_role('app');
	# From here on: the slot of the executor that goes may not be free at once.
	my $offset = -s $small->logfile;
	$small->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'orchestrator executor'});
	my $first = $small->safe_psql('postgres', q{SELECT orchestrator.run('SELECT pg_sleep(60)')});
	$small->wait_for("SELECT state = 'running' FROM orchestrator.task_status WHERE task_id = $first");
	my @waiting = map { $small->psql_as('app', q{SELECT orchestrator.run('SELECT 1')}) } 1 .. 3;
	my $warnings = sub {
		return scalar(() = substr(slurp_file($small->logfile), $offset) =~ /WARNING:  out of background worker slots/g);
	};
	# It is tried again every second: by then it would have said so twice.
	$small->psql('postgres', "SELECT state FROM orchestrator.wait($waiting[0], '2.5 s')");
	is($small->safe_psql('postgres', "SELECT string_agg(state::text, ',') FROM orchestrator.task WHERE id IN (" . join(',', @waiting) . ')'),
		'pending,pending,pending', 'tasks wait');
	is($warnings->(), 1, 'one warning says which setting to raise');
	like(substr(slurp_file($small->logfile), $offset), qr/HINT:  Raise max_worker_processes/, 'with a hint');
	$small->safe_psql('postgres', "SELECT orchestrator.cancel($first)");
	$small->safe_psql('postgres', 'DROP DATABASE second');
	measure_ok(5, 'recovery by itself', sub {
			is(outcome_of($small, 'app', $_)->{state}, 'completed', 'a task that waited runs') foreach @waiting;
		});

	# Every slot is an idle executor's now.
	$small->plain_role('late');
	is(outcome($small, 'postgres', q{orchestrator.run('SELECT 1')})->{state}, 'completed', 'another role has an executor, too');
	measure_ok(5, 'an idle executor makes room for a role that has none', sub {
			is(outcome($small, 'late', q{orchestrator.run('SELECT 1')})->{state}, 'completed', 'its task runs');
		});
	$small->safe_psql('postgres', 'CREATE DATABASE fourth');
	$small->safe_psql('fourth', 'CREATE EXTENSION orchestrator');
	measure_ok(10, 'and for a supervisor, and an executor in its database', sub {
			is(outcome($small, 'postgres', q{orchestrator.run('SELECT 1')}, database => 'fourth')->{state}, 'completed', 'a task runs there');
		});
	$small->safe_psql('postgres', 'DROP DATABASE fourth');
	$small->stop;

	# More databases than there are workers for supervisors.
	$small->set(max_worker_processes => 2);
	$small->start;
	$small->safe_psql('postgres', 'CREATE DATABASE third');
	$small->safe_psql('third', 'CREATE EXTENSION orchestrator');
	my $id = $small->safe_psql('third', q{SELECT orchestrator.run('SELECT 1')});
	is($small->safe_psql('third', "SELECT state FROM orchestrator.wait($id, '0.5 s')"), 'pending', 'no supervisor: tasks wait, calls work');
	$small->stop;
	$small->set(max_worker_processes => 8);
	$small->start;
	is(outcome_of($small, 'postgres', $id, database => 'third')->{state}, 'completed', 'with room they run');
	$small->stop;
};

# Workers that are registered and never run (RULES, F14).
subtest 'no process can be started' => sub {
	my $forkless = new_node(name => 'forkless', autovacuum => 'off');
	my $terminate = q{SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE backend_type = 'orchestrator KIND'};
	$forkless->start;
	$forkless->create_extension;
	$forkless->plain_role('app');
	my ($admin, $app) = (session($forkless, 'postgres'), session($forkless, 'app'));
	$_->query('SELECT 1') foreach $admin, $app;
	my ($postmaster) = split /\n/, slurp_file($forkless->data_dir . '/postmaster.pid');
	my ($limit) = slurp_file("/proc/$postmaster/limits") =~ /^Max processes\s+(\w+)/m;

	# Again and again: now and then the postmaster falls asleep on it.
	foreach (1 .. 5)
	{
		my $offset = -s $forkless->logfile;
		command_ok([ 'prlimit', '--pid', $postmaster, '--nproc=1:' ], 'the postmaster may start no process');
		$admin->query($terminate =~ s/KIND/executor/r);
		my $id = $app->query(q{SELECT orchestrator.run('SELECT 1')});
		$forkless->wait_for_log(qr/could not fork (background )?worker process/, $offset);
		$offset = -s $forkless->logfile;
		$admin->query($terminate =~ s/KIND/supervisor/r);
		$forkless->wait_for_log(qr/could not fork (background )?worker process/, $offset);
		is($admin->query("SELECT state FROM orchestrator.wait($id, '0 s')"), 'pending', 'neither executor nor supervisor comes: the task waits');
		command_ok([ 'prlimit', '--pid', $postmaster, "--nproc=$limit:" ], 'now it may');
		measure_ok(20, 'they come', sub { is($app->query("SELECT state FROM orchestrator.wait($id, '70 s')"), 'completed', 'and the task runs') });
	}
	$_->quit foreach $admin, $app;
	$forkless->stop;
};

subtest 'not preloaded' => sub {
	my $bare = new_node(name => 'bare', shared_preload_libraries => '');
	$bare->start;
	my ($status, $out, $err) = $bare->psql('postgres', 'CREATE EXTENSION orchestrator');
	is($status, 0, 'CREATE EXTENSION works') or diag($err);
	like($err, qr/WARNING:.*shared_preload_libraries/s, 'and warns, with the line to add');
	$bare->plain_role('app');
	my $session = session($bare, 'app');
	$session->query(q{LISTEN orchestrator});
	my $id = $session->query(q{SELECT orchestrator.run('SELECT 1')});
	like($id, qr/^\d+\n?Asynchronous notification.*"created"|^\d+$/, 'tasks are enqueued');
	$id =~ s/\D.*//s;
	is($bare->psql_as('app', "SELECT state FROM orchestrator.task_status WHERE task_id = $id"), 'pending', 'the views work');
	is($bare->psql_as('app', 'SELECT pending FROM orchestrator.queue_status'), 1, 'all of them');
	is($bare->psql_as('app', 'SELECT count(*) FROM orchestrator.worker_status'), 0, 'there are no workers');
	like($bare->psql_as('app', q{SELECT orchestrator.enqueue_many(orchestrator_definition, '{"1"}') FROM (SELECT 'x' AS orchestrator_definition, orchestrator.define('x', 'SELECT 1', 'sql')) d}),
		qr/^\{\d+\}$/, 'bulk, too');
	like(refused($bare, 'app', "SELECT orchestrator.wait($id, '1 s')"), qr/preloaded.*HINT:.*shared_preload_libraries/s, 'wait() says what is missing');
	is($bare->psql_as('app', "SELECT orchestrator.pause($id)"), 'paused', 'pause works');
	is($bare->psql_as('app', "SELECT orchestrator.resume($id)"), 'pending', 'resume works');
	$session->quit;
	$bare->stop;
	$bare->set(shared_preload_libraries => 'orchestrator');
	$bare->start;
	is(outcome_of($bare, 'app', $id)->{state}, 'completed', 'preloaded, it runs');
	$bare->stop;
};

done_testing();
