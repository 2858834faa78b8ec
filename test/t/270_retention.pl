# Retention with real processes: partitions go while tasks run and are read,
# never past a session that holds a lock; archive tasks see them first; a crash
# in the middle is made good; a late task finds a place.

use strict;
use warnings;

use OrchestratorStep;
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use IPC::Run ();
use Test::More;
use Time::HiRes qw(time usleep);

my $node = new_node('orchestrator.executors_per_role' => 2, log_min_messages => 'log', wal_level => 'replica', max_wal_senders => 4);
$node->start;
$node->create_extension;
$node->plain_role($_) foreach qw(app other);
$node->safe_psql('postgres', <<'SQL');
CREATE SCHEMA app AUTHORIZATION app;
CREATE FUNCTION public.noop(jsonb) RETURNS jsonb LANGUAGE plpgsql AS 'BEGIN RETURN $1; END';
SET ROLE app;
CREATE TABLE app.archived (id bigint, traces bigint);
CREATE FUNCTION app.store(input jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE format('INSERT INTO app.archived SELECT t.id, (SELECT count(*) FROM %s g WHERE g.task_id = t.id) FROM %s t', $1 ->> 'traces', $1 ->> 'tasks');
  RETURN $1;
END $$;
CREATE FUNCTION app.refuse(input jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'not now';
END $$;
SELECT orchestrator.define('noop', 'public.noop'), orchestrator.define('store', 'app.store'),
       orchestrator.define('refuse', 'app.refuse', max_attempts => 1);
RESET ROLE;
SET ROLE other;
SELECT orchestrator.define('noop', 'public.noop');
SQL
outcome($node, $_, q{orchestrator.enqueue('noop')}) foreach qw(app other);

my $seq = 3;
next_range();
subtest 'whole partitions, and few that stay, while tasks run and are read' => \&goes_on;
subtest 'a session that holds a lock'  => \&held_lock;
subtest 'a crash in between'           => \&crash;
subtest 'a crash between two pieces'   => \&crash_between_pieces;
subtest 'a promotion between two'      => \&promotion_between_pieces;
subtest 'who waits for the count'      => \&waits_for_count;
subtest 'archive tasks'                => \&archive;
subtest 'late tasks'                   => \&late;
subtest 'settings'                     => \&settings;
subtest 'DROP EXTENSION'               => \&drop_extension;
$node->stop('fast');
done_testing();

# Ids go on in a range of their own.
sub next_range
{
	$seq++;
	$node->safe_psql('postgres', "SELECT setval('orchestrator.task_id_seq', ${seq}000000)");
	return $seq;
}

# A range that is full of tasks that ended some time ago, one trace to each;
# every n-th of them failed.
sub fill
{
	my ($range, $rows, $age, %options) = @_;
	my $owner = $options{owner} || 'app';
	my $every = $options{failed} || 1000000000;
	$node->safe_psql('postgres', <<"SQL");
SELECT orchestrator._make_partitions(${range}000000);
INSERT INTO orchestrator.task_finished_$range (id, created_at, started_at, finished_at, state, owner, definition, queue, priority, attempt, max_attempts, epoch, live, input)
  SELECT ${range}000000 + i, t.at, t.at, t.at, CASE WHEN i % $every = 0 THEN 'failed' ELSE 'completed' END::orchestrator.task_state, o.id, 1, 1, 0, 1, 3, 1, false, jsonb_build_object('n', i)
  FROM generate_series(1, $rows) i, (SELECT now() - interval '$age') t(at), orchestrator.owner o WHERE o.name = '$owner';
INSERT INTO orchestrator.trace_log_$range SELECT t.id, t.finished_at, t.owner, 1, 1, 'notice', '{}' FROM orchestrator.task_finished_$range t;
SQL
	return;
}

# What was filled with young tasks is made old, when all is prepared.
sub make_old
{
	my ($range) = @_;
	$node->safe_psql('postgres', "UPDATE orchestrator.task_finished_$range SET finished_at = finished_at - interval '31 days'");
	return;
}

# Have retention look, again and again, until the query says so.
sub looked
{
	my ($sql, $name) = @_;
	my $end = time + 60;
	my $answer = '';
	until ($answer eq 't' || time > $end)
	{
		$node->safe_psql('postgres', 'SELECT orchestrator._review()');
		usleep(200_000);
		$answer = $node->safe_psql('postgres', "SELECT $sql");
	}
	return is($answer, 't', $name);
}

sub is_gone
{
	my ($range, $name) = @_;
	my $tables = join ', ', map { "'orchestrator.$_" . "_$range'" } qw(task_finished trace_log expired_task_finished expired_trace_log);
	return looked("num_nonnulls(" . join(', ', map { "to_regclass($_)" } split /, /, $tables) . ") = 0", $name || "range $range is gone");
}

sub log_has_no_errors
{
	my $log = slurp_file($node->logfile);
	my @errors = grep { !/being dropped|not now|canceling statement due to lock timeout/ } $log =~ /^.*(?:ERROR|WARNING|PANIC): .*$/mg;
	return is("@errors", '', 'nothing went wrong');
}

sub goes_on
{
	fill(1, 50000, '31 days', failed => 10);
	fill(2, 50000, '8 days', failed => 100);
	my $directory = PostgreSQL::Test::Utils::tempdir();
	append_to_file("$directory/read.sql", "SELECT count(*) FROM orchestrator.task WHERE id > 1040000;\nSELECT count(*) FROM orchestrator.trace WHERE task_id = 2000100;\n");
	append_to_file("$directory/enqueue.sql", "SELECT orchestrator.enqueue_many('noop', array_fill('{}'::jsonb, '{20}'::int[]));\n");
	my @clients = map {
		my ($script, $role) = @$_;
		my ($out, $err) = ('', '');
		{ err => \$err, handle => IPC::Run::start([ 'pgbench', '-n', '-c', 2, '-T', 8, '-f', "$directory/$script.sql", '-h', $node->host, '-p', $node->port, '-U', $role, 'postgres' ],
			'>', \$out, '2>', \$err) }
	} [ 'read', 'app' ], [ 'enqueue', 'app' ], [ 'enqueue', 'other' ];
	is_gone(1, 'a range in which nothing stays is gone');
	looked(q{(SELECT count(*) FROM orchestrator.task WHERE id / 1000000 = 2) = 500 AND to_regclass('orchestrator.expired_task_finished_2') IS NULL}, 'of the other the failed ones are left');
	foreach my $client (@clients)
	{
		ok($client->{handle}->finish, 'no client met an error') or diag(${ $client->{err} });
	}
	is($node->safe_psql('postgres', q{SELECT count(*) FROM orchestrator.trace_log WHERE task_id / 1000000 = 2}), 500, 'with their traces');
	$node->wait_for('SELECT count(*) FROM orchestrator.task_live', 0);
	is($node->safe_psql('postgres', q{SELECT count(*) > 1000 AND count(*) FILTER (WHERE state <> 'completed' OR attempt <> 1) = 0 FROM orchestrator.task WHERE id > 4000000}), 't', 'all tasks ran, once');
	is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'orchestrator retention'}), 0, 'the worker has left');
	log_has_no_errors();
	return;
}

