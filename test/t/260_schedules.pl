# Schedules with the real pg_cron: who makes its job, ticks of a real minute,
# each slot once whatever ticks, dies or does to the clock, dumps, lost roles.

use strict;
use warnings;

use IPC::Run ();
use OrchestratorStep;
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

plan skip_all => 'pg_cron is not installed' unless has_pg_cron();
my $node = new_cron_node(name => 'schedules');

# A minute of its clock ends when the tests that start it again are through.
start_with_clock($node, AHEAD => (45 - time) % 60);
$node->safe_psql('postgres', 'CREATE DATABASE second');
$node->safe_psql('postgres', "CREATE DATABASE $_") foreach qw(by_hand apart);
$node->create_extension($_) foreach qw(postgres second by_hand apart);
$node->plain_role('app');
foreach my $database (qw(second by_hand apart))
{
	$node->safe_psql($database, q{SELECT orchestrator.grant_usage('app')});
}

# ---------------------------------------------------------------- the job

my $work = q{SELECT orchestrator.define('work', 'SELECT pg_sleep(0)', 'sql')};
$node->psql_as('app', $work, database => $_) foreach qw(postgres second by_hand apart);

like(refused($node, 'app', q{SELECT orchestrator.schedule('minute', '* * * * *', 'work')}),
	qr/needs? the extension pg_cron.*CREATE EXTENSION pg_cron/s, 'pg_cron is loaded and not created');
