# Random workflows under random control, with executors that are terminated:
# nothing hangs, nothing is counted wrong, nothing is done twice.
#
#   SEED=7 SECONDS=60 prove ... test/t/251_runs_stress.pl

use strict;
use warnings;

use JSON::PP;
use OrchestratorTest;
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $seed = $ENV{SEED} || int rand 1_000_000;
my $seconds = $ENV{SECONDS} || 5;
my $json = JSON::PP->new->canonical;
my @definitions = 0 .. 19;
my @reusable;    # those that may be steps of others

# Errors of control are expected; these are not, and stand in the log.
my $unexpected = qr/deadlock detected|could not serialize|changed under its lock|internal error|violates|XX\d\d\d|stack depth|could not be/;

note("seed $seed");
srand $seed;
my $node = new_node(
	name => 'runs_stress',
	'log_line_prefix' => q('%m [%p] %b %e '),
	'orchestrator.executors_per_role' => 2);
$node->start;
$node->create_extension;
$node->plain_role($_) foreach ('app1', 'app2');
make_handlers();
foreach my $role ('app1', 'app2')
{
	@reusable = ();
	define($role, $_) foreach @definitions;
}

my $end = time + $seconds;
my @wrong;
my @clients = map { start_client($_) } 0 .. 3;
while (time < $end)
{
	usleep(300_000);
	push @wrong, check_counts();
	terminate_executor() if rand() < 0.25;
}
waitpid $_, 0 foreach @clients;
is(drain(), '0', "everything is finished (seed $seed)") or diag($node->safe_psql('postgres', 'SELECT * FROM orchestrator.task_live'));
push @wrong, check_counts();
is(join("\n", @wrong), '', "no step is counted wrong, or there twice (seed $seed)");
check_end();
my @log = grep { /$unexpected/ } split /\n/, slurp_file($node->logfile);
is(join("\n", @log), '', "no unexpected errors (seed $seed)");
note($node->safe_psql('postgres', 'SELECT state, count(*) FROM orchestrator.task GROUP BY 1 ORDER BY 1'));
$node->stop('fast');
done_testing();

sub pick
{
	return $_[ rand @_ ];
}

# ---------------------------------------------------------------- workflows