# A report that is open for long sees what it saw, and nobody waits for it.
sub held_lock
{
	my $range = next_range();
	fill(1, 20000, '1 hour');
	looked('EXISTS (SELECT FROM orchestrator.partition_state WHERE range = 1)', 'a range is full');
	make_old(1);
	my $report = session($node, 'app');
	$report->query('BEGIN ISOLATION LEVEL REPEATABLE READ');
	is($report->query('SELECT count(*) FROM orchestrator.task WHERE id / 1000000 = 1'), 20000, 'a report is open');
	looked(q{EXISTS (SELECT FROM orchestrator.retention_status WHERE state = 'detaching')}, 'its range is on the way out');
	my $longest = 0;
	foreach my $i (1 .. 20)
	{
		my $began = time;
		is(outcome($node, 'app', q{orchestrator.enqueue('noop')})->{state}, 'completed', 'a task runs') if $i % 5 == 0;
		$node->psql_as('other', 'SELECT count(*) FROM orchestrator.task');
		$longest = time - $began if time - $began > $longest;
		$node->safe_psql('postgres', 'SELECT orchestrator._review()');
	}
	cmp_ok($longest, '<', 5, 'and nobody waits for the report');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM orchestrator.task WHERE id / 1000000 = 1'), 0, 'new readers do not see the range');
	is($report->query('SELECT count(*) FROM orchestrator.task WHERE id / 1000000 = 1'), 20000, 'the report does');
	like(($node->psql('postgres', 'SELECT orchestrator._make_partitions(1000000)'))[2], qr/partition "task_finished_1" is being dropped/, 'its place is taken until then');
	is($node->safe_psql('postgres', q{SELECT count(*) > 0 FROM pg_class WHERE relname = 'task_finished_1'}), 't', 'its rows are there');
	$report->query('COMMIT');
	is_gone(1, 'when it ends, they go');
	$report->quit;

	# Any lock on the partition, taken before.
	fill(1, 1000, '1 hour');
	looked('EXISTS (SELECT FROM orchestrator.partition_state WHERE range = 1)', 'another');
	make_old(1);
	my $holder = session($node, 'postgres');
	$holder->query('BEGIN; LOCK TABLE orchestrator.task_finished_1 IN SHARE MODE');
	foreach (1 .. 10)
	{
		$node->safe_psql('postgres', 'SELECT orchestrator._review()');
		usleep(200_000);
	}
	is($node->safe_psql('postgres', q{SELECT count(*) FROM orchestrator.task WHERE id / 1000000 = 1}), 1000, 'a locked partition stays as it is');
	is(outcome($node, 'app', q{orchestrator.enqueue('noop')})->{state}, 'completed', 'and tasks run');
	$holder->query('COMMIT');
	$holder->quit;
	is_gone(1);
	log_has_no_errors();
	return;
}

