# The command-line client: enqueueing, following and steering tasks.

use strict;
use warnings;
use utf8;

use OrchestratorClient;
use OrchestratorStep;
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;

$PostgreSQL::Test::Utils::timeout_default = 30;

my $node = new_node(name => 'cli_follow', timezone => 'UTC');
$node->start;
$node->create_extension;
$node->plain_role($_) foreach 'app', 'other';
$node->safe_psql('postgres', "CREATE ROLE watcher LOGIN; SELECT orchestrator.grant_usage('watcher', 'viewer');");
$node->safe_psql('postgres', 'CREATE SCHEMA app AUTHORIZATION app');
$node->psql_as('app', <<'SQL');
CREATE FUNCTION app.echo(input jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT input $$;
CREATE FUNCTION app.fails(input jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'planned' USING DETAIL = 'so it is', HINT = 'Let it be.';
END $$;
CREATE FUNCTION app.sleeps(input jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT to_jsonb(pg_sleep(60)::text) $$;
SELECT orchestrator.define_queue('side'), orchestrator.define_queue('still'), orchestrator.pause_queue('still');
SELECT orchestrator.define('echo', 'app.echo'), orchestrator.define('fails', 'app.fails', max_attempts => 1),
       orchestrator.define('sleeps', 'app.sleeps');
SELECT orchestrator.define_workflow('order', ARRAY[
  orchestrator.step('reserve', 'app.echo'),
  orchestrator.step('payment', needs => '{reserve}', wait_for => 'paid'),
  orchestrator.step('approval', needs => '{payment}', wait_for => 'approval'),
  orchestrator.step('ship', 'app.echo', needs => '{approval}')]);
SQL

my $cli = client($node, 'app');

sub exits { return $cli->exits(@_) }
sub state_of { return $node->safe_psql('postgres', "SELECT state FROM orchestrator.task_status WHERE task_id = $_[0]") }
sub reaches { return $node->wait_for("SELECT state = '$_[1]' FROM orchestrator.task_status WHERE task_id = $_[0]") }
# Tasks that wait in a paused queue.
sub waiting { return split /\n/, $node->psql_as('app', "SELECT orchestrator.enqueue('echo', queue => 'still') FROM generate_series(1, $_[0])") }

subtest 'enqueue' => sub {
	my ($out, $err) = exits(0, 'enqueue', 'echo', '--input', '{"a": "é\u0001"}', '--wait');
	is($out, qq({\n    "a": "é\\u0001"\n}\n) =~ s/é/\xc3\xa9/r, 'the output of the task');
	($out) = exits(0, 'enqueue', 'echo', '--input', '-', '--wait', { input => '{"from": "standard input"}' });
	like($out, qr/"from": "standard input"/, 'input from standard input');
	my $file = "$PostgreSQL::Test::Utils::tmp_check/input.json";
	append_to_file($file, '[1, 2]');
	($out) = exits(0, 'enqueue', 'echo', '--input', "\@$file", '--wait');
	is($out, "[\n    1,\n    2\n]\n", 'input from a file');
	($out, $err) = exits(1, 'enqueue', 'echo', '--input', '@/none');
	like($err, qr/could not read "\/none": No such file/, 'no such file');
	($out, $err) = exits(1, 'enqueue', 'echo', '--input', '{"a":');
	like($err, qr/invalid input syntax for type json/, 'input that is no JSON');
	($out, $err) = exits(1, 'enqueue', 'none', '--json');
	is(OrchestratorClient::decode_json_text($err)->{error}{sqlstate}, '42704', 'no such definition, as JSON');

	my @all = ('--name', 'named', '--priority', '-3', '--queue', 'side', '--delay', '1 day', '--key', 'k', '--metadata', '{"m": 1}',
		'--deadline', '2100-01-01', '--traceparent', '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01');
	my $id = $cli->json('enqueue', 'echo', @all)->{task};
	my $task = $cli->json('show', $id);
	is_deeply([ @$task{qw(name priority queue key metadata state)} ], [ 'named', -3, 'side', 'k', { m => 1 }, 'scheduled' ], 'all its options');
	is($task->{deadline}, '2100-01-01T00:00:00+00:00', 'its deadline');
	is($cli->json('enqueue', 'echo', @all)->{task}, $id, 'a key gives the task that has it');
	my $soon = $cli->json('enqueue', 'echo', '--key', 'd', '--debounce', '1 hour', '--debounce-merge', '-i', '{"a": 1}')->{task};
	is($cli->json('enqueue', 'echo', '--key', 'd', '--debounce', '1 hour', '--debounce-merge', '-i', '{"b": 2}')->{task}, $soon, 'debounce');
	is_deeply($cli->json('show', $soon)->{input}, { a => 1, b => 2 }, 'merged');
	exits(0, 'cancel', $id, $soon);

	($out, $err) = exits(4, 'enqueue', 'fails', '--wait');
	like($err, qr/^orchestrator: task \d+ ended as failed: planned$/m, 'a task that fails');
	is($out, '', 'has no output');
	($out) = exits(4, '--json', 'enqueue', 'fails', '--wait');
	my $result = OrchestratorClient::decode_json_text($out);
	is_deeply([ $result->{state}, $result->{error}{sqlstate}, $result->{output} ], [ 'failed', 'P0001', undef ], 'as JSON');
	($out, $err) = exits(8, 'enqueue', 'echo', '--queue', 'still', '--wait', '--timeout', '0.2');
	like($err, qr/task \d+ is still pending/, 'a time-out');
	exits(2, 'enqueue', 'echo', '--timeout', '1');
	exits(2, 'enqueue', 'echo', '--wait', '--timeout', 'soon');
	is(scalar $cli->json('cancel', '--queue', 'still', '--yes')->{count}, 1, 'the task goes on');
};

subtest 'run' => sub {
	my ($out) = exits(0, 'run', 'CREATE TABLE app.made (n int)', '--wait');
	($out) = exits(0, 'run', '-', '--name', 'insert', '--wait', { input => 'INSERT INTO app.made VALUES (7)' });
	is($node->safe_psql('postgres', 'SELECT n FROM app.made'), 7, 'commands run');
	exits(0, 'run', 'VACUUM app.made', '--kind', 'utility', '--wait');
	my ($code, undef, $err) = $cli->run('run', 'SELECT pg_sleep(60)', '--attempt-timeout', '100 ms', '--max-attempts', '2', '--wait');
	is($code, 4, 'a time-out of an attempt') or diag($err);
};

subtest 'one by one' => sub {
	my ($one, $two, $three) = waiting(3);
	my ($out, $err) = exits(0, 'pause', $one, $two);
	is($out, "task $one: paused\ntask $two: paused\n", 'pause');
	is_deeply($cli->json('resume', $one), [ { task => $one, state => 'pending' } ], 'resume, as JSON');
	($out, $err) = exits(1, 'cancel', $two, 999_999, $three, '--reason', 'because');
	is($out, "task $two: cancelled\ntask $three: cancelled\n", 'one that is refused does not keep the others');
	like($err, qr/task 999999 does not exist/, 'and is told');
	is($node->safe_psql('postgres', "SELECT error ->> 'detail' FROM orchestrator.task WHERE id = $two"), 'because', 'the reason');
	($out, $err) = exits(1, '--json', 'retry', $one);
	is(OrchestratorClient::decode_json_text($err)->{error}{sqlstate}, '55000', 'a refusal as JSON');
	($out) = exits(0, 'retry', $two, '--attempts', '2');
	is($out, "task $two: pending\n", 'retry');
	is((client($node, 'other')->run('cancel', $one))[0], 1, 'not of somebody else');
	my $busy = $node->psql_as('app', q{SELECT orchestrator.enqueue('sleeps')});
	reaches($busy, 'running');
	exits(0, 'pause', '--force', $busy);
	is(state_of($busy), 'paused', 'pause of one that runs, by force');
	exits(2, 'cancel');
	exits(2, 'cancel', '0');
	exits(2, 'cancel', $one, '--queue', 'still');
	exits(2, 'cancel', $one, '--dry-run');
	exits(2, 'retry', $one, '--attempts', '0');
	exits(2, 'cancel', '--all', '--queue', 'still');
	exits(0, 'cancel', '--yes', '--all');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM orchestrator.task WHERE live'), 0, 'all');
};

subtest 'many' => sub {
	waiting(5);
	$node->psql_as('other', q{SELECT orchestrator.run('SELECT 1', queue => 'default', delay => '1 day')});
	my ($out, $err) = exits(0, 'cancel', '--all', '--dry-run');
	is($out, "5 tasks would be cancelled\n", 'how many it would hit: not those of others');
	is((client($node, 'watcher')->exits(0, 'cancel', '--all', '--dry-run'))[0], "0 tasks would be cancelled\n", 'nor those that a viewer sees');
	is((client($node, 'postgres')->exits(0, 'cancel', '--all', '--dry-run'))[0], "6 tasks would be cancelled\n", 'but of a superuser all');
	($out, $err) = exits(5, 'pause', '--queue', 'still');
	like($err, qr/5 tasks will be paused\. Go on\? There is no terminal to ask: say --yes\./, 'nobody to ask');
	($out, $err) = exits(5, '--json', 'pause', '--queue', 'still');
	like(OrchestratorClient::decode_json_text($err)->{error}{message}, qr/5 tasks will be paused/, 'as JSON');

	my $t = $cli->terminal(80, 24, 'pause', '--queue', 'still', '--limit', 2);
	$t->until(qr/2 tasks will be paused\. Go on\? \[y\/N\] /);
	$t->type("\n");
	is($t->exit_code, 5, 'the answer was no');
	$t = $cli->terminal(80, 24, 'pause', '--queue', 'still');
	$t->until(qr/\[y\/N\] /);
	$t->type("\cC");
	is($t->exit_code, 130, 'Ctrl-C is no answer');
	is($node->safe_psql('postgres', q{SELECT count(*) FROM orchestrator.task WHERE state = 'paused'}), 0, 'and nothing was done');
	$t = $cli->terminal(80, 24, 'pause', '--queue', 'still', '--limit', 2);
	$t->until(qr/\[y\/N\] /);
	$t->type("y\n");
	$t->until(qr/2 tasks paused/);
	is($t->exit_code, 0, 'the answer was yes');

	is($cli->json('resume', '--definition', 'echo', '--yes')->{count}, 2, 'resume');
	is($cli->json('cancel', '-y', '--state', 'pending', '--older-than', '1 hour')->{count}, 0, 'none is so old');
	is($cli->json('cancel', '-y', '--state', 'pending', '--state', 'running')->{count}, 5, 'states');
	is($cli->json('retry', '-y', '--queue', 'still')->{count}, 0, 'failed ones only, unless it is said');
	is($cli->json('retry', '-y', '--queue', 'still', '--state', 'cancelled', '--limit', 3)->{count}, 3, 'retry');
	($out, $err) = exits(1, 'retry', '-y', '--state', 'nonsense');
	like($err, qr/invalid input value for enum/, 'no such state');
	($out, $err) = exits(1, 'retry', '-y', '--state', 'completed');
	like($err, qr/retry_many\(\) cannot act on tasks in the state "completed"/, 'nor one that the verb can act on');
	foreach my $verb ('cancel', 'pause', 'resume', 'retry', 'purge')
	{
		foreach my $filter ('definition', 'queue')
		{
			foreach my $how ('--yes', '--dry-run')
			{
				($out, $err) = exits(1, $verb, "--$filter", 'nope', $how);
				like($err, qr/$filter "nope" does not exist/, "$verb $how: an unknown $filter");
			}
		}
	}
	exits(2, 'purge');
	exits(2, 'purge', 7);
	my $count = $node->safe_psql('postgres', q{SELECT count(*) FROM orchestrator.task WHERE NOT live AND state = 'cancelled' AND owner = (SELECT id FROM orchestrator.owner WHERE name = 'app')});
	is($cli->json('purge', '--state', 'cancelled', '--dry-run')->{matching}, $count, 'what purge would delete');
	is($cli->json('purge', '--state', 'cancelled', '--owner', 'app', '--yes')->{count}, $count, 'and does');
	my $other = outcome($node, 'other', q{orchestrator.run('SELECT 1')})->{id};
	($out, $err) = exits(1, 'purge', '--yes', '--owner', 'other');
	like($err, qr/must be a member of role "other"/, 'nothing of others');
	is(state_of($other), 'completed', 'which is left');
};

subtest 'signals and approvals' => sub {
	my $run = $node->psql_as('app', q{SELECT orchestrator.enqueue('order')});
	my ($out, $err) = exits(0, 'signal', $run, 'paid', '--payload', '{"sum": 12}');
	is($out, "task $run: \"paid\" sent\n", 'signal');
	$node->wait_for("SELECT output = '{\"sum\": 12}' FROM orchestrator.step_status WHERE run_id = $run AND step = 'payment'");
	is_deeply($cli->json('approve', $run, 'approval', '--payload', '"fine"'), { task => $run, done => 'approved' }, 'approve, as JSON');
	reaches($run, 'completed');
	is($node->safe_psql('postgres', "SELECT output -> 'payload' FROM orchestrator.step_status WHERE run_id = $run AND step = 'approval'"), '"fine"', 'with its payload');

	$run = $node->psql_as('app', q{SELECT orchestrator.enqueue('order')});
	exits(0, 'signal', $run, 'paid');
	exits(0, 'reject', $run, 'approval', '--reason', "too dear\e[31m");
	reaches($run, 'failed');
	like($node->safe_psql('postgres', "SELECT error FROM orchestrator.step_status WHERE run_id = $run AND step = 'approval'"), qr/too dear/, 'reject, with its reason');
	($out, $err) = exits(1, 'approve', $run, 'approval');
	like($err, qr/cannot signal task $run: it is failed/, 'a run that has ended');
	exits(2, 'signal', $run);
};

done_testing();
