# Trust: what a plain role can do to others and to the server, by SQL and by the
# steps that executors run for it.  Each attack is really made; the proof is what
# a witness function saw of session_user, current_user and is_superuser.

use strict;
use warnings;

use OrchestratorStep;
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;

# One executor for each role: what an attack leaves, the next step meets.
my $node = new_node(
	name                            => 'security',
	'orchestrator.executors_per_role' => 1,
	'orchestrator.max_executors'      => 12,
	max_worker_processes              => 24);
$node->start;
$node->create_extension;
$node->plain_role($_) foreach qw(app stranger friend definer);
$node->safe_psql('postgres', <<'SQL');
CREATE ROLE reader LOGIN;
SELECT orchestrator.grant_usage('reader', 'viewer');
CREATE ROLE nobody LOGIN;
CREATE ROLE team NOLOGIN;
SELECT orchestrator.grant_usage('team');
GRANT team, friend TO app;
GRANT CREATE ON SCHEMA public TO app, stranger;
CREATE SCHEMA app AUTHORIZATION app;
GRANT USAGE ON SCHEMA app TO PUBLIC;
CREATE SCHEMA shop;
GRANT ALL ON SCHEMA shop TO app, stranger;
SQL
$node->psql_as('app', <<'SQL');
CREATE TABLE app.seen (what text, s name, c name, superuser text, at timestamptz DEFAULT clock_timestamp());
GRANT ALL ON app.seen TO PUBLIC;
CREATE FUNCTION app.witness(what text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO app.seen VALUES (what, session_user, current_user, current_setting('is_superuser'));
END $$;
CREATE FUNCTION app.who(jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  RETURN jsonb_build_object('s', session_user, 'c', current_user, 'superuser', current_setting('is_superuser'),
                            'role', current_setting('role'));
END $$;
SELECT orchestrator.define('who', 'app.who');
SQL

sub who_is
{
	my ($role, $name) = @_;
	return is_deeply(outcome($node, $role, "orchestrator.enqueue('who')")->{output},
		{ s => $role, c => $role, superuser => 'off', role => 'none' }, $name || "a step of $role runs as $role");
}

sub completed_ok
{
	my ($role, $definition, $name) = @_;
	my $r = outcome($node, $role, "orchestrator.enqueue('$definition')");
	return is($r->{state}, 'completed', $name) || diag(explain($r->{error}));
}

subtest 'tasks of somebody else' => sub {
	my $later = $node->psql_as('app', q{SELECT orchestrator.enqueue('who', key => 'order-4711', delay => '1 hour')});
	my $done = outcome($node, 'app', q{orchestrator.enqueue('who', '{"secret": 1}')})->{id};
	my $failed = outcome($node, 'app', q{orchestrator.run('SELECT 1/0')})->{id};
	my $running = $node->psql_as('app', q{SELECT orchestrator.run('SELECT orchestrator.progress(0.5, ''secret''), pg_sleep(60)')});
	$node->wait_for("SELECT progress = 0.5 FROM orchestrator.task_status WHERE task_id = $running");

	foreach my $from (qw(task trace task_status task_key trace_log usage_grant definition queue_share
		stats queue_stats definition_stats))
	{
		my $rows = $node->psql_as('stranger', "SELECT count(*) FROM orchestrator.$from"
			  . ($from eq 'usage_grant' ? " g JOIN orchestrator.owner o ON o.id = g.grantee WHERE o.name <> 'stranger'" : ''));
		is($rows, 0, "a stranger sees nothing in $from");
	}
	is($node->psql_as('stranger', 'SELECT count(*) FROM orchestrator.worker_status WHERE task_id IS NOT NULL OR message IS NOT NULL'), 0,
		'nor in worker_status');
	is($node->psql_as('stranger', q{SELECT string_agg(queue || pending + scheduled + running, ',') FROM orchestrator.queue_status}),
		'default0', 'nor what others have in the common queue');
	foreach my $id ($later, $done, $failed, $running)
	{
		foreach my $call ("wait($id, '1 s')", "cancel($id)", "pause($id)", "pause($id, true)", "resume($id)", "retry($id)")
		{
			like(refused($node, 'stranger', "SELECT orchestrator.$call"), qr/task $id does not exist/, "$call is refused");
		}
		like(refused($node, 'stranger', "CALL orchestrator.await($id, '1 s')"), qr/task $id does not exist/, 'await is refused');
		like(refused($node, 'stranger', "SELECT orchestrator.queue_position($id)"), qr/task $id does not exist/, 'queue_position is refused');
	}
	foreach my $verb (qw(cancel pause resume retry))
	{
		is($node->psql_as('stranger', "SELECT orchestrator.${verb}_many(all_tasks => true)"), 0, "${verb}_many finds nothing");
	}
	foreach my $call ("cancel($later)", "pause($later)", "retry($failed)", q{define_queue('q')}, q{enqueue('who')})
	{
		like(refused($node, 'reader', "SELECT orchestrator.$call"), qr/permission denied for function/, "a viewer has no $call");
		like(refused($node, 'nobody', "SELECT orchestrator.$call"), qr/permission denied for schema/, "who has no grant has no $call");
	}
	cmp_ok($node->psql_as('reader', 'SELECT count(*) FROM orchestrator.task'), '>=', 4, 'a viewer sees the tasks of others');
	is($node->psql_as('app', "SELECT string_agg(state::text, ',' ORDER BY task_id) FROM orchestrator.task_status"),
		'scheduled,completed,failed,running', 'nothing happened to them');

	# A key is the owner's: another's is no sign of what the first one did.
	$node->psql_as('stranger', q{SELECT orchestrator.define('own', 'SELECT 1', 'sql')});
	isnt($node->psql_as('stranger', q{SELECT orchestrator.enqueue('own', key => 'order-4711')}), $later, 'a key of another role is not met');
	is($node->psql_as('app', "SELECT orchestrator.cancel($running)"), 'cancelled', 'its owner may');
};

subtest 'functions and tables that are not for them' => sub {
	# Tables, by privilege and by attempt.
	is($node->safe_psql('postgres', <<'SQL'), '', 'no right to write to any table, view or sequence');
SELECT string_agg(format('%s %s %s', r, c.oid::regclass, p), E'\n')
FROM unnest('{app,reader,team,nobody}'::text[]) r, pg_class c,
     unnest('{INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[]) p
WHERE c.relnamespace = 'orchestrator'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND has_table_privilege(r, c.oid, p)
   OR c.relnamespace = 'orchestrator'::regnamespace AND p = 'UPDATE'
      AND CASE c.relkind WHEN 'S' THEN has_sequence_privilege(r, c.oid, 'USAGE, UPDATE, SELECT') END
SQL
	is($node->safe_psql('postgres', <<'SQL'), '', 'no right to read a partition past its parent');
SELECT string_agg(c.oid::regclass::text, ',') FROM pg_class c
WHERE c.relnamespace = 'orchestrator'::regnamespace AND c.relispartition AND has_table_privilege('app', c.oid, 'SELECT')
SQL
	is($node->safe_psql('postgres', <<'SQL'), '', 'row-level security is on, and forced, everywhere');
SELECT string_agg(c.oid::regclass::text, ',') FROM pg_class c
WHERE c.relnamespace = 'orchestrator'::regnamespace AND c.relkind IN ('r', 'p') AND NOT (c.relrowsecurity AND c.relforcerowsecurity)
SQL
	foreach my $sql (
		'INSERT INTO orchestrator.task SELECT * FROM orchestrator.task',
		'UPDATE orchestrator.task SET owner = 1',
		'DELETE FROM orchestrator.task_live',
		'TRUNCATE orchestrator.task',
		'SELECT * FROM orchestrator.task_live',
		'SELECT * FROM orchestrator.task_finished_0',
		'SELECT * FROM orchestrator.trace_log_0',
		'INSERT INTO orchestrator.trace_log VALUES (1, now(), 1, 1, 1, \'x\')',
		'UPDATE orchestrator.definition SET handler = \'x\'',
		'UPDATE orchestrator.owner SET role = 10',
		'DELETE FROM orchestrator.task_key',
		'SELECT nextval(\'orchestrator.task_id_seq\')',
		'BEGIN; LOCK TABLE orchestrator.task IN EXCLUSIVE MODE')
	{
		like(refused($node, 'app', $sql), qr/permission denied/, $sql);
	}
	foreach my $sql (
		'CREATE FUNCTION orchestrator.bait() RETURNS int LANGUAGE sql AS \'SELECT 1\'',
		'CREATE TRIGGER bait BEFORE INSERT ON orchestrator.task_live FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()',
		'CREATE RULE bait AS ON INSERT TO orchestrator.task DO NOTHING',
		'CREATE POLICY bait ON orchestrator.task USING (true)',
		'CREATE INDEX ON orchestrator.task_live ((app.who(input)))',
		'CREATE TABLE app.child () INHERITS (orchestrator.owner)',
		'CREATE TABLE app.child PARTITION OF orchestrator.task_finished FOR VALUES FROM (90000000) TO (91000000)',
		'CREATE TABLE app.child (id bigint REFERENCES orchestrator.owner)',
		'ALTER TABLE orchestrator.task DISABLE ROW LEVEL SECURITY',
		'ALTER FUNCTION orchestrator._now() OWNER TO app',
		'ALTER EXTENSION orchestrator ADD FUNCTION app.who(jsonb)',
		'DROP EXTENSION orchestrator',
		'DROP EVENT TRIGGER orchestrator_guard_handlers',
		'SET orchestrator.test_clock_offset = 3600',
		'SET orchestrator.max_input_size = \'1GB\'',
		'SET orchestrator.superuser_tasks = on',
		'SET orchestrator.enabled = off')
	{
		like(refused($node, 'app', $sql), qr/permission denied|must be owner|cannot be changed|must be superuser|can only/, $sql);
	}

	# Functions.
	is($node->safe_psql('postgres', <<'SQL'), '_estimated_start,_jobs_ahead,_limit_id,_live_stats,_may_fire,_now,_percentile,_permits,_run_progress,_run_started,_run_steps,_run_traces,_sketch,_slots,_visible_owners', 'the internal functions that a producer may call');
SELECT string_agg(p.proname, ',' ORDER BY p.proname) FROM pg_proc p
WHERE p.pronamespace = 'orchestrator'::regnamespace AND p.proname LIKE '\_%' AND has_function_privilege('app', p.oid, 'EXECUTE')
SQL
	foreach my $call (
		'_settle_completed(1, 1, NULL, NULL, NULL)', '_settle_failed(1, 1, \'error\', NULL, NULL, NULL)', '_claim(1, 1, 1, 1)',
		'_cancel(10, 1, NULL)', '_interrupt(1, 1)', '_yield(1)', '_ready(1, 1, 1)', '_due(now())', '_recover(\'{1}\', \'{1}\', \'{}\')',
		'_emit(1, 1, NULL, \'created\', \'pending\', NULL, 1, true)', '_grant_usage(10, \'app\', \'admin\')', '_announce()',
		'_make_partitions(1)', '_owner(10)', '_expire(1)', '_save_stats(true)', '_seal_stats(true)', '_count(1, 1, 1, \'failed\')', 'grant_usage(\'app\', \'admin\')', 'revoke_usage(\'stranger\')', 'activate()')
	{
		like(refused($node, 'app', "SELECT orchestrator.$call"), qr/permission denied/, $call);
	}
	like(refused($node, 'app', q{SELECT orchestrator.define('internal', 'orchestrator._cancel_rows')}), qr/does not exist|denied/,
		'nor as the handler of a definition');
	is(sqlstate_of(outcome($node, 'app', q{orchestrator.run('SELECT orchestrator._settle_completed(1, 1, NULL, NULL, NULL)')})), '42501',
		'nor inside a step');

	is($node->safe_psql('postgres', <<'SQL'), '', 'nothing is granted to PUBLIC');
SELECT string_agg(what, E'\n') FROM (
  SELECT p.oid::regprocedure::text FROM pg_proc p WHERE p.pronamespace = 'orchestrator'::regnamespace AND has_function_privilege('public', p.oid, 'EXECUTE')
  UNION ALL
  SELECT c.oid::regclass::text FROM pg_class c WHERE c.relnamespace = 'orchestrator'::regnamespace AND c.relkind IN ('r', 'p', 'v')
    AND has_table_privilege('public', c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER')
  UNION ALL
  SELECT c.oid::regclass::text FROM pg_class c WHERE c.relnamespace = 'orchestrator'::regnamespace
    AND CASE c.relkind WHEN 'S' THEN has_sequence_privilege('public', c.oid, 'SELECT, USAGE, UPDATE') END
  UNION ALL
  SELECT t.oid::regtype::text FROM pg_type t WHERE t.typname IN ('task_state', 'task_result', 'step_spec') AND has_type_privilege('public', t.oid, 'USAGE')
  UNION ALL
  SELECT nspname FROM pg_namespace WHERE nspname = 'orchestrator' AND has_schema_privilege('public', oid, 'USAGE, CREATE')) x(what)
SQL
	is($node->safe_psql('postgres', <<'SQL'), '_guard_handlers', 'SECURITY DEFINER: only what cannot be called');
SELECT string_agg(p.proname, ',') FROM pg_proc p WHERE p.pronamespace = 'orchestrator'::regnamespace AND p.prosecdef
SQL
	is($node->safe_psql('postgres', <<'SQL'), '', 'every function that is not C has a search_path of its own');
SELECT string_agg(p.proname, ',') FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
WHERE p.pronamespace = 'orchestrator'::regnamespace AND l.lanname <> 'c' AND p.prokind <> 'a'
  AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY (p.proconfig), false)
SQL
};

# What is made for everybody by default is made for nobody here, also what the
# workers make later: TRUNCATE and TRIGGER on a partition are no matter of policies.
subtest 'default privileges' => sub {
	$node->safe_psql('postgres', 'CREATE DATABASE generous');
	foreach my $to (qw(PUBLIC app))
	{
		$node->safe_psql('generous', "ALTER DEFAULT PRIVILEGES GRANT ALL ON $_ TO $to") foreach qw(FUNCTIONS TABLES SEQUENCES SCHEMAS TYPES);
	}
	$node->safe_psql('generous', 'CREATE EXTENSION orchestrator');
	is(outcome($node, 'postgres', q{orchestrator.run('SELECT 1')}, database => 'generous')->{state}, 'completed', 'a task runs, partitions are made');
	is($node->safe_psql('generous', <<'SQL'), '', 'nobody has a right to anything of it');
SELECT string_agg(format('%s %s', what, x), E'\n') FROM (
  SELECT c.oid::regclass::text, c.relacl, c.relowner FROM pg_class c WHERE c.relnamespace = 'orchestrator'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'S')
  UNION ALL
  SELECT p.oid::regprocedure::text, p.proacl, p.proowner FROM pg_proc p WHERE p.pronamespace = 'orchestrator'::regnamespace
  UNION ALL
  SELECT t.oid::regtype::text, t.typacl, t.typowner FROM pg_type t WHERE t.typnamespace = 'orchestrator'::regnamespace
  UNION ALL
  SELECT 'schema', n.nspacl, n.nspowner FROM pg_namespace n WHERE n.nspname = 'orchestrator') o(what, acl, owner), aclexplode(acl) x
WHERE x.grantee <> owner
SQL
	like(refused($node, 'app', 'TRUNCATE orchestrator.task_finished_0', database => 'generous'), qr/permission denied/, 'as a role finds');
	$node->safe_psql('generous', q{SELECT orchestrator.grant_usage('app')});
	is(outcome($node, 'app', q{orchestrator.run('SELECT 1')}, database => 'generous')->{state}, 'completed', 'but for what grant_usage() gives');
	$node->safe_psql('postgres', 'DROP DATABASE generous');
};

subtest 'definitions and queues of somebody else' => sub {
	$node->psql_as('stranger', q{SELECT orchestrator.define('who', 'SELECT app.witness(''shadow'')', 'sql')});
	who_is('app', 'a definition of the same name does not shadow the own one');

	like(refused($node, 'stranger', q{SELECT orchestrator.define('who', 'SELECT 1', 'sql', owner => 'app')}), qr/must be a member/,
		'a definition for another role is refused');
	like(refused($node, 'stranger', q{SELECT orchestrator.drop_definition('who', owner => 'app')}), qr/must be a member/, 'so is to drop it');
	like(refused($node, 'stranger', q{SELECT orchestrator.share_definition('who', 'stranger', owner => 'app')}), qr/must be a member/,
		'so is to share it with oneself');
	like(refused($node, 'friend', q{SELECT orchestrator.enqueue('who')}), qr/definition "who" does not exist/, 'not shared, not there');

	$node->psql_as('app', q{SELECT orchestrator.share_definition('who', 'friend')});
	who_is('friend', 'a shared definition runs as who enqueued it');
	$node->psql_as('stranger', q{SELECT orchestrator.share_definition('who', 'friend')});
	like(refused($node, 'friend', q{SELECT orchestrator.enqueue('who')}), qr/shared by more than one role/,
		'a second one of that name does not slip in before it');
	$node->psql_as('stranger', q{SELECT orchestrator.unshare_definition('who', 'friend')});

	$node->psql_as('app', q{SELECT orchestrator.define_queue('private')});
	like(refused($node, 'stranger', q{SELECT orchestrator.enqueue('who', queue => 'private')}), qr/queue "private" does not exist/,
		'a queue of another role is not there');
	like(refused($node, 'stranger', qq{SELECT orchestrator.$_('private', owner => 'app')}), qr/must be a member/, "$_ of it is refused")
	  foreach qw(pause_queue resume_queue define_queue);
	like(refused($node, 'app', qq{SELECT orchestrator.$_('default')}), qr/administrator|permission/, "$_ of the common one, too")
	  foreach qw(pause_queue resume_queue);
	is($node->psql_as('app', q{SELECT count(*) FROM app.seen WHERE what = 'shadow'}), 0, 'nobody ran the bait');
};

# A queue that holds tasks back until something was done behind their back.
$node->psql_as('app', q{SELECT orchestrator.define_queue('held')});

sub behind_its_back
{
	my ($definition, $change, $name, $expected) = @_;
	$node->psql_as('app', q{SELECT orchestrator.pause_queue('held')});
	my $id = $node->psql_as('app', "SELECT orchestrator.enqueue('$definition', queue => 'held')");
	$change->();
	$node->psql_as('app', q{SELECT orchestrator.resume_queue('held')});
	my $r = outcome_of($node, 'app', $id);
	return like(($r->{error} || {})->{message} || $r->{state}, $expected, $name);
}

subtest 'EXECUTE' => sub {
	$node->safe_psql('postgres', <<'SQL');
CREATE FUNCTION shop.sell(jsonb) RETURNS jsonb LANGUAGE plpgsql AS 'BEGIN RETURN ''"sold"''; END';
CREATE FUNCTION shop.by_sql(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT ''"sold"''::jsonb';
CREATE PROCEDURE shop.restock(jsonb) LANGUAGE plpgsql AS 'BEGIN COMMIT; END';
REVOKE ALL ON ALL ROUTINES IN SCHEMA shop FROM PUBLIC;
SQL
	foreach my $f ([ 'sell', 'function' ], [ 'by_sql', 'function' ], [ 'restock', 'procedure' ])
	{
		my ($name, $kind) = @$f;
		my $define = "SELECT orchestrator.define('$name', 'shop.$name', '$kind', max_attempts => 1)";
		like(refused($node, 'app', $define), qr/permission denied for $kind/, "$kind $name: refused when defined");
		$node->safe_psql('postgres', "GRANT EXECUTE ON ROUTINE shop.$name TO app");
		$node->psql_as('app', $define);
		completed_ok('app', $name, 'runs with the right to');
		behind_its_back($name, sub { $node->safe_psql('postgres', "REVOKE EXECUTE ON ROUTINE shop.$name FROM app") },
			'refused at the run, when it was revoked after enqueue', qr/permission denied/);
		$node->safe_psql('postgres', $node->safe_psql('postgres', q{SELECT rtrim(error ->> 'hint', '.') FROM orchestrator.task ORDER BY id DESC LIMIT 1}));
		completed_ok('app', $name, 'runs again when what the hint says was done');
		behind_its_back($name, sub { $node->safe_psql('postgres', 'REVOKE ALL ON SCHEMA shop FROM app') },
			'refused when the schema was closed', qr/permission denied/);
		$node->safe_psql('postgres', 'GRANT ALL ON SCHEMA shop TO app');
	}

	# A stranger puts a function of his own in its place.
	$node->safe_psql('postgres', 'ALTER FUNCTION shop.sell(jsonb) OWNER TO app');
	$node->psql_as('app', q{SELECT orchestrator.define('sell', 'shop.sell', max_attempts => 1)});
	behind_its_back('sell', sub {
			like(refused($node, 'app', 'DROP FUNCTION shop.sell(jsonb)'), qr/unfinished tasks of definition "sell" use it/,
				'a function that tasks need is not dropped');
		}, 'and they run', qr/completed/);
	$node->psql_as('app', 'DROP FUNCTION shop.sell(jsonb)');
	is(outcome($node, 'app', q{orchestrator.enqueue('sell')})->{error}{message},
		'handler shop.sell(jsonb) of definition "sell" does not exist', 'dropped: a clear error');
	$node->psql_as('stranger', <<'SQL');
CREATE FUNCTION shop.sell(jsonb) RETURNS jsonb LANGUAGE plpgsql AS 'BEGIN PERFORM app.witness(''stolen''); RETURN ''1''; END';
SQL
	like(outcome($node, 'app', q{orchestrator.enqueue('sell')})->{error}{message}, qr/belongs to role "stranger", not to "app"/,
		'made again by a stranger: refused');
	is($node->psql_as('app', q{SELECT count(*) FROM app.seen WHERE what = 'stolen'}), 0, 'and not run');
	$node->safe_psql('postgres', 'ALTER FUNCTION shop.sell(jsonb) OWNER TO app');
	is(outcome($node, 'app', q{orchestrator.enqueue('sell')})->{state}, 'completed', 'the right owner: it runs');

	# Nobody keeps another one from dropping what is his.
	$node->psql_as('app', q{CREATE FUNCTION app.mine(jsonb) RETURNS void LANGUAGE plpgsql AS 'BEGIN END'});
	$node->psql_as('stranger', q{SELECT orchestrator.define('hostage', 'app.mine')});
	my $id = $node->psql_as('stranger', q{SELECT orchestrator.enqueue('hostage', delay => '1 hour')});
	is(refused($node, 'app', 'DROP FUNCTION app.mine(jsonb)'), '', 'a task of a stranger does not keep me from dropping my function');
	$node->psql_as('stranger', "SELECT orchestrator.cancel($id)");
};

subtest 'the way to a superuser' => sub {
	who_is('app');

	# Each command as a step, and inside a function that hides the error.
	foreach my $sql (
		'SET ROLE postgres', 'SET LOCAL ROLE postgres', 'SET SESSION AUTHORIZATION postgres', 'ALTER ROLE app SUPERUSER',
		q{SELECT set_config('role', 'postgres', false)}, q{SELECT set_config('session_authorization', 'postgres', false)},
		q{UPDATE pg_authid SET rolsuper = true}, q{COPY (SELECT 1) TO PROGRAM 'true'}, q{COPY (SELECT 1) TO '/tmp/orchestrator_bait'},
		q{SELECT pg_read_file('postgresql.conf')}, q{SET session_replication_role = replica}, q{LOAD 'orchestrator_bait'},
		q{SELECT lo_import('/etc/passwd')}, q{CREATE EXTENSION dblink}, q{SET orchestrator.test_clock_offset = 1},
		q{SELECT pg_terminate_backend(pid) FROM orchestrator.worker_status WHERE kind = 'supervisor'},
		q{SELECT pg_terminate_backend(pid) FROM pg_stat_get_activity(NULL) a WHERE a.pid <> pg_backend_pid() AND usesysid = 10})
	{
		(my $quoted = $sql) =~ s/'/''/g;
		my $r = outcome($node, 'app', "orchestrator.run('$quoted')");
		if ($sql =~ /pg_terminate/ && $r->{state} eq 'completed')
		{
			unlike(JSON::PP::encode_json($r->{output}), qr/true/, "$sql ends nobody");
		}
		else
		{
			isnt($r->{state}, 'completed', "$sql fails");
		}
		outcome($node, 'app', "orchestrator.run('DO \$\$ BEGIN $quoted; EXCEPTION WHEN OTHERS THEN PERFORM app.witness(''hidden''); END \$\$')")
		  if $sql !~ /^SELECT/;
	}
	foreach my $sql ('RESET ROLE', 'RESET SESSION AUTHORIZATION', 'SET SESSION AUTHORIZATION DEFAULT', 'SET ROLE NONE', 'RESET ALL')
	{
		is(outcome($node, 'app', "orchestrator.run('DO \$\$ BEGIN $sql; PERFORM app.witness(''$sql''); END \$\$')")->{state}, 'completed',
			"$sql is harmless");
	}
	foreach my $sql ('ALTER SYSTEM SET work_mem = 64', 'DISCARD ALL', 'RESET SESSION AUTHORIZATION', 'SET ROLE postgres',
		q{COPY (SELECT 'forged line') TO STDOUT}, 'COPY app.seen FROM STDIN', 'BEGIN', 'START TRANSACTION', 'COMMIT', 'ROLLBACK',
		'SAVEPOINT s', q{PREPARE TRANSACTION 'held'}, 'LISTEN orchestrator', 'CHECKPOINT', 'DECLARE c CURSOR WITH HOLD FOR SELECT app.witness(\'hold\')')
	{
		(my $quoted = $sql) =~ s/'/''/g;
		my $r = outcome($node, 'app', "orchestrator.run('$quoted', kind => 'utility')", timeout => 3);
		my $state = $r->{state};
		ok($state eq 'failed' || $state eq 'completed', "utility $sql ends") or diag("state $state");
		my $next = outcome($node, 'app', q{orchestrator.run('SELECT 1')}, timeout => 3);
		ok($next->{state} eq 'completed', 'and so does what comes after it') or do
		{
			diag("state $next->{state}");
			$node->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'});
			$node->psql_as('app', q{SELECT orchestrator.cancel_many('orchestrator.run.utility')});
			outcome_of($node, 'app', $next->{id});
		};
	}
	ok(slurp_file($node->logfile) !~ /^forged line/m, 'no step writes to the log of the server');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_prepared_xacts'), 0, 'no step leaves a prepared transaction');

	# What runs at the commit, when the engine acts as somebody else.
	$node->psql_as('app', <<'SQL');
CREATE TABLE app.late (i int);
CREATE FUNCTION app.late() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM app.witness('deferred');
  BEGIN SET SESSION AUTHORIZATION postgres; EXCEPTION WHEN OTHERS THEN NULL; END;
  BEGIN SET ROLE postgres; EXCEPTION WHEN OTHERS THEN NULL; END;
  RESET SESSION AUTHORIZATION;
  RESET ROLE;
  PERFORM app.witness('deferred, after RESET');
  RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON app.late DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION app.late();
CREATE FUNCTION app.defers(jsonb) RETURNS void LANGUAGE plpgsql AS 'BEGIN INSERT INTO app.late VALUES (1); END';
CREATE FUNCTION app.holds(jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE 'DECLARE held CURSOR WITH HOLD FOR SELECT app.witness(''held''), app.witness(''held too'')';
END $$;
CREATE PROCEDURE app.holds_by_procedure(jsonb) LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE 'DECLARE held CURSOR WITH HOLD FOR SELECT app.witness(''held by procedure'')';
  INSERT INTO app.late VALUES (2);
  COMMIT;
  PERFORM app.witness('after commit');
END $$;
SELECT orchestrator.define('defers', 'app.defers'), orchestrator.define('holds', 'app.holds'),
       orchestrator.define('holds_by_procedure', 'app.holds_by_procedure', 'procedure', max_attempts => 1);
SQL
	foreach my $name (qw(defers holds holds_by_procedure), ('defers') x 5)
	{
		completed_ok('app', $name, "$name ends");
	}
	cmp_ok($node->psql_as('app', q{SELECT count(*) FROM app.seen WHERE what LIKE 'deferred%'}), '>=', 12, 'the triggers did run');
	is($node->psql_as('app', q{SELECT count(*) FROM app.seen WHERE (s, c, superuser) <> ('app', 'app', 'off')}), 0,
		'whatever ran was session user app, current user app, no superuser')
	  or diag($node->psql_as('app', q{SELECT * FROM app.seen WHERE (s, c, superuser) <> ('app', 'app', 'off')}));
	is($node->safe_psql('postgres', q{SELECT string_agg(rolname, ',') FROM pg_roles WHERE rolsuper}), 'postgres', 'one superuser, as before');
	who_is('app', 'the executor is still app');
};

# The names that the engine's functions use unqualified, as bait in every place
# that a role can write to, and first in its search_path.
subtest 'bait in the search path' => sub {
	$node->psql_as('stranger', <<'SQL');
CREATE FUNCTION public.lower(text) RETURNS text LANGUAGE sql AS $$ SELECT app.witness('public.lower'); SELECT $1 $$;
SQL
	$node->psql_as('app', <<'SQL');
SET client_min_messages = error;
DO $do$
DECLARE
  f text;
BEGIN
  FOREACH f IN ARRAY ARRAY[
    'now() RETURNS timestamptz|now()', 'clock_timestamp() RETURNS timestamptz|now()',
    'jsonb_build_object(VARIADIC "any") RETURNS jsonb|', 'jsonb_build_object(text, text) RETURNS jsonb|''{}''::jsonb',
    'jsonb_strip_nulls(jsonb) RETURNS jsonb|$1', 'format(text, text) RETURNS text|$1', 'format(text, bigint) RETURNS text|$1',
    'coalesce(text) RETURNS text|$1', 'left(text, int) RETURNS text|$1', 'to_regclass(text) RETURNS regclass|NULL::regclass',
    'pg_has_role(oid, oid, text) RETURNS boolean|true', 'pg_get_userbyid(oid) RETURNS name|''postgres''::name',
    'num_nonnulls(text, text, text, interval) RETURNS int|1', 'cardinality(int[]) RETURNS int|1',
    'nextval(regclass) RETURNS bigint|1::bigint', 'current_database() RETURNS name|''x''::name', 'random() RETURNS float8|1::float8',
    'power(float8, int) RETURNS float8|1::float8', 'make_interval(float8) RETURNS interval|interval ''1 s''',
    'round(numeric, int) RETURNS numeric|$1', 'quote_ident(text) RETURNS text|$1', 'parse_ident(text) RETURNS text[]|ARRAY[$1]',
    'to_jsonb(orchestrator.task_result) RETURNS jsonb|''{}''::jsonb']
  LOOP
    BEGIN
      EXECUTE format('CREATE FUNCTION app.%s LANGUAGE plpgsql AS $f$ BEGIN PERFORM app.witness(%L); RETURN %s; END $f$',
                     split_part(f, '|', 1), 'bait ' || split_part(f, '|', 1), split_part(f, '|', 2));
    EXCEPTION WHEN OTHERS THEN NULL;
    END;
  END LOOP;
END $do$;
CREATE FUNCTION app.bait_eq(text, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN PERFORM app.witness('operator text'); RETURN true; END $$;
CREATE FUNCTION app.bait_eq(int, int) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN PERFORM app.witness('operator int'); RETURN true; END $$;
CREATE FUNCTION app.bait_eq(bigint, bigint) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN PERFORM app.witness('operator bigint'); RETURN true; END $$;
CREATE FUNCTION app.bait_get(jsonb, text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM app.witness('operator ->>'); RETURN ''; END $$;
CREATE FUNCTION app.bait_cat(jsonb, jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN PERFORM app.witness('operator ||'); RETURN '{}'; END $$;
CREATE OPERATOR app.= (LEFTARG = text, RIGHTARG = text, FUNCTION = app.bait_eq);
CREATE OPERATOR app.= (LEFTARG = int, RIGHTARG = int, FUNCTION = app.bait_eq);
CREATE OPERATOR app.= (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = app.bait_eq);
CREATE OPERATOR app.->> (LEFTARG = jsonb, RIGHTARG = text, FUNCTION = app.bait_get);
CREATE OPERATOR app.|| (LEFTARG = jsonb, RIGHTARG = jsonb, FUNCTION = app.bait_cat);
CREATE TABLE app.task_live (id bigint); CREATE TABLE app.pg_authid (oid oid, rolname name, rolsuper bool);
CREATE TABLE app.definition (id int); CREATE TABLE app.pg_proc (oid oid); CREATE TABLE app.pg_extension (extname name, extowner oid);
CREATE TYPE app.task_state AS ENUM ('completed'); CREATE TYPE app.task AS (id int);
SQL
	my $bait = <<'SQL';
SET client_min_messages = error;
CREATE TEMP TABLE pg_authid (oid oid, rolname name, rolsuper bool); CREATE TEMP TABLE task_live (id bigint, owner int);
CREATE TEMP TABLE definition (id int); CREATE TEMP TABLE pg_proc (oid oid); CREATE TEMP TABLE pg_database (oid oid, datname name);
CREATE TEMP TABLE pg_extension (extname name, extowner oid); CREATE TEMP TABLE pg_namespace (oid oid, nspname name);
CREATE TYPE pg_temp.task_state AS ENUM ('completed');
CREATE FUNCTION pg_temp.now() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN PERFORM app.witness('pg_temp.now'); RETURN clock_timestamp(); END $$;
CREATE DOMAIN pg_temp.text AS pg_catalog.text CHECK (app.witness('pg_temp.text') IS NULL);
CREATE DOMAIN pg_temp.int4 AS pg_catalog.int4 CHECK (app.witness('pg_temp.int4') IS NULL);
CREATE DOMAIN pg_temp.bigint AS pg_catalog.int8 CHECK (app.witness('pg_temp.bigint') IS NULL);
SQL
	my $everything = <<'SQL';
SELECT orchestrator.define('baited', 'SELECT 1', 'sql', max_attempts => 2, retry_delay => '0') > 0;
SELECT orchestrator.define_queue('baited'), orchestrator.pause_queue('baited');
SELECT orchestrator.share_definition('baited', 'friend'), orchestrator.share_queue('baited', 'friend');
SELECT orchestrator.unshare_definition('baited', 'friend');
SELECT orchestrator.enqueue('baited', '{}', key => 'a', queue => 'baited') AS a, orchestrator.enqueue('baited', '{}', key => 'a', queue => 'baited') AS b \gset
SELECT orchestrator.enqueue_many('baited', ARRAY['1', '2']::pg_catalog.jsonb[], keys => ARRAY['x', 'y'], queue => 'baited');
SELECT orchestrator.pause(:a), orchestrator.resume(:a), orchestrator.cancel(:a, 'why'), orchestrator.retry(:a);
SELECT orchestrator.pause_many('baited'), orchestrator.resume_many('baited'), orchestrator.cancel_many('baited', reason => 'x'), orchestrator.retry_many('baited', states => '{cancelled}');
SELECT orchestrator.resume_queue('baited');
SELECT state FROM orchestrator.wait(:a, '10 s');
SELECT orchestrator.run('SELECT 1/0', max_attempts => 2) AS r \gset
SELECT state FROM orchestrator.wait(:r, '10 s');
SELECT pg_catalog.count(*) FROM orchestrator.task_status;
SELECT pg_catalog.count(*) FROM orchestrator.trace;
SELECT pg_catalog.count(*) FROM orchestrator.queue_status;
SELECT pg_catalog.count(*) FROM orchestrator.definition_status;
SELECT orchestrator.drop_definition('baited', force => true);
DELETE FROM app.nothing;
SQL
	$everything =~ s/^DELETE.*\n//m;
	$node->psql_as('app', "SET search_path = app, public, pg_temp, pg_catalog;\n$bait$everything");
	$node->safe_psql('postgres', q{ALTER ROLE app SET search_path = app, public, pg_temp, pg_catalog});
	$node->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'});
	(my $steps = "$bait") =~ s/^SET.*\n//m;
	$node->psql_as('app', <<'SQL');
CREATE FUNCTION app.throws(jsonb) RETURNS void LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; END';
SELECT orchestrator.define('throws', 'app.throws', max_attempts => 2, retry_delay => '0');
SQL
	foreach my $round (1 .. 2)
	{
		my $r = outcome($node, 'app', "orchestrator.run(\$q\$ DO \$d\$ BEGIN\n$steps\nEND \$d\$ \$q\$)");
		is($r->{state}, 'completed', 'the bait of pg_temp was laid') or diag(explain($r));
		is(outcome($node, 'app', q{orchestrator.enqueue('throws')})->{state}, 'failed', 'a step fails and is retried');
		is(outcome($node, 'app', q{orchestrator.run('SELECT orchestrator.cancel(orchestrator.enqueue(''who'', key => ''k''))')})->{state},
			'completed', 'a step enqueues and cancels');
	}
	(my $again = $everything) =~ s{key => .a.}{key => 'b'}g;
	$again =~ s{keys => ARRAY\[.x., .y.\]}{keys => ARRAY['v', 'w']};
	$node->psql_as('app', $again);
	$node->safe_psql('postgres', q{ALTER ROLE app RESET search_path});
	is($node->safe_psql('postgres', q{SELECT string_agg(DISTINCT what || ' as ' || c, ', ') FROM app.seen WHERE c NOT IN ('app', 'friend') OR superuser = 'on'}), '',
		'no bait was taken by anybody but app itself');
};

subtest 'who a task runs as' => sub {
	$node->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'; GRANT USAGE ON SCHEMA shop TO PUBLIC; GRANT CREATE ON SCHEMA shop TO definer});
	$node->psql_as('definer', <<'SQL');
SELECT orchestrator.define('who', 'app.who');
CREATE FUNCTION shop.order() RETURNS bigint LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
  AS $$ SELECT orchestrator.enqueue('who') $$;
SQL
	my $id = $node->psql_as('app', 'SELECT shop.order()');
	is_deeply(outcome_of($node, 'definer', $id)->{output}, { s => 'definer', c => 'definer', superuser => 'off', role => 'none' },
		'enqueued by a SECURITY DEFINER function: its owner, wholly');
	like(refused($node, 'app', "SELECT orchestrator.wait($id)"), qr/does not exist/, 'whose task it is');

	$id = $node->psql_as('app', q{SET ROLE friend; SELECT orchestrator.enqueue('who')});
	is_deeply(outcome_of($node, 'friend', $id)->{output}, { s => 'friend', c => 'friend', superuser => 'off', role => 'none' },
		'enqueued after SET ROLE: that role, wholly');
	is(outcome_of($node, 'app', $id)->{state}, 'completed', 'and its members see it');

	SKIP:
	{
		skip 'roles without LOGIN run from 17 on', 1 if $node->pg_version >= 17;
		like(refused($node, 'app', q{SET ROLE team; SELECT orchestrator.run('SELECT 1')}),
			qr/role "team" cannot run tasks: it may not log in.*HINT:.*ALTER ROLE team LOGIN/s, 'a role without LOGIN: refused, with a hint');
	}
	$node->safe_psql('postgres', <<'SQL');
CREATE ROLE far LOGIN;
SELECT orchestrator.grant_usage('far');
GRANT far TO app;
REVOKE CONNECT ON DATABASE postgres FROM PUBLIC;
GRANT CONNECT ON DATABASE postgres TO app, stranger, friend, definer;
SQL
	like(refused($node, 'app', q{SET ROLE far; SELECT orchestrator.run('SELECT 1')}),
		qr/role "far" cannot run tasks: it may not connect.*HINT:.*GRANT CONNECT ON DATABASE postgres TO far/s,
		'a role without CONNECT: refused, with a hint');
	$node->safe_psql('postgres', 'GRANT CONNECT ON DATABASE postgres TO PUBLIC');
};

# A role that cannot run what it enqueued any more.
subtest 'a role that is gone' => sub {
	my %change = (
		nologin   => 'ALTER ROLE %1$s NOLOGIN',
		renamed   => 'ALTER ROLE %1$s RENAME TO %1$s_was',
		dropped   => 'DROP OWNED BY %1$s; DROP ROLE %1$s',
		replaced  => 'DROP OWNED BY %1$s; DROP ROLE %1$s; CREATE ROLE %1$s LOGIN SUPERUSER',
		noconnect => 'REVOKE CONNECT ON DATABASE postgres FROM PUBLIC; GRANT CONNECT ON DATABASE postgres TO app, stranger');
	delete $change{nologin} if $node->pg_version >= 17;

	foreach my $warm (0, 1)
	{
		my %task;
		my @roles = map { "v$warm$_" } sort keys %change;
		foreach my $kind (sort keys %change)
		{
			$node->plain_role("v$warm$kind");
			outcome($node, "v$warm$kind", q{orchestrator.run('SELECT 1')}) if $warm;
		}
		$node->safe_psql('postgres', q{SELECT orchestrator.pause_queue('default')});
		foreach my $kind (sort keys %change)
		{
			$task{$kind} = $node->psql_as("v$warm$kind", q{SELECT orchestrator.run('SELECT 1')});
		}
		my $other = $node->psql_as('app', q{SELECT orchestrator.run('SELECT 1')});
		$node->safe_psql('postgres', sprintf($change{$_}, "v$warm$_")) foreach sort keys %change;
		$node->safe_psql('postgres', q{SELECT orchestrator.resume_queue('default')});

		is(outcome_of($node, 'app', $other)->{state}, 'completed', 'tasks of others run');
		foreach my $kind (sort keys %change)
		{
			my $r = outcome_of($node, 'postgres', $task{$kind}, timeout => 5);
			my $how = $warm ? 'an executor of it was there' : 'none was there';
			is($r->{state} . ' ' . (sqlstate_of($r) || ''), 'failed OR005', "role $kind, $how: its task fails") or diag(explain($r));
			note($r->{error}{message}) if $r->{error};
		}
		is(outcome($node, 'app', q{orchestrator.run('SELECT 1')})->{state}, 'completed', 'and later ones of others, too');
		$node->safe_psql('postgres', 'GRANT CONNECT ON DATABASE postgres TO PUBLIC');
	}
	cmp_ok(scalar(() = slurp_file($node->logfile) =~ /FATAL:/g), '<', 30, 'the log is not full of it');
};

subtest 'superuser_tasks = off' => sub {
	is(outcome($node, 'postgres', q{orchestrator.run('SELECT current_setting(''is_superuser'')')})->{output}[0]{current_setting}, 'on',
		'as shipped, a superuser may run tasks');
	$node->safe_psql('postgres', q{SELECT orchestrator.pause_queue('default')});
	$node->plain_role('rising');
	my $of_superuser = $node->safe_psql('postgres', q{SELECT orchestrator.run('SELECT 1')});
	my $of_rising = $node->psql_as('rising', q{SELECT orchestrator.run('SELECT 1')});
	my $of_app = $node->psql_as('app', q{SELECT orchestrator.run('SELECT 1')});
	$node->set('orchestrator.superuser_tasks' => 'off');
	$node->restart;
	like(refused($node, 'postgres', q{SELECT orchestrator.run('SELECT 1')}), qr/tasks of superusers are not allowed/, 'refused when enqueued');
	like(refused($node, 'postgres', q{SELECT orchestrator.enqueue_workflow(ARRAY[orchestrator.step('a', 'SELECT 1', 'sql')])}),
		qr/tasks of superusers are not allowed/, 'a workflow, too');
	$node->safe_psql('postgres', 'ALTER ROLE rising SUPERUSER');
	$node->safe_psql('postgres', q{SELECT orchestrator.resume_queue('default')});
	foreach my $id ($of_superuser, $of_rising)
	{
		my $r = outcome_of($node, 'postgres', $id, timeout => 5);
		is($r->{state} . ' ' . (sqlstate_of($r) || ''), 'failed OR005', 'refused at the run') or diag(explain($r));
	}
	is(outcome_of($node, 'app', $of_app)->{state}, 'completed', 'others run');
};

$node->stop;
done_testing();
