# The session that steps share: what one leaves does not reach the next, whether
# they are batched in one transaction, in the fast lane or alone; and what a
# role's own settings do to the engine.

use strict;
use warnings;

use List::Util qw(sum0);
use OrchestratorStep;
use OrchestratorTest;
use Test::More;

my $node = new_node(
	name                              => 'session',
	'orchestrator.executors_per_role' => 1,
	'orchestrator.max_executors'      => 8);
$node->start;
$node->create_extension;
$node->plain_role('app');
$node->safe_psql('postgres', <<'SQL');
CREATE ROLE team NOLOGIN;
GRANT team TO app;
CREATE SCHEMA app AUTHORIZATION app;
GRANT USAGE, CREATE ON SCHEMA app TO team;
CREATE DATABASE other;
SQL

# ---------------------------------------------------------------- leftovers

my %dirt = (
	set               => q{SET work_mem = '77MB'},
	set_config        => q{SELECT set_config('my.setting', 'left', false)},
	set_local         => q{SET LOCAL work_mem = '78MB'},
	set_config_local  => q{SELECT set_config('my.setting', 'left', true)},
	search_path       => q{SET search_path = app, pg_temp},
	role              => q{SET ROLE team},
	role_local        => q{SET LOCAL ROLE team},
	authorization     => q{SET SESSION AUTHORIZATION app},
	read_only         => q{SET TRANSACTION READ ONLY},
	read_only_default => q{SET default_transaction_read_only = on},
	characteristics   => q{SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY},
	temp_table        => q{CREATE TEMP TABLE left_table (i int)},
	temp_commit       => q{CREATE TEMP TABLE left_until_commit (i int) ON COMMIT DROP},
	temp_view         => q{CREATE TEMP VIEW pg_class AS SELECT 1 AS oid},
	temp_function     => q{CREATE FUNCTION pg_temp.left_function() RETURNS int LANGUAGE sql AS 'SELECT 1'},
	temp_type         => q{CREATE TYPE pg_temp.left_type AS ENUM ('x')},
	temp_sequence     => q{CREATE TEMP SEQUENCE left_sequence},
	prepare           => q{PREPARE left_plan AS SELECT 1},
	hold              => q{DECLARE left_cursor CURSOR WITH HOLD FOR SELECT 1},
	cursor            => q{DECLARE left_plain CURSOR FOR SELECT 1},
	advisory          => q{SELECT pg_advisory_lock(4711)},
	advisory_shared   => q{SELECT pg_advisory_lock_shared(4712), pg_advisory_lock_shared(4712)},
	immediate         => q{SET CONSTRAINTS ALL IMMEDIATE},
	deferred          => q{SET CONSTRAINTS ALL DEFERRED},
	deferred_one      => q{SET CONSTRAINTS app.at_once DEFERRED},
	timeout           => q{SET statement_timeout = '1ms'},
	lock_timeout      => q{SET lock_timeout = '1ms'},
	messages          => q{SET client_min_messages = error},
	date              => q{SET DateStyle = 'SQL, DMY'},
	lastval           => q{SELECT nextval('app.numbers')},
);

$node->psql_as('app', <<'SQL');
CREATE SEQUENCE app.numbers;
CREATE TABLE app.c (i int);
GRANT ALL ON app.c, app.numbers TO team;
CREATE FUNCTION app.fired() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM set_config('my.fired', current_setting('my.fired', true) || TG_NAME || ' ', true);
  RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER at_once AFTER INSERT ON app.c DEFERRABLE INITIALLY IMMEDIATE FOR EACH ROW EXECUTE FUNCTION app.fired();
CREATE CONSTRAINT TRIGGER at_end AFTER INSERT ON app.c DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION app.fired();