# What a crash leaves: half detached, detached, set aside.
sub crash
{
	next_range();
	fill(1, 20000, '1 hour');
	looked('EXISTS (SELECT FROM orchestrator.partition_state WHERE range = 1)', 'a range is full');
	make_old(1);
	my $report = session($node, 'app');
	$report->query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM orchestrator.task');
	looked(q{EXISTS (SELECT FROM orchestrator.retention_status WHERE state = 'detaching')}, 'half detached');
	$node->safe_psql('postgres', 'CHECKPOINT');    # it is committed asynchronously
	$node->stop('immediate');
	$report->quit;
	$node->start;
	is($node->safe_psql('postgres', 'SELECT count(*) FROM orchestrator.task WHERE id / 1000000 = 1'), 0, 'it stays out of sight');
	is_gone(1, 'and is dropped by the next server');

	fill(1, 1000, '1 hour');
	$node->safe_psql('postgres', <<'SQL');
INSERT INTO orchestrator.partition_state (range, closed_at, look_at, leaving) VALUES (1, now(), now() + interval '1 day', true)
  ON CONFLICT (range) DO UPDATE SET leaving = true, look_at = excluded.look_at;
ALTER TABLE orchestrator.task_finished DETACH PARTITION orchestrator.task_finished_1;
SQL
	is_gone(1, 'detached, with its traces still attached');
	foreach my $round (1 .. 5)
	{
		fill(1, 5000, '31 days');
		fill(3, 5000, '8 days', failed => 20);
		$node->safe_psql('postgres', 'SELECT orchestrator._review()');
		usleep(int(rand(300_000)));
		$node->stop('immediate');
		$node->start;
		is_gone(1, "round $round: range 1 goes all the same");
		looked(q{(SELECT count(*) FROM orchestrator.task WHERE id / 1000000 = 3) = 250 AND to_regclass('orchestrator.expired_task_finished_3') IS NULL}, 'of range 3 the few stay');
		make_old(3);
		is_gone(3);
	}
	is(outcome($node, 'app', q{orchestrator.enqueue('noop')})->{state}, 'completed', 'tasks run');
	is($node->safe_psql('postgres', q{SELECT string_agg(relname, ' ') FROM pg_class WHERE relname ~ '^(expired|rest|archive)_.*\d$'}), '', 'nothing is left lying');
	return;
}

