# The command-line client against a server with real executors.

use strict;
use warnings;
use utf8;

use OrchestratorClient;
use OrchestratorStep;
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;

$PostgreSQL::Test::Utils::timeout_default = 30;

my $node = new_node(name => 'cli', timezone => 'UTC');
$node->start;
$node->create_extension;
$node->plain_role($_) foreach 'app', 'other';
$node->safe_psql('postgres', 'CREATE SCHEMA app AUTHORIZATION app');
$node->psql_as('app', <<'SQL');
CREATE FUNCTION app.echo(input jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT input $$;
CREATE FUNCTION app.slow(input jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  FOR i IN 1 .. 10 LOOP
    PERFORM orchestrator.progress(i / 10.0, format('%s of 10', i));
    PERFORM pg_sleep(coalesce((input -> 'input' ->> 'pause')::float8, (input ->> 'pause')::float8, 0.1));
  END LOOP;
  RETURN '{"done": true}';
END $$;
CREATE FUNCTION app.fails(input jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'planned' USING DETAIL = 'so it is', HINT = 'Let it be.';
END $$;
SELECT orchestrator.define_queue('side', max_running => 3);
SELECT orchestrator.define('echo', 'app.echo'), orchestrator.define('slow', 'app.slow'),
       orchestrator.define('fails', 'app.fails', max_attempts => 1);
SELECT orchestrator.define_workflow('order', ARRAY[
  orchestrator.step('reserve', 'app.echo'),
  orchestrator.step('pack', 'app.slow', needs => '{reserve}'),
  orchestrator.step('approval', needs => '{pack}', wait_for => 'approval'),
  orchestrator.step('ship', 'app.echo', needs => '{approval}')]);
SQL

my $cli = client($node, 'app');

sub exits { return $cli->exits(@_) }

subtest 'help and usage' => sub {
	my ($out, $err) = exits(0, '--help');
	like($out, qr/^Usage: orchestrator .*^Commands:.*^  list .*^Options of every command:/ms, 'the program tells its commands');
	foreach my $command (grep { /^[a-z]/ } split /\n/, (exits(0, 'help', '--words'))[0])
	{
		($out) = exits(0, $command, '--help');
		like($out, qr/^Usage: orchestrator \[OPTION\]\.\.\. \Q$command\E /, "$command has help");
	}
	($out) = exits(0, '-V');
	like($out, qr/^orchestrator \d+\.\d+/, 'the version');
	($out, $err) = exits(2);
	exits(2, 'nonsense');
	($out, $err) = exits(2, 'list', '--nonsense');
	like($err, qr/option --nonsense is unknown/, 'an unknown option is named');
	($out, $err) = exits(2, 'list', '--limit');
	like($err, qr/needs a value/, 'a value is missing');
	exits(2, 'list', '--limit', '0');
	exits(2, 'list', '--limit', 'many');
	exits(2, 'list', 'too much');
	exits(2, 'show');
	($out, $err) = exits(2, 'show', '7; DROP TABLE x');
	like($err, qr/is not the number of a task/, 'what is no task');
	($out, $err) = exits(2, '--json', 'show', "\e[31mred");
	is(OrchestratorClient::decode_json_text($err)->{error}{message}, "show: \"\e[31mred\" is not the number of a task", 'an error as JSON');
	foreach ([ qr/^option --nonsense is unknown$/, '--json', '--nonsense' ], [ qr/^list: option -Z is unknown$/, 'list', '-Zj', '--json' ], [ qr/^list: option -n needs a value$/, '-j', 'list', '-n' ],
		[ qr/^graph: option --definition=x takes no value$/, 'graph', '--definition=x', '-j' ], [ qr/^there is no command "lst"$/, 'lst', '--json' ])
	{
		my ($pattern, @arguments) = @$_;
		($out, $err) = exits(2, @arguments);
		like(OrchestratorClient::decode_json_text($err)->{error}{message}, $pattern, 'the same, wherever --json stands');
	}
	($out, $err) = exits(2, "b\xc3\xb6se", { env => { LC_ALL => 'C.UTF-8' } });
	like($err, qr/there is no command "b\xc3\xb6se"/, 'what was typed is shown as it is');
};

# Standard output that takes nothing, and descriptors that are closed.
subtest 'output that fails' => sub {
	my $through = sub {
		my ($how, @arguments) = @_;
		my ($out, $err) = ('', '');
		IPC::Run::run([ 'sh', '-c', qq(exec "\$0" "\$@" $how), $cli->command(@arguments) ], '<', \undef, '>', \$out, '2>', \$err);
		return ($? >> 8, $out, $err);
	};
	foreach my $command ([ '--help' ], [ 'queues', '--json' ], [ 'enqueue', 'echo' ])
	{
		my ($code, $out, $err) = $through->('>/dev/full', @$command);
		is($code, 1, "$command->[0] that cannot be written");
		like($err, qr/could not write the output: No space left on device/, 'which is said');
	}
	like(($through->('>&-', 'queues'))[2], qr/could not write the output: Bad file descriptor/, 'standard output is closed');
	my ($code, $out) = $through->('<&- 2>&-', '--json', 'queues', 'side');
	is(OrchestratorClient::decode_json_text($out)->[0]{queue}, 'side', 'the others are closed');
	is(($through->('<&- >&- 2>&-', 'queues'))[0], 1, 'all are');
};

subtest 'connecting' => sub {
	my $nowhere = client($node, 'app');
	$nowhere->{options} = [ '-h', $node->host, '-p', 1, '-d', 'postgres', '-U', 'app' ];
	my ($code, $out, $err) = $nowhere->run('list');
	is($code, 3, 'exit code without a server');
	like($err, qr/^orchestrator: connection to server/, 'and the reason');
	$nowhere->{options} = [];
	($code, $out, $err) = $nowhere->run('queues', { env => { PGHOST => $node->host, PGPORT => $node->port, PGUSER => 'app', PGDATABASE => 'postgres' } });
	is($code, 0, 'the environment of libpq') or diag($err);
	$nowhere->{options} = [ '--dbname', 'postgresql:///postgres?user=app&port=' . $node->port . '&host=' . $node->host ];
	is(($nowhere->run('queues'))[0], 0, 'a connection string');
	is((client($node, 'app', 'template1')->run('list'))[0], 1, 'a database without the extension');
};

subtest 'views' => sub {
	my ($out) = exits(0, 'queues');
	like($out, qr/^QUEUE +OWNER +PENDING.*^side +app +.* 3$/ms, 'queues as a table') or diag($out);
	my $rows = $cli->json('queues', 'side');
	is($rows->[0]{max_running}, 3, 'and as JSON');
	($out) = exits(0, 'queues', 'none');
	is($out, "no queues\n", 'no such queue');
	is_deeply($cli->json('queues', 'none'), [], 'as JSON');
	is(scalar(grep { $_->{definition} eq 'echo' } @{ $cli->json('definitions') }), 1, 'definitions');
	($out) = exits(0, 'definitions', '--all-versions');
	like($out, qr/^order +1 +app +workflow/m, 'as a table');
	($out) = exits(0, 'schedules');
	is($out, "no schedules\n", 'schedules');
	is(outcome($node, 'app', q{orchestrator.run('SELECT 1')})->{state}, 'completed', 'an executor comes');
	ok(scalar(grep { $_->{kind} eq 'executor' } @{ $cli->json('workers') }), 'workers');
	($out) = exits(0, 'workers');
	like($out, qr/^ *\d+ +executor +app +(?:idle|busy)/m, 'as a table');
};

subtest 'tasks' => sub {
	my $failed = outcome($node, 'app', q{orchestrator.enqueue('fails', '{"a": 1}')})->{id};
	my $fine = outcome($node, 'app', q{orchestrator.enqueue('echo', '{"b": [1, 2]}', name => 'zwölf ☃', queue => 'side')})->{id};
	my ($out, $err) = exits(0, 'list');
	utf8::decode($out);
	like($out, qr/^TASK +NAME.*^ *$fine +zwölf ☃ +completed +100 %/ms, 'list') or diag($out);
	unlike($out, qr/\e/, 'no colours in a pipe');
	($out) = exits(0, 'list', '--state', 'failed', '--definition', 'fails');
	like($out, qr/^ *$failed +fails +failed .* planned /m, 'with its error');
	is_deeply([ map { $_->{task_id} } @{ $cli->json('list', '--queue', 'side', '--owner', 'app', '--since', '1 hour') } ], [$fine], 'filters');
	is_deeply($cli->json('list', '--state', 'running', '--state', 'pending'), [], 'none is live');
	is(scalar @{ $cli->json('list', '-s', 'failed', '-s', 'pending') }, 1, 'live and finished ones');
	is(scalar @{ $cli->json('list', '--limit', 1) }, 1, 'a limit');
	($out, $err) = exits(1, 'list', '--since', 'yesteryear');
	like($err, qr/invalid input syntax for type interval/, 'an error of the server');
	($out, $err) = exits(1, 'list', '--state', 'runing');
	like($err, qr/invalid input value for enum orchestrator.task_state: "runing"/, 'a state that is none');

	($out) = exits(0, 'show', $failed);
	like($out, qr/^state +failed\n.*^error +planned\nsqlstate +P0001\ndetail +so it is\nhint +Let it be\.\n.*^input\n\{\n    "a": 1\n\}/ms, 'show') or diag($out);
	is($cli->json('show', $fine)->{output}{b}[1], 2, 'as JSON');
	($out, $err) = exits(1, 'show', 999_999);
	like($err, qr/task 999999 does not exist/, 'no such task');
	is((client($node, 'other')->run('show', $fine))[0], 1, 'a task of somebody else');

	($out) = exits(0, 'trace', $failed);
	like($out, qr/ created .* failed +1 +.*planned/s, 'trace');
	is_deeply([ map { $_->{event} } @{ $cli->json('trace', $fine) } ], [qw(created started completed)], 'as JSON');
	is((exits(1, 'trace', 999_999))[0], "nothing is known of this task\n", 'of no task');
};

subtest 'runs' => sub {
	my $run = $node->psql_as('app', q{SELECT orchestrator.enqueue('order', '{"pause": 0.01}')});
	$node->wait_for("SELECT state = 'waiting' AND task_id IS NOT NULL FROM orchestrator.step_status WHERE run_id = $run AND step = 'approval'");
	my ($out) = exits(0, 'show', $run);
	like($out, qr/^STEP +TASK +STATE.*^reserve +\d+ +completed.*^approval +\d+ +waiting .*waits for signal approval$/ms, 'show has the steps') or diag($out);
	is($cli->json('show', $run)->{steps}[3]{step}, 'ship', 'as JSON');
	($out) = exits(0, 'graph', $run);
	like($out, qr/^task $run "order": running.*^\[x\] reserve/ms, 'graph');
	like($cli->json('graph', $run, '--format', 'dot')->{graph}, qr/^digraph \{/, 'as JSON, in dot');
	($out) = exits(0, 'graph', '--definition', 'order', '-f', 'mermaid');
	like($out, qr/^flowchart TD/, 'of a definition');
	exits(1, 'graph', $run, '-f', 'oil');
	is(scalar @{ $cli->json('list', '--parent', $run) }, 3, 'its steps');
	ok(scalar(grep { $_->{task_id} != $run } @{ $cli->json('trace', '--steps', $run) }), 'their trace');
};

subtest 'hostile text' => sub {
	# escape sequences, a bell, C1, directions, a line end, wide and combining characters, very long
	my $name = "\e[2J\e]0;owned\a\x{9b}31m\x{202e}evil\r\nforged 名前e\x{301}" . ('x' x 150);
	utf8::encode(my $bytes = $name);
	my $id = $node->safe_psql('postgres', <<"SQL", extra_params => [ '-U', 'app', '-v', "name=$bytes" ]);
SELECT orchestrator.enqueue('echo', jsonb_build_object('x', :'name'), name => :'name', delay => '1 day')
SQL
	foreach my $command ([ 'list' ], [ 'show', $id ], [ 'trace', $id ], [ 'graph', $id ])
	{
		my ($out) = exits(0, @$command);
		utf8::decode($out);
		unlike($out, qr/[\x00-\x09\x0b-\x1f\x7f-\x9f\x{202e}]/, "$command->[0] lets no control character pass");
		unlike($out, qr/^forged/m, "$command->[0] lets no line be forged");
	}
	my ($out) = exits(0, '--json', 'show', $id);
	unlike($out, qr/\x{c2}[\x80-\x9f]|[\x00-\x09\x0b-\x1f\x7f]|\xe2\x80\xae/, 'nor does JSON');
	is(OrchestratorClient::decode_json_text($out)->{name}, $name, 'which is exact all the same');
	my $t;
	foreach my $width (60, 150, 151, 152)
	{
		$t = $cli->terminal($width, 24, 'list', '--limit', 1);
		is($t->exit_code, 0, "on a terminal of $width columns");
		my ($line) = grep { /owned|x1b/ } $t->screen;
		like($line, qr/…/, 'long names are cut');
		like($line, qr/名前e\x{301}/, 'characters are whole') if $width > 100;
		$line =~ s/\e\[\d*m//g;
		# two columns each, and none
		cmp_ok(length($line) + (() = $line =~ /[名前]/g) - (() = $line =~ /\x{301}/g), '<=', $width, 'and lines are no longer than it');
	}
	like($t->text, qr/\e\[2mscheduled\e\[0m/, 'and states have colours');
	$t = do { local $ENV{NO_COLOR} = '1'; $cli->terminal(80, 24, 'list', '--limit', 1) };
	$t->exit_code;
	unlike($t->text, qr/\e\[\d/, 'but not with NO_COLOR');
	$node->psql_as('app', "SELECT orchestrator.cancel($id)");
};

subtest 'files' => sub {
	ok(-s client_files('--mandir', 'man1', 'orchestrator.1'), 'the man page is installed');
	my $completion = (grep { -s } map { client_files('--sharedir') . "/$_/bash-completion/completions/orchestrator" } '..', '../..', '.')[0];
	ok($completion, 'the completion is installed') or return;
	my $program = client_program();
	my ($out) = run_command([ 'bash', '-c', <<"SH" ]);
. '$completion'
COMP_WORDS=('$program' -d postgres li); COMP_CWORD=3; _orchestrator; echo "\${COMPREPLY[@]}"
COMP_WORDS=('$program' list --st); COMP_CWORD=2; compopt() { :; }; _orchestrator; echo "\${COMPREPLY[@]}"
COMP_WORDS=('$program' --host = nowhere tasks up); COMP_CWORD=5; _orchestrator; echo "\${COMPREPLY[@]}"
COMP_WORDS=('$program' help def); COMP_CWORD=2; _orchestrator; echo "\${COMPREPLY[@]}"
SH
	is($out, "list\n--state= --steps\nupload\ndefinitions", 'and completes commands and options');
};

done_testing();