-- Everything that a step could find.
CREATE FUNCTION app.look(jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  v_last text := 'none';
BEGIN
  BEGIN
    v_last := lastval()::text;
  EXCEPTION WHEN OTHERS THEN NULL;
  END;
  PERFORM set_config('my.fired', '', true);
  INSERT INTO app.c VALUES (1);
  RETURN jsonb_build_object(
    'session_user', session_user, 'current_user', current_user, 'role', current_setting('role'),
    'work_mem', current_setting('work_mem'), 'my.setting', coalesce(current_setting('my.setting', true), ''),
    'search_path', current_setting('search_path'), 'read_only', current_setting('transaction_read_only'),
    'default_read_only', current_setting('default_transaction_read_only'), 'datestyle', current_setting('DateStyle'),
    'timeout', current_setting('statement_timeout') || current_setting('lock_timeout'), 'messages', current_setting('client_min_messages'),
    'temp', (SELECT count(*) FROM pg_catalog.pg_class WHERE relnamespace = pg_my_temp_schema())
            + (SELECT count(*) FROM pg_catalog.pg_proc WHERE pronamespace = pg_my_temp_schema())
            + (SELECT count(*) FROM pg_catalog.pg_type WHERE typnamespace = pg_my_temp_schema()),
    'prepared', (SELECT count(*) FROM pg_prepared_statements), 'cursors', (SELECT count(*) FROM pg_cursors WHERE name !~ '^<'),
    'advisory', (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
    'fired', current_setting('my.fired'), 'lastval', v_last, 'xid', txid_current());
END $$;
SELECT orchestrator.define('look', 'app.look');
SQL

foreach my $name (sort keys %dirt)
{
	(my $quoted = $dirt{$name}) =~ s/'/''/g;
	$node->psql_as('app', <<"SQL");
CREATE FUNCTION app.$name(input jsonb) RETURNS jsonb LANGUAGE plpgsql AS \$\$
BEGIN
  EXECUTE '$quoted';
  IF input ? 'fail' THEN RAISE EXCEPTION 'failed'; END IF;
  RETURN input;
END \$\$;
CREATE PROCEDURE app.p_$name(input jsonb) LANGUAGE plpgsql AS \$\$
BEGIN
  EXECUTE '$quoted';
  COMMIT;
  IF input ? 'fail' THEN RAISE EXCEPTION 'failed'; END IF;
END \$\$;
SELECT orchestrator.define('$name', 'app.$name', max_attempts => 1), orchestrator.define('p_$name', 'app.p_$name', 'procedure', max_attempts => 1);
SQL
}

my $clean = outcome($node, 'app', q{orchestrator.enqueue('look')})->{output};
delete $clean->{xid};
is($clean->{current_user}, 'app', 'a look at a clean session');
is($clean->{fired}, 'at_once ', 'in which constraints are as they were made');

$node->psql_as('app', q{SELECT orchestrator.define_queue('batch')});

# Enqueue while the queue is paused, so that they are claimed together: a step
# that leaves something, a look, the next one, ...
sub batch
{
	my ($name, $prefix, $input) = @_;
	my @names = sort keys %dirt;
	my $sql = "SELECT orchestrator.pause_queue('batch');\n";
	$sql .= "SELECT orchestrator.enqueue('$prefix$_', '$input', queue => 'batch');\nSELECT orchestrator.enqueue('look', queue => 'batch');\n"
	  foreach @names;
	my @ids = split /\n/, $node->psql_as('app', "$sql SELECT orchestrator.resume_queue('batch')");
	@ids = grep { /^\d+$/ } @ids;
	my %transactions;
	foreach my $i (0 .. $#names)
	{
		my $dirty = outcome_of($node, 'app', $ids[ 2 * $i ], timeout => 10);
		my $after = outcome_of($node, 'app', $ids[ 2 * $i + 1 ], timeout => 10);
		BAIL_OUT("$name: a task is stuck after $names[$i]") if $after->{state} eq 'pending';
		my $state = $input =~ /fail/ ? 'failed' : 'completed';
		# Some of them cannot run inside a step, or not by a procedure.
		note("$name: $names[$i]: $dirty->{error}{message}") if $dirty->{state} ne $state;
		$transactions{ delete $after->{output}{xid} }++ if $after->{output};
		is_deeply($after->{output}, $clean, "$name: nothing is left of $names[$i]")
		  or diag(explain($after->{error}));
	}
	my $shared = sum0(grep { $_ > 1 } values %transactions);
	cmp_ok($shared, '>', @names / 2, "$name: most steps shared a transaction") if $name !~ /warm/ && !$prefix;
	note("$name: " . join ' ', values %transactions);
	return;
}

foreach my $lane (qw(on off))
{
	$node->set('orchestrator.fast_lane' => $lane);
	$node->reload;
	batch("fast lane $lane, warm up", '', '{}');
	batch("fast lane $lane", '', '{}');
	batch("fast lane $lane, failed", '', '{"fail": 1}');
}
batch('procedure', 'p_', '{}');
batch('procedure, failed', 'p_', '{"fail": 1}');
is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'}), 0, 'no advisory lock stays');

# ---------------------------------------------------------------- settings of the role (F56)

my %hostile = (
	none             => {},
	read_only        => { default_transaction_read_only => 'on' },
	serializable     => { default_transaction_isolation => 'serializable' },
	repeatable_read  => { default_transaction_isolation => q{'repeatable read'} },
	deferrable       => { default_transaction_isolation => 'serializable', default_transaction_read_only => 'on', default_transaction_deferrable => 'on' },
	evil_path        => { search_path => 'evil, pg_temp, public, pg_catalog' },
	no_path          => { search_path => q{''} },
	strings          => { standard_conforming_strings => 'off', escape_string_warning => 'off', backslash_quote => 'off' },
	styles           => { DateStyle => q{'SQL, DMY'}, IntervalStyle => 'iso_8601', TimeZone => q{'Asia/Kathmandu'}, bytea_output => 'escape', extra_float_digits => '-15' },
	row_security     => { row_security => 'off' },
	synchronous      => { synchronous_commit => 'off' },
	timeouts         => { statement_timeout => q{'20s'}, lock_timeout => q{'10s'}, idle_in_transaction_session_timeout => q{'1ms'}, idle_session_timeout => q{'30s'} },
	nulls            => { array_nulls => 'off', transform_null_equals => 'on' },
	plans            => { plan_cache_mode => 'force_generic_plan', enable_indexscan => 'off', enable_indexonlyscan => 'off', enable_bitmapscan => 'off' },
	custom_plans     => { plan_cache_mode => 'force_custom_plan', enable_seqscan => 'off', enable_hashjoin => 'off', enable_sort => 'off' },
	quiet            => { client_min_messages => 'error', check_function_bodies => 'off', quote_all_identifiers => 'on' },
	parallel         => { force_parallel_mode => 'on', parallel_setup_cost => '0', parallel_tuple_cost => '0', min_parallel_table_scan_size => '0' },
	inheritance      => { constraint_exclusion => 'on', enable_partition_pruning => 'off', enable_partitionwise_join => 'on' });
if ($node->pg_version >= 16)
{
	$hostile{parallel}{debug_parallel_query} = delete $hostile{parallel}{force_parallel_mode};
}

$node->safe_psql('postgres', <<'SQL');
CREATE SCHEMA evil;
GRANT ALL ON SCHEMA evil TO PUBLIC;
CREATE TABLE evil.task_live (id bigint); CREATE TABLE evil.definition (id int); CREATE TABLE evil.task (id bigint);
CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''evil''; END';
CREATE FUNCTION evil.format(text, text) RETURNS text LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''evil''; END';
CREATE FUNCTION evil.eq(int, int) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''evil''; END';
CREATE OPERATOR evil.= (LEFTARG = int, RIGHTARG = int, FUNCTION = evil.eq);
CREATE FUNCTION evil.f(jsonb) RETURNS void LANGUAGE plpgsql AS 'BEGIN END';
CREATE TABLE public.effect (who name, what text);
GRANT ALL ON public.effect TO PUBLIC;
CREATE PROCEDURE public.commits(jsonb) LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO public.effect VALUES ('procedure', current_setting('transaction_isolation'));
  COMMIT;
  INSERT INTO public.effect VALUES ('procedure', current_setting('transaction_isolation'));
END $$;
SQL

# All basic operations, by one client that is as hostile as the executor.
my $basics = <<'SQL';
\set ON_ERROR_STOP 1
SELECT pg_catalog.set_config('default_transaction_read_only', 'off', false), pg_catalog.set_config('default_transaction_deferrable', 'off', false) \g /dev/null
SELECT orchestrator.define('works', 'SELECT $1 AS got', 'sql'), orchestrator.define('writes', 'INSERT INTO public.effect VALUES (current_user, $1 ->> ''what'')', 'sql'),
       orchestrator.define('fails', 'SELECT 1/0', 'sql', max_attempts => 2, retry_delay => '0'), orchestrator.define_queue('own', tenant => '$.tenant') \g /dev/null
SELECT orchestrator.enqueue('works', '{"a": ["b", null, "c\u00e9"]}', name => 'n', priority => 3, key => 'k1', metadata => '{"m": 1}') AS a \gset
SELECT orchestrator.enqueue('works', key => 'k1') AS again \gset
SELECT :again - :a;
SELECT state, output FROM orchestrator.wait(:a, '20 s');
SELECT orchestrator.enqueue('writes', '{"what": "x"}', queue => 'own') AS a \gset
SELECT state, output FROM orchestrator.wait(:a, '20 s');
SELECT orchestrator.enqueue('fails') AS a \gset
SELECT state, error ->> 'sqlstate' FROM orchestrator.wait(:a, '20 s');
SELECT orchestrator.retry(:a) \g /dev/null
SELECT state, error ->> 'sqlstate' FROM orchestrator.wait(:a, '20 s');
SELECT orchestrator.enqueue('works', delay => '1 hour') AS a \gset
SELECT orchestrator.pause(:a), orchestrator.resume(:a), orchestrator.cancel(:a);
SELECT pg_catalog.cardinality(orchestrator.enqueue_many('works', ARRAY['1', '2']::pg_catalog.jsonb[], keys => '{x,y}', delay => '1 hour'));
SELECT orchestrator.pause_many('works'), orchestrator.resume_many('works'), orchestrator.cancel_many('works');
SELECT orchestrator.enqueue('works', delay => '10 milliseconds', deadline => pg_catalog.clock_timestamp() + '1 hour') AS a \gset
SELECT state FROM orchestrator.wait(:a, '20 s');
SELECT orchestrator.run('VACUUM public.effect', kind => 'utility') AS a \gset
SELECT state FROM orchestrator.wait(:a, '20 s');
SELECT orchestrator.define('commits', 'public.commits', 'procedure', max_attempts => 1) AS v \gset
SELECT orchestrator.enqueue('commits') AS a \gset
SELECT state, error ->> 'message' FROM orchestrator.wait(:a, '20 s');
SQL
my $views = <<'SQL';
SELECT pg_catalog.count(*) > 3, pg_catalog.count(DISTINCT state) FROM orchestrator.task_status;
SELECT pg_catalog.count(*) > 10 FROM orchestrator.trace;
SELECT pg_catalog.count(*) FROM orchestrator.queue_status;
SELECT pg_catalog.count(*) >= 3 FROM orchestrator.definition_status;
SELECT pg_catalog.count(*) >= 1 FROM orchestrator.worker_status;
SQL
my %expected;

foreach my $name ('none', sort grep { $_ ne 'none' } keys %hostile)
{
	my $role = "role_$name";
	$node->plain_role($role);
	$node->safe_psql('postgres', "ALTER ROLE $role SET $_ = $hostile{$name}{$_}") foreach sort keys %{ $hostile{$name} };
	foreach my $part ([ basics => $basics ], [ views => $views ])
	{
		my ($what, $sql) = @$part;
		my ($status, $out, $err) = $node->psql('postgres', $sql, extra_params => [ '-U', $role ]);
		if ($what eq 'views' && $name eq 'row_security')
		{
			like($err, qr/would be affected by row-level security/, 'with row_security off the views refuse, as for any table');
			next;
		}
		$expected{$what} = $out if $name eq 'none';
		is($status, 0, "$what of a role with: $name") or diag($err);
		is($out, $expected{$what}, 'give the same answers');
	}
	is($node->safe_psql('postgres', "SELECT count(*) FROM effect WHERE who = '$role'"), 1, 'its step wrote');
}
is($node->safe_psql('postgres', q{SELECT string_agg(DISTINCT what, ',') FROM effect WHERE who = 'procedure'}), 'read committed', 'steps have the isolation of the engine, not of the role');
note($expected{$_}) foreach sort keys %expected;

# Settings of the database, and of an administrator.
$node->safe_psql('postgres', 'ALTER ROLE role_strings SUPERUSER; CREATE ROLE granted LOGIN');
$node->psql_as('role_strings', q{SELECT orchestrator.grant_usage('granted')});
is($node->psql_as('granted', q{SELECT orchestrator.define('x', 'SELECT 1', 'sql')}), 1, 'grants do not depend on how strings are written');
is($node->psql_as('role_strings', q{SELECT orchestrator.define('y', 'evil.f(jsonb)')}), 1, 'nor do the names of handlers');

# A role that is another one from its login on: what it enqueued as itself runs
# as itself.
$node->plain_role('doubled');
$node->safe_psql('postgres', 'GRANT team TO doubled; ALTER ROLE doubled SET role = team');
my $own = $node->safe_psql('postgres', q{SET ROLE doubled; SELECT orchestrator.run('SELECT current_user AS who')});
is(outcome_of($node, 'postgres', $own)->{output}[0]{who}, 'doubled', 'a role whose sessions begin as another one');

# Locks are waited for in a step as long as its role says, in its settle always.
$node->plain_role('impatient');
$node->safe_psql('postgres', q{ALTER ROLE impatient SET lock_timeout = '10ms'});
my $gate = session($node, 'postgres');
$gate->query('SELECT pg_advisory_lock(1)');
my $held = $node->psql_as('impatient', q{SELECT orchestrator.run('DO $$BEGIN PERFORM set_config(''lock_timeout'', ''0'', true), pg_advisory_xact_lock_shared(1); END$$')});
$node->wait_for("SELECT state = 'running' FROM orchestrator.task_status WHERE task_id = $held");
my $holder = session($node, 'impatient');
$holder->query("BEGIN; SELECT orchestrator.pause($held)");
$gate->query('SELECT pg_advisory_unlock(1)');
$node->wait_for(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'orchestrator executor' AND wait_event_type = 'Lock' AND wait_event <> 'advisory'}, 't', 'the settle waits for whoever has the row');
$node->wait_for(q{SELECT bool_or(clock_timestamp() > waitstart + interval '50 ms') FROM pg_locks WHERE NOT granted}, 't', 'for a while');
$holder->query('ROLLBACK');
is(outcome_of($node, 'impatient', $held)->{state}, 'completed', 'longer than lock_timeout, if need be');
is(sqlstate_of(outcome($node, 'impatient', q{orchestrator.run('SELECT pg_sleep(60)', timeout => '100 ms')})), 'OR004', 'and the next step is cancelled for its own reasons');
$gate->query('SELECT pg_advisory_lock(1)');
is(sqlstate_of(outcome($node, 'impatient', q{orchestrator.run('SELECT pg_advisory_lock(1)')})), '55P03', 'its steps do not wait longer');
$_->quit foreach $gate, $holder;

# What the database says of transactions is about clients.
$node->safe_psql('postgres', q{ALTER DATABASE postgres SET default_transaction_read_only = on; ALTER DATABASE postgres SET default_transaction_isolation = 'serializable'});
$node->restart;
{
	local $ENV{PGOPTIONS} = '-c default_transaction_read_only=off';
	is(outcome($node, 'postgres', q{orchestrator.run('SELECT 1', delay => '100 ms')})->{state}, 'completed', 'a supervisor may write where clients may not');
	$node->safe_psql('postgres', 'ALTER DATABASE postgres RESET ALL');
}
$node->restart;

# The script has no character that an encoding lacks.
$node->safe_psql('postgres', q{CREATE DATABASE japanese ENCODING 'EUC_JP' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0});
$node->create_extension('japanese');
is(outcome($node, 'postgres', q{orchestrator.run('SELECT 1')}, database => 'japanese')->{state}, 'completed', 'a database that is not UTF-8');

# What a role may well set: its time limit, also for steps.
$node->plain_role('hasty');
$node->safe_psql('postgres', q{ALTER ROLE hasty SET statement_timeout = '200ms'});
my $slow = $node->psql_as('hasty', q{SELECT orchestrator.run('SELECT pg_sleep(30)')});
measure_ok(5, 'a step of a role with statement_timeout ends', sub {
		is(outcome_of($node, 'postgres', $slow)->{state}, 'failed', 'statement_timeout of the role holds for its steps');
	});

# What must not follow a role's settings: what a call of the engine, or the end of
# a step, has told is there after a crash (F08).
$node->set(wal_writer_delay => '10s');
$node->reload;
$node->plain_role('careless');
$node->safe_psql('postgres', 'ALTER ROLE careless SET synchronous_commit = off');
my $done = outcome($node, 'careless', q{orchestrator.run('INSERT INTO public.effect VALUES (current_user, ''kept'')')});
my %kept = (enqueue => 'run(\'SELECT 1\', delay => \'1 hour\')',
	enqueue_workflow => 'enqueue_workflow(ARRAY[orchestrator.step(\'a\', \'SELECT 1\', \'sql\')], delay => \'1 hour\')');
my %id;
foreach my $call (sort keys %kept)
{
	is($node->psql_as('careless', "BEGIN; SELECT orchestrator.$kept{$call} > 0; SHOW synchronous_commit; ROLLBACK"), "t\nlocal", "$call makes its transaction durable");
	$id{$call} = $node->psql_as('careless', "SELECT orchestrator.$kept{$call}");
}
is($node->psql_as('careless', "BEGIN; SELECT orchestrator.cancel($id{enqueue}); SHOW synchronous_commit; ROLLBACK"), "cancelled\nlocal", 'so does cancel()');
is($node->psql_as('careless', 'SHOW synchronous_commit'), 'off', 'and no other');
$node->psql_as('careless', "SELECT orchestrator.cancel($id{enqueue})");
$node->stop('immediate');
$node->start;
is($node->safe_psql('postgres', "SELECT string_agg(state::text, ',' ORDER BY id) FROM orchestrator.task WHERE id IN ($done->{id}, $id{enqueue}, $id{enqueue_workflow})"),
	'completed,cancelled,scheduled', 'what was told is there after a crash');
is($node->safe_psql('postgres', q{SELECT count(*) FROM effect WHERE what = 'kept'}), 1, 'the effect, too');

$node->stop;
done_testing();