# A range of which some blocks were given back already, of the table itself or
# of what it stored out of line: a lock in time keeps the worker from going on.
sub between_pieces
{
	my ($toast) = @_;
	fill(1, 100000, '1 hour', failed => 100);
	$node->safe_psql('postgres', q{ALTER TABLE orchestrator.task_finished_1 ALTER output SET STORAGE EXTERNAL;
		UPDATE orchestrator.task_finished_1 SET output = to_jsonb(repeat('x', 10000)) WHERE id % 100 = 0; VACUUM orchestrator.task_finished_1});
	my ($table, $full) = split /\|/, $node->safe_psql('postgres', 'SELECT ' . ($toast ? 'reltoastrelid::regclass, pg_relation_size(reltoastrelid)' :
		  q{'orchestrator.expired_task_finished_1', pg_relation_size(oid)}) . q{ FROM pg_class WHERE oid = 'orchestrator.task_finished_1'::regclass});
	cmp_ok($full, '>', 9e6, ($toast ? 'what is stored out of line' : 'a table') . ' of some pieces');
	looked('EXISTS (SELECT FROM orchestrator.partition_state WHERE range = 1)', 'its range is full');
	$node->safe_psql('postgres', q{UPDATE orchestrator.task_finished_1 SET finished_at = finished_at - interval '8 days'; SELECT orchestrator._review()});
	my $holder = session($node);
	my $end = time + 60;
	my $left = '';
	until (time > $end || ($left ne '' && $left > 0 && $left < $full))
	{
		# without a lock: the worker does not rest while somebody waits for it
		$left = $holder->query("SELECT (pg_stat_file(pg_relation_filepath(to_regclass('$table')), true)).size");
	}
	$holder->query('BEGIN; LOCK TABLE orchestrator.expired_task_finished_1 IN ACCESS SHARE MODE');
	$left = $holder->query("SELECT pg_relation_size('$table')");
	ok($left > 0 && $left < $full, 'is partly given back') or diag("$left of $full");
	return ($holder, $table, $left);
}

