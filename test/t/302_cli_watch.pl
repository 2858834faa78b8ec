# watch: progress bars and lines, fed by LISTEN.

use strict;
use warnings;
use utf8;

use JSON::PP ();
use OrchestratorClient;
use OrchestratorStep;
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;

$PostgreSQL::Test::Utils::timeout_default = 30;

my $node = new_node(name => 'cli_watch', timezone => 'UTC');
$node->start;
$node->create_extension;
$node->plain_role($_) foreach 'app', 'other';
$node->safe_psql('postgres', "SELECT orchestrator.grant_usage('app', 'worker'); CREATE SCHEMA app AUTHORIZATION app; CREATE TABLE public.gate (n int); GRANT ALL ON public.gate TO app;");
# A step that waits at the gate goes on when there is a row in it.
$node->psql_as('app', <<'SQL');
CREATE FUNCTION app.echo(input jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT input $$;
CREATE FUNCTION app.slow(input jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM orchestrator.progress(0.4, 'page 4 of 10');
  WHILE NOT EXISTS (SELECT FROM public.gate) LOOP
    PERFORM pg_sleep(0.01);
  END LOOP;
  PERFORM orchestrator.progress(0.8, 'page 8 of 10');
  RETURN '{"done": true}';
END $$;
CREATE FUNCTION app.fails(input jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'planned';
END $$;
SELECT orchestrator.define_queue('side'), orchestrator.define_queue('still'), orchestrator.define_queue('far'), orchestrator.pause_queue('still');
SELECT orchestrator.define('echo', 'app.echo'), orchestrator.define('slow', 'app.slow'),
       orchestrator.define('fails', 'app.fails', max_attempts => 1), orchestrator.define('far', 'far', kind => 'remote');
SELECT orchestrator.define_workflow('order', ARRAY[
  orchestrator.step('reserve', 'app.echo'),
  orchestrator.step('pack', 'app.slow', needs => '{reserve}'),
  orchestrator.step('ship', 'app.echo', needs => '{pack}')]),
 orchestrator.define_workflow('asked', ARRAY[orchestrator.step('answer', wait_for => 'answer')]);
SQL

my $cli = client($node, 'app');

# Those of clients.
my $sessions = q{pg_stat_activity WHERE backend_type = 'client backend' AND usename = 'app'};

sub exits { return $cli->exits(@_) }
sub app { return $node->psql_as('app', "SELECT $_[0]") }
sub open_gate { return $node->safe_psql('postgres', 'INSERT INTO public.gate VALUES (1)') }
sub close_gate { return $node->safe_psql('postgres', 'TRUNCATE public.gate') }
sub is_running { return $node->wait_for("SELECT state = 'running' AND progress > 0.3 FROM orchestrator.task_status WHERE task_id = $_[0]") }
# The JSON lines of an output.
sub events { return map { OrchestratorClient::decode_json_text($_) } split /\n/, $_[0] }

# What a terminal shows ends with the cursor back.
sub ends
{
	my ($t, $code, $name) = @_;
	is($t->exit_code, $code, $name);
	like($t->text, qr/\e\[\?25h(?!.*\e\[\?25l)/s, 'with the cursor back');
	return grep { /\S/ } $t->screen;
}

subtest 'bars' => sub {
	my $t = $cli->terminal(100, 24, 'enqueue', 'order', '--name', 'zwölf', '--watch');
	$t->until(qr/pack .*running.* 40 %.*page 4 of 10.*ship .* 0 %/s);
	my $screen = join "\n", $t->screen;
	$screen =~ s/\e\[\d*m//g;
	like($screen, qr/^ *\d+ zwölf +running +█+\S* +46 %.*\n *\d+   reserve +completed +█+ 100 %.*\n *\d+   pack +running +█.* 40 %.*\n +ship +waiting +░+ +0 %$/m,
		'a run with its steps, also those that have not begun') or diag($screen);
	open_gate();
	my @lines = ends($t, 0, 'ends with the task');
	is(scalar(grep { /completed.* 100 %/ } @lines), 4, 'all have completed') or diag(join "\n", @lines);
	is(scalar @lines, 4, 'and stand there once');
	close_gate();
};

subtest 'outcome' => sub {
	my ($good, $bad) = (outcome($node, 'app', q{orchestrator.enqueue('echo')})->{id}, outcome($node, 'app', q{orchestrator.enqueue('fails')})->{id});
	my $t = $cli->terminal(80, 24, 'watch', $good, $bad);
	my $screen = join "\n", ends($t, 4, 'one has failed');
	like($screen, qr/failed.*planned/, 'with its error');
	like($screen, qr/^orchestrator: task $bad ended as failed: planned$/m, 'told at the end');
	exits(0, 'watch', $good, $good);
	my ($out, $err) = exits(1, 'watch', $good, 999_999);
	like($err, qr/task 999999 does not exist/, 'no such task');
	is((client($node, 'other')->run('watch', $good))[0], 1, 'nor one of somebody else');
	exits(2, 'watch', 'x');
	my $still = app(q{orchestrator.enqueue('echo', queue => 'still')});
	exits(8, 'watch', $still, '--timeout', '0.3');
	$t = $cli->terminal(80, 24, 'watch', $still, '-t', '0.3');
	ends($t, 8, 'a time-out');
	$t = $cli->terminal(80, 24, 'watch', $still);
	$t->until(qr/pending/);
	$t->type("\cC");
	ends($t, 130, 'Ctrl-C');
	is(app("state FROM orchestrator.task WHERE id = $still"), 'pending', 'leaves the task alone');
	$t = $cli->terminal(80, 24, 'watch', $still);
	$t->until(qr/pending/);
	$t->type("\x1c");
	ends($t, -3, 'Ctrl and a backslash');
	foreach ([ ':', 130, 'it ends with its terminal' ], [ "trap '' HUP", 4, 'not if it was told to ignore that, as by nohup' ])
	{
		my ($trap, $code, $name) = @$_;
		my $job = bless { out => '', err => '' }, 'OrchestratorClient::Job';
		local $SIG{HUP} = 'DEFAULT';
		$job->{run} = IPC::Run::start([ 'sh', '-c', qq($trap; exec "\$0" "\$@"), $cli->command('watch', $still) ], '<', \undef, '>', \$job->{out}, '2>', \$job->{err});
		$job->until(qr/pending/);
		$job->signal('HUP');
		app("orchestrator.cancel($still)") if $code == 4;
		is($job->exit_code, $code, $name);
	}
	exits(4, 'watch', $still);
};

subtest 'lines' => sub {
	my $run = app(q{orchestrator.enqueue('order')});
	my $job = $cli->start('watch', $run);
	$job->until(qr/^\d\d:\d\d:\d\d  $run  order  running/);
	my $json = $cli->start('--json', 'watch', $run);
	$json->until(qr/"event": "state"/);
	open_gate();
	is($job->exit_code, 0, 'ends with the task');
	like($job->{out}, qr/^\d\d:\d\d:\d\d  \d+  order \/ ship  started\n.*^\d\d:\d\d:\d\d  $run  order  completed$/ms, 'which has completed, step by step') or diag($job->{out});
	unlike($job->{out}, qr/\e/, 'no escapes in a pipe');
	is($json->exit_code, 0, 'as JSON');
	my @events = events($json->{out});
	is_deeply([ @{ $events[0] }{qw(task event name)} ], [ $run, 'state', 'order' ], 'the first line says how it stands');
	is_deeply([ @{ $events[-1] }{qw(task event state)} ], [ $run, 'completed', 'completed' ], 'the last one how it ended');
	ok(scalar(grep { $_->{name} eq 'ship' && $_->{event} eq 'started' && $_->{root} == $run && $_->{at} =~ /^\d{4}-\d\d-\d\dT.*Z$/ } @events), 'steps are among them');
	is((events((exits(4, '--json', 'watch', outcome($node, 'app', q{orchestrator.enqueue('fails')})->{id}))[0]))[0]{message}, 'planned', 'an error');
	my ($out, $err) = exits(1, '--json', 'watch', 999_999);
	like(OrchestratorClient::decode_json_text($err)->{error}{message}, qr/does not exist/, 'no such task, as JSON');
	close_gate();
};

subtest 'size of the terminal' => sub {
	my @slow = map { app("orchestrator.enqueue('slow', queue => 'side', name => 'called $_')") } 1 .. 12;
	is_running($slow[0]);
	my $fits = sub {
		my ($text, $columns, $rows) = @_;
		$text =~ s/\e\[[?\d;]*[A-Za-z]//g;
		my @lines = split /\r?\n/, $text;
		cmp_ok(scalar @lines, '<', $rows, "no more lines than $rows rows hold") or diag($text);
		is(scalar(grep { length $_ > $columns } @lines), 0, "none longer than $columns columns") or diag($text);
	};
	foreach my $size ([ 24, 5 ], [ 8, 3 ])
	{
		my $t = $cli->terminal(@$size, 'watch', @slow);
		$t->until(qr/\n.*\n/);
		$fits->($t->text, @$size);
		$t->type("\cC");
		ends($t, 130, 'Ctrl-C');
	}
	my $t = $cli->terminal(120, 40, 'watch', @slow);
	$t->until(qr/called 12 /);
	foreach my $size ([ 60, 10 ], [ 100, 30 ])
	{
		$t->forget;
		$t->resize(@$size);
		# one may still be of the size before
		$t->until(qr/\e\[\d+A\r.*\e\[\d+A\r.*\e\[\d+A\r/s, 'drawn again');
		$fits->($t->text =~ /.*\e\[\d+A\r(.*)\e\[\d+A\r/s, @$size);
	}
	open_gate();
	ends($t, 0, 'it ends');
	close_gate();
};

subtest 'hostile text' => sub {
	my $name = "\e[2J\e]0;owned\a\x{9b}31m\x{202e}evil\r\nforged";
	utf8::encode(my $bytes = $name);
	my $id = $node->safe_psql('postgres', <<'SQL', extra_params => [ '-U', 'app', '-v', "name=$bytes" ]);
SELECT orchestrator.enqueue('fails', name => :'name')
SQL
	my $t = $cli->terminal(160, 24, 'watch', $id);
	ends($t, 4, 'bars');
	(my $text = $t->text) =~ s/\e\[[?\d;]*[A-Za-z]//g;
	unlike($text, qr/[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f\x{202e}]/, 'let no control character pass');
	my ($out) = exits(4, 'watch', $id);
	unlike($out, qr/[\x00-\x09\x0b-\x1f\x7f]|^forged/m, 'nor do lines');
	($out) = exits(4, '--json', 'watch', $id);
	is((events($out))[0]{name}, $name, 'JSON is exact');
	unlike($out, qr/\x{c2}[\x80-\x9f]|[\x00-\x09\x0b-\x1f\x7f]|\xe2\x80\xae/, 'and escaped');
};

subtest 'waiting in a queue' => sub {
	my @ids = map { app(q{orchestrator.enqueue('echo', queue => 'still')}) } 1 .. 3;
	my $t = $cli->terminal(100, 24, 'watch', @ids);
	$t->until(qr/$ids[2] echo +pending .* 2 ahead/);
	app("orchestrator.cancel($ids[0])");
	$t->until(qr/$ids[2] echo +pending .* 1 ahead/, 'its place is told anew');
	app(q{orchestrator.cancel_many(queue => 'still')});
	ends($t, 4, 'cancelled');
	my $later = app(q{orchestrator.enqueue('echo', delay => '1 hour')});
	$t = $cli->terminal(100, 24, 'watch', $later);
	$t->until(qr/scheduled .* in (?:1 h 0 min|59 min)/);
	app("orchestrator.cancel($later)");
	ends($t, 4, 'scheduled, then cancelled');
};

subtest 'batches' => sub {
	my $batch = app(q{orchestrator.enqueue_batch('far', ARRAY['1', '2', '3']::jsonb[], queue => 'far', name => 'three')});
	my $t = $cli->terminal(100, 24, 'watch', $batch);
	$t->until(qr/three .* 0 of 3 items/);
	$node->psql_as('app', q{CREATE TABLE app.claimed AS SELECT * FROM orchestrator.claim('{far}', 'w', 2)});
	$t->until(qr/far .*running/, 'items that run are shown');
	my ($first, $second) = split /\n/, app('task_id FROM app.claimed ORDER BY 1');
	app("orchestrator.heartbeat(task_id, token, fraction => 0.63, message => 'remotely') FROM app.claimed WHERE task_id = $first");
	$t->until(qr/\b$first +far .* 63 %.*remotely/, 'with their progress');
	app('orchestrator.complete(task_id, token) FROM app.claimed');
	$t->until(qr/three .* 2 of 3 items/);
	app("orchestrator.cancel($batch)");
	ends($t, 4, 'it was cancelled');
};

subtest 'events that are not the engine\'s' => sub {
	my $id = app(q{orchestrator.enqueue('slow')});
	is_running($id);
	my $t = $cli->terminal(100, 24, 'watch', $id);
	$t->until(qr/running .* 40 %/);
	foreach my $payload ('', 'x', '{"event":"nothing"}', '{"event":"started","state":"nowhere","task":1,"root":1}',
		qq({"task":-1,"root":$id,"event":"started","state":"running"}), '{"task":' . ('9' x 400) . ',"event":"started","state":"running","root":1}',
		qq({"task":$id,"root":$id,"parent":null,"event":"progress","state":"running","progress":nan,"attempt":1}),
		qq({"task":12345,"root":$id,"parent":$id,"event":"progress","state":"running","progress":7e300,"attempt":-9}),
		qq({"task":$id,"root":$id,"parent":$id,"event":"completed","state":"completed","progress":1,"attempt":1}))
	{
		$node->safe_psql('postgres', "NOTIFY orchestrator_task_$id, '$payload'", extra_params => [ '-U', 'other' ]);
	}
	my $job = $cli->start('--json', 'watch', $id);
	$job->until(qr/"state": "running"/);
	$node->safe_psql('postgres', qq(NOTIFY orchestrator_task_$id, '{"task":$id,"root":$id,"event":"completed","state":"completed"}'), extra_params => [ '-U', 'other' ]);
	$node->safe_psql('postgres', qq(NOTIFY orchestrator_task_$id, '{"event":"resync"}'));
	$job->until(qr/"event": "resync".*\n.*"event": "state".*"state": "running"/, 'resync: how it stands is told again');
	$t->forget;
	$t->until(qr/running /, 'the rows decide');
	open_gate();
	ends($t, 0, 'bars end with the task');
	is($job->exit_code, 0, 'so do lines');
	close_gate();
};

subtest 'all tasks' => sub {
	my $t = $cli->terminal(100, 24, 'watch');
	$t->until(qr/no tasks/);
	my $job = $cli->start('watch', '--json', '--timeout', 300);
	# its last statement comes after LISTEN
	$node->wait_for("SELECT count(*) = 2 FROM $sessions AND query LIKE 'SELECT t.id%'");
	$node->psql_as('other', q{SELECT orchestrator.run('SELECT 1', name => 'secret')});
	my $id = app(q{orchestrator.enqueue('slow', name => 'fresh')});
	$t->until(qr/$id fresh .*running .* 40 %/);
	$job->until(qr/"name": "fresh", "event": "started"/);
	open_gate();
	$t->until(qr/$id fresh .*completed/);
	$job->until(qr/"task": $id, .*"event": "completed"/);
	$t->until(qr/fresh .*completed.*no tasks/s, 'what has ended goes');
	unlike($t->text . $job->{out}, qr/secret/, 'nothing of others');
	$job->signal('INT');
	is($job->exit_code, 130, 'lines end with a signal');
	$t->type("\cC");
	ends($t, 130, 'bars with Ctrl-C');
	close_gate();
};

subtest 'idle' => sub {
	my $run = app(q{orchestrator.enqueue('asked')});
	$node->wait_for("SELECT state = 'waiting' AND task_id IS NOT NULL FROM orchestrator.step_status WHERE run_id = $run");
	my $t = $cli->terminal(100, 24, 'watch', $run);
	$t->until(qr/waits for signal answer/);
	my $asked = "SELECT extract(epoch FROM query_start) FROM $sessions";
	# Longer than any pause between two questions; drawn meanwhile.
	my $end = time + 4;
	$t->read(0.1) while time < $end;
	my $before = $node->safe_psql('postgres', $asked);
	$end = time + 4;
	$t->read(0.1) while time < $end;
	is($node->safe_psql('postgres', $asked), $before, 'nothing is asked when nothing happens');
	exits(0, 'signal', $run, 'answer');
	ends($t, 0, 'the signal ends it');
};

subtest 'a lost connection' => sub {
	my $id = app(q{orchestrator.enqueue('echo', queue => 'still')});
	my $t = $cli->terminal(100, 24, 'watch', $id);
	my $job = $cli->start('--json', 'watch', $id);
	my $wait = $cli->start('enqueue', 'echo', '--wait', '--queue', 'still', '-i', '"kept"');
	$t->until(qr/pending/);
	$job->until(qr/"event": "state"/);
	$node->wait_for(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE 'CALL orchestrator.await%'});
	$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM $sessions");
	$t->until(qr/trying again in/);
	$job->until(qr/"event": "lost".*\n(?:.*\n)*.*"event": "resync"/);
	$node->stop('fast');
	$t->forget;
	$t->until(qr/trying again in (?:0\.5|1|2|4|8) s: connection to server/, 'it tries later and later');
	$node->start;
	$t->forget;
	$t->until(qr/$id echo +pending(?!.*trying again)/s, 'bars are back');
	app(q{orchestrator.resume_queue('still')});
	ends($t, 0, 'they end with the task');
	is($job->exit_code, 0, 'so do lines');
	is($wait->exit_code, 0, 'and enqueue --wait');
	is($wait->{out}, qq("kept"\n), 'with the output');
	app(q{orchestrator.pause_queue('still')});
	$id = app(q{orchestrator.enqueue('echo', queue => 'still')});
	$t = $cli->terminal(100, 24, 'watch', $id);
	$t->until(qr/pending/);
	$node->stop('fast');
	$t->until(qr/trying again/);
	$t->type("\cC");
	ends($t, 130, 'Ctrl-C while there is no connection');
};

done_testing();