$node->safe_psql('postgres', 'CREATE EXTENSION pg_cron');
$node->safe_psql('postgres', <<'SQL');
UPDATE orchestrator.schedule_tick SET last_at = NULL;
CREATE FUNCTION deny() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE insufficient_privilege; END $$;
CREATE TRIGGER deny BEFORE INSERT ON cron.job EXECUTE FUNCTION deny();
SQL
like(refused($node, 'app', q{SELECT orchestrator.schedule('minute', '* * * * *', 'work')}),
	qr/role "\w+" may not make a job of pg_cron.*SELECT cron\.schedule_in_database\('orchestrator\.tick in postgres', /s, 'pg_cron that refuses the owner of the extension');
$node->safe_psql('postgres', 'DROP FUNCTION deny CASCADE; SELECT orchestrator.tick()');   # a tick alone is not enough, here
my $next = $node->psql_as('app', q{SELECT orchestrator.schedule('minute', '* * * * *', 'work') > now()});
is($next, 't', 'a plain role, with no right to pg_cron, schedules');
is($node->safe_psql('postgres', 'SELECT schedule, command, database, username = current_user, active, jobname FROM cron.job'),
	'* * * * *|SELECT orchestrator.tick()|postgres|t|t|orchestrator.tick in postgres', 'which made the job, as the owner of the extension');
$node->psql_as('app', q{SELECT orchestrator.schedule('another', '@daily', 'work')});
is($node->safe_psql('postgres', 'SELECT count(*) FROM cron.job'), 1, 'there is one job');

my $refusal = refused($node, 'app', q{SELECT orchestrator.schedule('minute', '* * * * *', 'work')}, database => 'second');
like($refusal, qr/nothing ticks the schedules of this database: pg_cron is in database "postgres"/, 'another database cannot make its job');
my ($line) = $refusal =~ /(SELECT cron\.schedule_in_database\(.*?\));/;
ok($line, 'the refusal has the line for an administrator') or diag($refusal);
$node->safe_psql('postgres', $line);
is($node->safe_psql('postgres', q{SELECT count(DISTINCT jobname) FROM cron.job WHERE database IN ('postgres', 'second')}), 2, 'which makes it');

# ---------------------------------------------------------------- exactly once

# A database that only we tick, with clocks up to two hours ahead, and back.
$node->safe_psql('by_hand', 'SELECT orchestrator.tick()');
$node->psql_as('app', <<'SQL', database => 'by_hand');
SELECT orchestrator.schedule('s' || n, CASE n % 3 WHEN 0 THEN '* * * * *' WHEN 1 THEN '*/7 * * * *' ELSE '5-59/10 * * * *' END, 'work',
                             timezone => CASE n % 2 WHEN 0 THEN 'Asia/Kolkata' ELSE 'America/New_York' END, catch_up => 'all', overlap => 'parallel')
FROM generate_series(1, 20) n;
SELECT orchestrator.schedule('queue' || n, '*/2 * * * *', 'work', catch_up => 'all', overlap => 'queue') FROM generate_series(1, 5) n;
SQL
my $script = $node->basedir . '/tick.pgbench';
append_to_file($script, <<'END');
\set ahead random(0, 7200)
SET orchestrator.test_clock_offset = :ahead;
SELECT orchestrator.tick();
END

sub start_ticking
{
	my ($transactions) = @_;
	my ($out, $in) = ('', '');
	return IPC::Run::start([ 'pgbench', '-n', '-c', 8, '-t', $transactions, '-f', $script, $node->connstr('by_hand') ], '<', \$in, '>&', \$out);
}

foreach my $round (1 .. 3)
{
	my $ticking = start_ticking(100000);
	usleep(300_000 + 300_000 * $round);
	my $pid = $node->safe_psql('postgres', q{SELECT pid FROM pg_stat_activity WHERE datname = 'by_hand' AND backend_type = 'client backend' AND query ~ 'tick' ORDER BY random() LIMIT 1});
	is(kill('KILL', $pid), 1, "round $round: a tick is killed, and the server starts again");
	$ticking->finish;
	ok($node->poll_query_until('by_hand', 'SELECT true'), 'it is back');
}
ok(start_ticking(100)->finish, 'eight tick at once');
$node->safe_psql('by_hand', 'SET orchestrator.test_clock_offset = 7200; SELECT orchestrator.tick()');

my $wrong = <<'SQL';
SELECT s.name, cardinality(e.slots), cardinality(f.slots)
FROM orchestrator.schedule s,
LATERAL (SELECT ARRAY(SELECT t FROM orchestrator.schedule_times(s.cron, s.timezone, s.created_at, 1000) t WHERE t <= s.decided_until ORDER BY t) AS slots) e,
LATERAL (SELECT ARRAY(SELECT (x.metadata ->> 'slot')::timestamptz FROM orchestrator.task x WHERE x.name = s.name ORDER BY 1) AS slots) f
WHERE e.slots <> f.slots OR cardinality(e.slots) < 10;
SQL
# A slot that waits starts with the end of the task before or, where a tick has
# the schedule just then, with the next tick.
my $left;
foreach my $turn (1 .. 1000)
{
	$node->safe_psql('by_hand', 'SET orchestrator.test_clock_offset = 7200; SELECT orchestrator.tick()');
	$left = $node->safe_psql('by_hand', q{SELECT (SELECT count(*) FROM orchestrator.task WHERE live AND name LIKE 'queue%') + (SELECT sum(cardinality(waiting)) FROM orchestrator.schedule)});
	last if $left == 0;
	usleep(50_000);
}
is($left, 0, 'the queues run dry');
is($node->safe_psql('by_hand', $wrong), '', 'each slot of each schedule has one task');
is($node->safe_psql('by_hand', <<'SQL'), '', 'those of a queue ran one after the other, in order');
SELECT name, slot FROM (
  SELECT name, metadata ->> 'slot' AS slot, started_at < lag(finished_at) OVER (PARTITION BY name ORDER BY id) OR metadata ->> 'slot' < lag(metadata ->> 'slot') OVER (PARTITION BY name ORDER BY id) AS bad
  FROM orchestrator.task WHERE name LIKE 'queue%') x
WHERE bad;
SQL
is($node->safe_psql('by_hand', q{SELECT count(*) FROM orchestrator.schedule WHERE error IS NOT NULL OR skipped + missed + cardinality(waiting) > 0}), 0, 'none failed, was skipped or missed');
note($node->safe_psql('by_hand', q{SELECT count(*) FROM orchestrator.task}) . ' tasks');

# A run of a workflow is a task as any other.
$node->safe_psql('apart', 'SELECT orchestrator.tick()');
$node->psql_as('app', q{SELECT orchestrator.define_workflow('flow', ARRAY[orchestrator.step('a', 'SELECT 1', 'sql'), orchestrator.step('b', 'SELECT 2', 'sql', needs => '{a}')]);
	SELECT orchestrator.schedule('flow', '@yearly', 'flow')}, database => 'apart');
is(outcome($node, 'app', q{orchestrator.run_now('flow')}, database => 'apart')->{state}, 'completed', 'a workflow is scheduled as well');

# Somebody sits on the task that is to be replaced: that schedule has to wait,
# the tick and the other schedules do not.
$node->psql_as('app', <<'SQL', database => 'apart');
SELECT orchestrator.define('slow', 'SELECT pg_sleep(600)', 'sql');
SELECT orchestrator.schedule('held', '@yearly', 'slow', overlap => 'replace', catch_up_window => '1 year');
SELECT orchestrator.schedule('free', '@yearly', 'work', catch_up_window => '1 year');
SQL
my $held = $node->psql_as('app', q{SELECT orchestrator.run_now('held')}, database => 'apart');
my $holder = session($node, 'app', 'apart');
$holder->query("BEGIN; SELECT 1 FROM (SELECT orchestrator.pause($held)) x");
measure_ok(3, 'a tick', sub { $node->safe_psql('apart', q{SET orchestrator.test_clock_offset = '366d'; SELECT orchestrator.tick()}) });
is($node->safe_psql('apart', q{SELECT schedule, enqueued, state, error ->> 'sqlstate' FROM orchestrator.schedule_status WHERE schedule IN ('free', 'held') ORDER BY 1}),
	"free|1|active|\nheld|1|failing|55P03", 'one schedule could not lock its task');
$holder->query('ROLLBACK');
$holder->quit;
$node->safe_psql('apart', q{SET orchestrator.test_clock_offset = '367d'; SELECT orchestrator.tick()});
is($node->safe_psql('apart', qq{SELECT s.enqueued, s.error, s.last_task <> $held, t.state FROM orchestrator.schedule s, orchestrator.task t WHERE s.name = 'held' AND t.id = $held}),
	'2||t|cancelled', 'a later tick does');

# ---------------------------------------------------------------- dump, roles

my $dump = $node->basedir . '/schedules.dump';
$node->psql_as('app', q{SELECT orchestrator.pause_schedule('s2')}, database => 'by_hand');
command_ok([ 'pg_dump', '-Fc', '-f', $dump, '-d', $node->connstr('by_hand') ], 'pg_dump');
$node->safe_psql('postgres', 'CREATE DATABASE copy');
command_ok([ 'pg_restore', '--exit-on-error', '-d', $node->connstr('copy'), $dump ], 'pg_restore');
my $all = 'SELECT to_jsonb(s) FROM orchestrator.schedule s ORDER BY id';
is($node->safe_psql('copy', $all), $node->safe_psql('by_hand', $all), 'the schedules are as they were');
my $later = q{SET orchestrator.test_clock_offset = 14400; SELECT orchestrator.tick()};
is($node->safe_psql('copy', $later), 0, 'in a copy nothing is due');
like(refused($node, 'app', q{SELECT orchestrator.schedule('new', '@daily', 'work')}, database => 'copy'), qr/nothing ticks/, 'nor was it ticked');
$node->safe_psql('copy', 'SELECT orchestrator.activate()');
cmp_ok($node->safe_psql('copy', $later), '>', 800, 'until activate()');
ok($node->poll_query_until('copy', q{SELECT count(*) = 0 FROM orchestrator.task WHERE live AND name LIKE 'queue%'}), 'its queues run dry, too');
is($node->safe_psql('copy', $wrong), '', 'then it goes on, each slot once');
$node->psql_as('app', q{SELECT orchestrator.schedule('new', '@daily', 'work')}, database => 'copy');
is($node->safe_psql('copy', q{SELECT count(*) - count(DISTINCT id) FROM orchestrator.schedule}), 0, 'and new ones have new ids');

$node->safe_psql('copy', q{CREATE ROLE passing LOGIN; SELECT orchestrator.grant_usage('passing')});
$node->psql_as('passing', "$work; SELECT orchestrator.schedule('left', '* * * * *', 'work')", database => 'copy');
$node->safe_psql('copy', 'DROP OWNED BY passing; DROP ROLE passing');
my $status = q{SELECT state, problem FROM orchestrator.schedule_status WHERE schedule = 'left'};
is($node->safe_psql('copy', $status), 'failing|role "passing" was dropped or renamed', 'a role can be dropped; the view says so');
cmp_ok($node->safe_psql('copy', q{SET orchestrator.test_clock_offset = 15000; SELECT orchestrator.tick()}), '>', 0, 'others go on');
is($node->safe_psql('copy', q{SELECT error ->> 'sqlstate' FROM orchestrator.schedule_status WHERE schedule = 'left'}), 'OR005', 'and the row says why it does not');

# ---------------------------------------------------------------- a real minute

$node->wait_for(q{SELECT count(DISTINCT database) FROM cron.job_run_details WHERE command ~ 'tick' AND status = 'succeeded'}, 2, 'pg_cron ticks in both databases');
$node->wait_for(q{SELECT last_state = 'completed' FROM orchestrator.schedule_status WHERE schedule = 'minute'}, 't', 'a task was enqueued, and ran');
is($node->safe_psql('postgres', <<'SQL'), 'app|t|t|0', 'as the role that scheduled, in its minute');
SELECT o.name, t.created_at - (t.metadata ->> 'slot')::timestamptz < '15 seconds', (t.metadata ->> 'slot')::timestamptz = date_trunc('minute', t.created_at), s.missed
FROM orchestrator.schedule_status s JOIN orchestrator.task t ON t.id = s.last_task JOIN orchestrator.owner o ON o.id = t.owner WHERE s.schedule = 'minute'
SQL
is($node->psql_as('app', q{SELECT orchestrator.schedule('minute', '* * * * *', 'work') > now()}, database => 'second'), 't', 'where ticks are seen, anybody schedules');
is($node->psql_as('app', q{SELECT state, problem FROM orchestrator.schedule_status WHERE schedule = 'another'}), 'active|', 'all is well');

$node->stop;
done_testing();