# What is to be kept of it is elsewhere.
sub kept
{
	my ($server) = @_;
	return is($server->safe_psql('postgres', q{SELECT count(*), sum(length(output #>> '{}')), (SELECT count(*) FROM orchestrator.trace_log WHERE task_id / 1000000 = 1) FROM orchestrator.task WHERE id / 1000000 = 1}),
		'1000|10000000|1000', 'all that is to be kept is there');
}

# Nobody archives what is left, and the next server goes on with it.
sub crash_between_pieces
{
	next_range();
	foreach my $toast (0, 1)
	{
		my ($holder, $table, $left) = between_pieces($toast);
		$node->stop('immediate');
		$holder->quit;
		$node->start;
		cmp_ok($node->safe_psql('postgres', "SELECT pg_relation_size('$table')"), '<=', $left, 'so it is after a crash');
		$node->psql_as('app', q{TRUNCATE app.archived; SELECT orchestrator.archive_with('store')});
		looked(q{to_regclass('orchestrator.expired_task_finished_1') IS NULL}, 'the next server drops it');
		$node->psql_as('app', q{SELECT orchestrator.archive_with(NULL)});
		is($node->psql_as('app', 'SELECT count(*) FROM app.archived'), 0, 'nobody archived what was left');
		kept($node);
		make_old(1);
		is_gone(1);
	}
	log_has_no_errors();
	return;
}

# A standby gives back the same, and goes on when it is promoted.
sub promotion_between_pieces
{
	next_range();
	$node->backup('standby');
	my $standby = PostgreSQL::Test::Cluster->new('standby');
	$standby->init_from_backup($node, 'standby', has_streaming => 1);
	$standby->start;
	my ($holder, $table, $left) = between_pieces(0);
	$node->wait_for_catchup($standby);
	is($standby->safe_psql('postgres', "SELECT pg_relation_size('$table')"), $left, 'so it is on a standby');
	$standby->promote;
	$standby->safe_psql('postgres', 'SELECT orchestrator._review()');
	ok($standby->poll_query_until('postgres', q{SELECT to_regclass('orchestrator.expired_task_finished_1') IS NULL}), 'which drops it when it is promoted');
	kept($standby);
	$standby->stop;
	$holder->query('COMMIT');
	$holder->quit;
	looked(q{to_regclass('orchestrator.expired_task_finished_1') IS NULL}, 'as its primary does');
	kept($node);
	make_old(1);
	is_gone(1);
	return;
}

# Rests of the worker end when somebody wants what it has locked.
sub waits_for_count
{
	next_range();
	fill(1, 300000, '1 hour');
	looked('EXISTS (SELECT FROM orchestrator.partition_state WHERE range = 1)', 'a range is full');
	make_old(1);
	$node->safe_psql('postgres', 'VACUUM orchestrator.task_finished_1');
	my $user = session($node);
	$node->safe_psql('postgres', 'SELECT orchestrator._review()');
	my $locked = q{SELECT count(*) FROM pg_locks WHERE relation = 'orchestrator.task_finished_1'::regclass AND mode = 'ExclusiveLock' AND granted};
	my $end = time + 60;
	usleep(1000) until $user->query($locked) eq '1' || time > $end;
	my $began = time;
	$user->query('BEGIN; LOCK TABLE orchestrator.task_finished_1 IN ROW EXCLUSIVE MODE; COMMIT');
	my $waited = 1000 * (time - $began);
	$user->quit;
	is_gone(1);
	my ($worked) = slurp_file($node->logfile) =~ /.*from id 1000000 on were dropped; the worker has worked for (\d+) ms/s;
	cmp_ok($waited, '<', 4 * $worked, 'who wants to write waits while the worker works, not while it rests') or diag("$waited ms");
	return;
}

sub archive
{
	next_range();
	$node->psql_as('app', q{SELECT orchestrator.archive_with('store')});
	fill(1, 1000, '1 hour');
	$node->safe_psql('postgres', q{UPDATE orchestrator.task_finished_1 SET owner = (SELECT id FROM orchestrator.owner WHERE name = 'other') WHERE id % 2 = 0});
	make_old(1);
	is_gone(1);
	is($node->safe_psql('postgres', 'SELECT count(*), min(id) % 2, sum(traces) FROM app.archived'), '500|1|500', 'the role has archived its own, with traces');
	is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_class WHERE relname ~ '^archive_(task|trace)_'}), 0, 'its views are gone');

	# Those that stay are not for the archive.
	$node->safe_psql('postgres', 'TRUNCATE app.archived');
	fill(1, 1000, '8 days', failed => 100);
	looked(q{(SELECT count(*) FROM orchestrator.task WHERE id / 1000000 = 1) = 10 AND to_regclass('orchestrator.expired_task_finished_1') IS NULL}, 'a few stay');
	is($node->safe_psql('postgres', 'SELECT count(*), count(*) FILTER (WHERE id % 100 = 0) FROM app.archived'), '990|0', 'the others were archived');
	$node->safe_psql('postgres', q{UPDATE orchestrator.task_finished_1 SET finished_at = finished_at - interval '30 days'});
	is_gone(1);

	# One that fails can be retried, for a day.
	$node->psql_as('app', q{SELECT orchestrator.archive_with('refuse')});
	fill(1, 1000, '31 days');
	looked(q{EXISTS (SELECT FROM orchestrator.archive_run r JOIN orchestrator.task t ON t.id = r.task_id AND t.state = 'failed')}, 'an archive task fails');
	$node->safe_psql('postgres', 'SELECT orchestrator._review()') foreach 1 .. 3;
	sleep 2;
	is($node->safe_psql('postgres', q{SELECT state FROM orchestrator.retention_status WHERE from_id = 1000000}), 'leaving', 'the range waits');
	my $watch = session($node, 'postgres');
	my $seen = 0;
	foreach (1 .. 300)
	{
		$seen += $watch->query(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'orchestrator retention'});
		usleep(10_000);
	}
	$watch->quit;
	is($seen, 0, 'and nobody looks all the time');
	$node->safe_psql('postgres', q{CREATE OR REPLACE FUNCTION app.refuse(input jsonb) RETURNS jsonb LANGUAGE plpgsql AS 'BEGIN RETURN $1; END'});
	$node->psql_as('app', q{SELECT orchestrator.retry(task_id) FROM orchestrator.archive_run});
	is_gone(1, 'retried, it is dropped');
	$node->psql_as('app', q{SELECT orchestrator.archive_with(NULL)});
	return;
}