sub make_handlers
{
	$node->safe_psql('postgres', <<'SQL');
CREATE SCHEMA stress;
CREATE TABLE stress.ledger (task_id bigint, attempt int);
GRANT USAGE ON SCHEMA stress TO PUBLIC;
GRANT SELECT, INSERT ON stress.ledger TO PUBLIC;
CREATE FUNCTION stress.note() RETURNS void LANGUAGE sql AS $$
  INSERT INTO stress.ledger SELECT t.task_id, t.attempt FROM orchestrator.current_task() t
$$;
CREATE FUNCTION stress.step(input jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM stress.note();
  IF random() < 0.12 THEN
    RAISE EXCEPTION 'planned';
  ELSIF random() < 0.03 THEN
    PERFORM orchestrator.set_context(to_jsonb(random()));
  ELSIF random() < 0.03 THEN
    PERFORM orchestrator.checkpoint('c');
  END IF;
  RETURN '{"count": 2}';
END
$$;
CREATE FUNCTION stress.undo(input jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM stress.note();
  IF random() < 0.2 THEN
    RAISE EXCEPTION 'planned';
  END IF;
  RETURN '1';
END
$$;
CREATE FUNCTION stress.bad(input jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'planned';
END
$$;
CREATE FUNCTION stress.slow(input jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM stress.note();
  PERFORM pg_sleep(random() * 0.1);
  RETURN '{"count": 1}';
END
$$;
CREATE FUNCTION stress.adds(input jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  v_name text := md5(random()::text);
BEGIN
  PERFORM stress.note();
  PERFORM orchestrator.add_steps(ARRAY[orchestrator.step(v_name, 'stress.step', optional => true),
                                       orchestrator.step(v_name || 'b', 'stress.step', needs => ARRAY[v_name], optional => true)]);
  RETURN '3';
END
$$;
CREATE FUNCTION stress.called(input jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT '1'::jsonb$$;
CREATE PROCEDURE stress.waits(input jsonb) LANGUAGE plpgsql AS $$
DECLARE
  v jsonb;
BEGIN
  PERFORM orchestrator.step_once('one', 'SELECT 1');
  CALL orchestrator.sleep_until(now() + interval '0.05 s', 'x');
  IF random() < 0.3 THEN
    CALL orchestrator.wait_signal('go', v, interval '0.3 s');
  END IF;
END
$$;

-- One act of control on a random task; what may be refused is.
CREATE FUNCTION stress.act(kind text, r float8, s float8) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  v_ended boolean := kind IN ('retry', 'rerun_from', 'restore', 'fork', 'on_completion');
  v_step  text := 's' || (1 + floor(s * 8))::int;
  v_tasks bigint[];
  t       bigint;
BEGIN
  v_tasks := ARRAY(SELECT x.id FROM orchestrator.task x
                   WHERE (x.live OR v_ended) AND CASE WHEN kind LIKE 'step_%' THEN x.parent_id IS NOT NULL ELSE x.remaining IS NOT NULL END
                   ORDER BY x.id DESC LIMIT 60);
  t := v_tasks[1 + floor(r * cardinality(v_tasks))::int];
  IF t IS NULL THEN
    RETURN;
  END IF;
  CASE kind
    WHEN 'cancel', 'step_cancel' THEN PERFORM orchestrator.cancel(t);
    WHEN 'pause', 'step_pause' THEN PERFORM orchestrator.pause(t, s < 0.5);
    WHEN 'resume', 'step_resume' THEN PERFORM orchestrator.resume(t);
    WHEN 'on_completion', 'step_callback' THEN PERFORM orchestrator.on_completion(t, 'called');
    WHEN 'retry' THEN PERFORM orchestrator.retry(t);
    WHEN 'rerun_from' THEN PERFORM orchestrator.rerun_from(t, v_step);
    WHEN 'skip_step' THEN PERFORM orchestrator.skip_step(t, v_step, CASE WHEN r < 0.5 THEN '{"count": 1}'::jsonb END);
    WHEN 'signal' THEN PERFORM orchestrator.signal(t, 'go');
    WHEN 'approve' THEN PERFORM orchestrator.approve(t, v_step);
    WHEN 'reject' THEN PERFORM orchestrator.reject(t, v_step, 'no');
    WHEN 'add_steps' THEN PERFORM orchestrator.add_steps(t, ARRAY[orchestrator.step('x' || random(), 'stress.step', needs => ARRAY[v_step])]);
    WHEN 'checkpoint' THEN PERFORM orchestrator.checkpoint(t, 'c', NULL);
    WHEN 'restore' THEN PERFORM orchestrator.restore(t, 'c');
    WHEN 'fork' THEN PERFORM orchestrator.fork(t, v_step);
    WHEN 'pause_many' THEN PERFORM orchestrator.pause_many(definition => 'w' || floor(s * 20)::int);
    WHEN 'resume_many' THEN PERFORM orchestrator.resume_many(all_tasks => true);
    WHEN 'cancel_many' THEN PERFORM orchestrator.cancel_many(states => '{waiting,pending}', max_rows => 3, older_than => '1 s');
    WHEN 'retry_many' THEN PERFORM orchestrator.retry_many(states => '{failed,cancelled}', max_rows => 5);
  END CASE;
EXCEPTION WHEN object_not_in_prerequisite_state OR undefined_object OR SQLSTATE 'OR007' THEN
  NULL;
END
$$;
SQL
	return;
}

sub define
{
	my ($role, $number) = @_;
	my @steps = map { random_step($_, $number >= 8) } 1 .. 2 + int rand 11;
	my %document = (name => "w$number", steps => \@steps);

	$node->psql_as($role, q(SELECT orchestrator.define('called', 'stress.called'))) if $number == 0;
	$document{checkpoint_interval} = 2 if rand() < 0.2;
	$document{timeout} = '3 s' if rand() < 0.1;
	$document{max_running} = 1 + int rand 2 if rand() < 0.2;
	$document{success_callback} = 'called' if rand() < 0.1;
	$document{failure_callback} = 'called' if rand() < 0.1;
	my $text = $json->encode(\%document) =~ s/'/''/gr;
	$node->psql_as($role, "SELECT orchestrator.define_workflow('$text'::jsonb)");
	push @reusable, "w$number" if rand() < 0.5;
	return;
}

sub random_step
{
	my ($number, $nested) = @_;
	my %step = (name => "s$number");
	my $kind = rand;
	my $failure = rand;
	my @needs = $number > 1 && rand() < 0.45 ? 's' . ($number - 1) : grep { rand() < 0.35 } map { "s$_" } 1 .. $number - 1;

	$step{needs} = \@needs if @needs;
	$step{when} = pick('$.input.yes', '$.input.no == true', '$.input.x > 0.5', 'strict $.input.nothing') if rand() < 0.12;
	if ($failure < 0.1) { $step{optional} = JSON::PP::true }
	elsif ($failure < 0.2) { $step{on_failure} = 'continue' }
	elsif ($failure < 0.3) { $step{on_failure} = 'skip_dependants' }
	if ($kind < 0.08)
	{
		return { %step, wait_for => 'go', timeout => sprintf('%.3f s', 0.05 + rand), on_timeout => pick('fail', 'continue') };
	}
	return { %step, sleep => sprintf('%.3f s', rand 0.3) } if $kind < 0.12;

	if ($kind < 0.24 && $nested && @reusable) { $step{definition} = pick(@reusable) }
	elsif ($kind < 0.28) { @step{ 'handler', 'kind' } = ('stress.waits', 'procedure') }
	else { $step{handler} = 'stress.' . ($kind < 0.31 ? 'bad' : $kind < 0.35 ? 'slow' : $kind < 0.39 ? 'adds' : 'step') }
	if (rand() < 0.1)
	{
		$step{each} = pick('$.input.list', '$.input.list[*]', '$.input.none');
		$step{max_parallel} = 1 + int rand 3 if rand() < 0.5;
	}
	elsif (($step{handler} || '') eq 'stress.step' && rand() < 0.06) { $step{repeat_while} = '$.iteration < 3' }
	$step{input} = { list => [ 1, 2 ], in => '$.input' } if rand() < 0.15;
	$step{undo} = 'stress.undo' if $step{handler} && rand() < 0.2;
	@step{ 'rate_limit', 'rate_period' } = (1 + int rand 9, '0.1 s') if $step{handler} && rand() < 0.1;
	$step{max_running} = 1 if $step{handler} && rand() < 0.1;
	@step{ 'max_attempts', 'backoff', 'retry_delay' } = (1 + int rand 3, 'fixed', pick('0', '0.02 s')) if $step{handler};
	return \%step;
}

# ---------------------------------------------------------------- load

sub start_client
{
	my ($number) = @_;
	my $role = $number % 2 ? 'app1' : 'app2';
	my $log = $node->basedir . "/client$number.log";
	my $pid = fork // die "fork: $!";

	return $pid if $pid;
	srand $seed * 100 + $number;
	open my $psql, '|-', "psql -X -q -d '" . $node->connstr('postgres') . " user=$role' >'$log' 2>&1" or die $!;
	$psql->autoflush(1);
	while (time < $end)
	{
		print $psql $number < 2 ? enqueue() : control();
		usleep($number < 2 ? 60_000 : 15_000);
	}
	close $psql;
	POSIX::_exit(0);
}

sub enqueue
{
	my $workflow = 'w' . pick(@definitions);
	my $input = sprintf '{"yes": true, "no": false, "x": %f, "none": null, "list": [%s]}', rand, join ',', 1 .. int rand 5;

	return pick(
		"SELECT orchestrator.enqueue('$workflow', '$input');\n",
		"SELECT orchestrator.enqueue('$workflow', '$input', delay => '0.1 s');\n",
		"SELECT orchestrator.enqueue_many('$workflow', ARRAY['$input', '$input']::jsonb[]);\n",
		"SELECT orchestrator.enqueue_batch('$workflow', ARRAY['$input', '$input']::jsonb[], on_completion => 'called');\n");
}

sub control
{
	my $kind = pick(
		('resume', 'step_resume') x 4, ('pause', 'retry', 'rerun_from', 'skip_step', 'signal', 'step_pause') x 2,
		'cancel', 'approve', 'reject', 'add_steps', 'checkpoint', 'restore', 'fork', 'on_completion', 'step_callback',
		'step_cancel', 'pause_many', 'resume_many', 'cancel_many', 'retry_many');
	my $act = sprintf "SELECT stress.act('%s', %f, %f);\n", $kind, rand, rand;

	return rand() < 0.1 ? "BEGIN;\n${act}SELECT pg_sleep(0.02);\nCOMMIT;\n" : $act;
}

sub terminate_executor
{
	$node->safe_psql('postgres', <<'SQL');
SELECT pg_terminate_backend(pid) FROM (
  SELECT pid FROM pg_stat_activity WHERE backend_type = 'orchestrator executor' ORDER BY random() LIMIT 1) x
SQL
	return;
}

# Let everything end; returns how many tasks did not.
sub drain
{
	my $left;

	foreach my $turn (1 .. 200)
	{
		$node->safe_psql('postgres', 'SELECT orchestrator.resume_many(all_tasks => true)');
		$node->safe_psql('postgres', <<'SQL') if $turn % 5 == 0;
DO $$
DECLARE
  t bigint;
BEGIN
  FOR t IN SELECT l.id FROM orchestrator.task_live l WHERE l.state = 'waiting' AND l.parent_id IS NOT NULL AND l.remaining IS NULL LOOP
    BEGIN
      PERFORM orchestrator.signal(t, 'go');
    EXCEPTION WHEN object_not_in_prerequisite_state THEN
      NULL;
    END;
  END LOOP;
END
$$
SQL
		$left = $node->safe_psql('postgres', 'SELECT count(*) FROM orchestrator.task_live');
		last if $left eq '0';
		usleep(200_000);
	}
	return $left;
}

# ---------------------------------------------------------------- checks

# At any time, in one snapshot: remaining is right, and no step is there twice.
sub check_counts
{
	return grep { $_ ne '' } $node->safe_psql('postgres', <<'SQL'), $node->safe_psql('postgres', <<'SQL');
WITH final AS (
  SELECT t.parent_id, count(*) AS n FROM orchestrator.task t WHERE NOT t.live AND coalesce(t.step, 1) > 0 GROUP BY 1
), run AS (
  SELECT l.*, d.kind, coalesce(f.n, 0) AS final,
         CASE d.kind WHEN 'map' THEN jsonb_array_length(l.input -> 'items')
           ELSE cardinality(d.step_names) + (SELECT count(*) FROM orchestrator.added_step a WHERE a.task_id = l.id) END AS total
  FROM orchestrator.task_live l
  JOIN orchestrator.definition d ON d.id = l.definition
  LEFT JOIN final f ON f.parent_id = l.id
  WHERE l.remaining IS NOT NULL AND 'scheduled' NOT IN (l.state, coalesce(l.held_state, l.state))
)
SELECT format('%s %s is %s: remaining %s, total %s, final %s', kind, id, state, remaining, total, final) FROM run
WHERE remaining = 0 OR kind IN ('workflow', 'map') AND remaining <> total - final
SQL
SELECT format('step %s item %s of %s is there as %s', step, item, parent_id, array_agg(id)) FROM orchestrator.task
WHERE parent_id IS NOT NULL AND num_nonnulls(step, item) > 0 GROUP BY parent_id, step, item HAVING count(*) > 1
SQL
}

sub check_end
{
	my $forked = q(EXISTS (SELECT FROM orchestrator.task r WHERE r.id = coalesce(t.root_id, t.id) AND r.metadata ? 'forked_from'));
	my @checks = (
		'completed runs have no steps left' => q(SELECT id FROM orchestrator.task WHERE state = 'completed' AND remaining <> 0),
		'each has a row for each step' => <<"SQL",
SELECT t.id FROM orchestrator.task t JOIN orchestrator.definition d ON d.id = t.definition
WHERE d.kind = 'workflow' AND t.state = 'completed' AND NOT $forked
  AND cardinality(d.step_names) <> (SELECT count(*) FROM orchestrator.task s WHERE s.parent_id = t.id AND s.step BETWEEN 1 AND cardinality(d.step_names))
SQL
		'each completed step did its work once' => <<"SQL",
SELECT format('%s is %s: %s instead of %s', t.id, t.state, done.n, due.n) FROM orchestrator.task t
JOIN orchestrator.definition d ON d.id = t.definition
CROSS JOIN LATERAL (SELECT count(*) AS n FROM stress.ledger l WHERE l.task_id = t.id) done
CROSS JOIN LATERAL (SELECT count(*) + (t.state = 'completed')::int AS n FROM orchestrator.trace_log l
  WHERE l.task_id = t.id AND (l.event = 'reset' AND l.detail ->> 'state' = 'completed' OR l.event = 'repeating')) due
WHERE d.kind = 'function' AND d.name <> 'called' AND t.parent_id IS NOT NULL AND NOT $forked AND done.n <> due.n
SQL
		'no step was completed before it was needed' => <<'SQL',
SELECT format('%s before %s', t.id, n.id) FROM orchestrator.task t
JOIN orchestrator.definition d ON d.id = t.plan
JOIN orchestrator.task p ON p.id = t.parent_id AND p.definition = t.plan
CROSS JOIN LATERAL jsonb_array_elements_text(d.steps -> (t.step - 1) -> 'needs') x
JOIN orchestrator.task n ON n.parent_id = t.parent_id AND n.step = x::int AND n.item IS NULL
WHERE t.step > 0 AND t.item IS NULL AND t.state = 'completed' AND t.started_at < n.finished_at AND n.state NOT IN ('skipped', 'cancelled')
  AND NOT d.steps -> (n.step - 1) ?| '{optional,on_failure}'   -- retry() runs these again if they were cancelled
SQL
		'nothing is still being undone' => q(SELECT id FROM orchestrator.task WHERE compensation = 'running'),
		'failed tasks tell why' => q(SELECT id FROM orchestrator.task WHERE state = 'failed' AND error ->> 'sqlstate' IS NULL));

	while (my ($name, $sql) = splice @checks, 0, 2)
	{
		is($node->safe_psql('postgres', $sql), '', "$name (seed $seed)");
	}
	return;
}