# A task whose range is gone, also in an executor that knew its partition.
sub late
{
	my $range = next_range();
	my $first = outcome($node, 'app', q{orchestrator.enqueue('noop')})->{id};
	my $waits = $node->psql_as('app', q{SELECT orchestrator.enqueue('noop', delay => '1 day')});
	is(int($first / 1000000), $range, 'a task of a new range');
	next_range();
	$node->safe_psql('postgres', "UPDATE orchestrator.task_finished_$range SET finished_at = finished_at - interval '31 days'");
	looked("(SELECT count(*) FROM orchestrator.task WHERE id = $first) = 0", 'it goes');
	$node->safe_psql('postgres', "UPDATE orchestrator.task_live SET run_at = now() WHERE id = $waits; SELECT orchestrator._due(now())");
	is(outcome_of($node, 'app', $waits)->{state}, 'completed', 'one of its range runs late');
	is($node->safe_psql('postgres', "SELECT tableoid::regclass || ' ' || state FROM orchestrator.task WHERE id = $waits"), "orchestrator.task_finished_$range completed", 'and has its place');

	# Now the whole range is gone, and ids of it come back.
	$node->safe_psql('postgres', "UPDATE orchestrator.task_finished_$range SET finished_at = finished_at - interval '31 days'");
	is_gone($range);
	my $now = $node->safe_psql('postgres', 'SELECT last_value FROM orchestrator.task_id_seq');
	$node->safe_psql('postgres', "SELECT setval('orchestrator.task_id_seq', ${range}500000)");
	my $again = outcome($node, 'app', q{orchestrator.enqueue('noop')});
	$node->safe_psql('postgres', "SELECT setval('orchestrator.task_id_seq', $now)");
	is($again->{state}, 'completed', 'an executor that knew the old partition makes a new one');
	is($node->safe_psql('postgres', "SELECT tableoid::regclass || ' ' || state FROM orchestrator.task WHERE id = $again->{id}"), "orchestrator.task_finished_$range completed", 'and the row is in it');
	return;
}

sub settings
{
	my $range = next_range();
	fill($range - 1, 100, '2 hours');
	looked("(SELECT look_at > now() + interval '1 day' FROM orchestrator.partition_state WHERE range = $range - 1)", 'a range is kept for a week');
	$node->set('orchestrator.retention' => '1h');
	$node->reload;
	$node->wait_for("SELECT to_regclass('orchestrator.task_finished_" . ($range - 1) . "') IS NULL", 't', 'with another setting it goes at once');
	$node->set('orchestrator.retention' => -1, 'orchestrator.retention_failed' => -1);
	$node->reload;
	fill(1, 100, '1000 days');
	$node->safe_psql('postgres', 'SELECT orchestrator._review()');
	$node->wait_for('SELECT count(*) FROM orchestrator.partition_state WHERE range = 1 AND look_at > now()', 1, 'it is looked at');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM orchestrator.task WHERE id / 1000000 = 1'), 100, '-1 keeps everything');
	return;
}

# Set aside or not, all of it goes with the extension.
sub drop_extension
{
	$node->psql_as('app', q{SELECT orchestrator.archive_with('refuse')});
	$node->safe_psql('postgres', q{CREATE OR REPLACE FUNCTION app.refuse(input jsonb) RETURNS jsonb LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''not now''; END'});
	$node->set('orchestrator.retention' => '7d', 'orchestrator.retention_failed' => '30d');
	$node->reload;
	looked(q{to_regclass('orchestrator.expired_task_finished_1') IS NOT NULL AND EXISTS (SELECT FROM pg_class WHERE relname ~ '^archive_task_1_')}, 'a range waits for its archive');
	$node->safe_psql('postgres', 'DROP EXTENSION orchestrator');
	is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_class WHERE relname ~ 'task_finished|trace_log|archive_t'}), 0, 'it went with the extension');
	return;
}
