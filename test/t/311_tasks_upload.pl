# Definitions as files and in the database: list, upload, purge.

use strict;
use warnings;
use utf8;

use File::Path qw(remove_tree);
use JSON::PP ();
use OrchestratorClient;
use OrchestratorStep;
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;

$PostgreSQL::Test::Utils::timeout_default = 30;

my $node = new_node(name => 'upload', timezone => 'UTC');
$node->start;
$node->create_extension;
$node->plain_role($_) foreach 'app', 'other';
$node->safe_psql('postgres', 'CREATE SCHEMA app AUTHORIZATION app');

my $folder = PostgreSQL::Test::Utils::tempdir() . '/tasks';
my $cli = client($node, 'app');

sub put { return put_file("$folder/$_[0]", $_[1]) }

sub tasks
{
	my ($code, @arguments) = @_;
	my ($got, $out, $err) = $cli->run('tasks', @arguments, '--tasks', $folder);
	is($got, $code, 'exit code of ' . join ' ', 'tasks', @arguments) or diag($out, $err);
	return ($out, $err);
}

# name => state of each
sub states
{
	my (@options) = @_;
	return { map { ($_->{task} => $_->{state}) } @{ $cli->json('tasks', 'list', '--tasks', $folder, @options) } };
}

# "name version" of each that was uploaded
sub uploaded
{
	my (@arguments) = @_;
	return join ', ', map { "$_->{task} $_->{version}" } grep { $_->{uploaded} } @{ $cli->json('tasks', 'upload', '--tasks', $folder, @arguments) };
}

sub echo
{
	my ($name, $value) = @_;
	return "CREATE OR REPLACE FUNCTION app.$name(input jsonb) RETURNS jsonb LANGUAGE sql AS \$\$ SELECT '$value'::jsonb \$\$;\n";
}

put('one/task.json', { handler => 'app.one', max_attempts => 2, retry_delay => '2 s', never_retry => [ '22', '23505' ], retry_jitter => 0.5,
	timeout => '1 min', priority => 3, description => 'Die „Eins“', metadata => { team => 'docs' } });
put('one/one.sql', echo('one', 1));
put('two/task.json', { kind => 'sql', handler => 'SELECT 2 AS two' });
put('both/task.json', { description => 'both', steps => [ { name => 'a', definition => 'one' }, { name => 'b', definition => 'two', needs => ['a'] } ] });

subtest 'upload' => sub {
	is_deeply(states(), { one => 'local only', two => 'local only', both => 'local only' }, 'nothing is there yet');
	my ($out) = tasks(0, 'upload', '--all', '--dry-run');
	like($out, qr/^one +function +local only +1\n.*^nothing was changed$/ms, 'a plan');
	is_deeply(states('--remote'), {}, 'which changes nothing');
	is($node->safe_psql('postgres', q{SELECT to_regprocedure('app.one(jsonb)')}), '', 'at all');
	is(uploaded('--all'), 'one 1, two 1, both 1', 'all of them, what is used first');
	is_deeply(states(), { one => 'same', two => 'same', both => 'same' }, 'they are there');
	is(uploaded('--all'), '', 'and not uploaded again');
	is(uploaded('--all', '--force'), 'one 1, two 1, both 1', 'unless they are forced: an equal definition is no new version');
	is(outcome($node, 'app', q{orchestrator.enqueue('both')})->{state}, 'completed', 'they run');
	my $document = JSON::PP->new->utf8->decode($node->psql_as('app', q{SELECT orchestrator.definition_json('one')}));
	my $checksum = delete $document->{metadata}{files}{checksum};
	like($checksum, qr/^[0-9a-f]{64}$/, 'the checksum is in the metadata');
	is_deeply($document, { name => 'one', handler => 'app.one', max_attempts => 2, retry_delay => '00:00:02', never_retry => [ '22', '23505' ],
		retry_jitter => 0.5, timeout => '00:01:00', priority => 3, description => 'Die „Eins“', metadata => { team => 'docs', files => {} } }, 'and all that the file says in the definition');
	is((states('--local', '--remote'))->{one}, 'same', 'in both');
	is($cli->json('tasks', 'list', '--tasks', $folder)->[1]{local_checksum}, $checksum, 'as JSON');
	($out) = tasks(0, 'list', '--verbose');
	like($out, qr/^TASK +KIND +STATE +VERSION.*REMOTE CHECKSUM\n.*^one +function +same +1 .*$checksum +$checksum/ms, 'as a table');
	is((client($node, 'other')->run('tasks', 'list', '--remote', '--tasks', $folder))[1], "no tasks\n", 'nothing of it is somebody else\'s');
};

subtest 'without a server' => sub {
	my $expected = $cli->json('tasks', 'list', '--tasks', $folder);
	delete @$_{qw(state version uploaded_at live remote_checksum number)} foreach @$expected;
	local $cli->{options} = [ '-h', '/nonexistent', '-w' ];
	my $rows = $cli->json('tasks', 'list', '--local', '--tasks', $folder);
	delete $_->{number} foreach @$rows;
	is_deeply($rows, $expected, 'what files say as with one, also the order');
	my ($out) = tasks(0, 'list', '--local');
	utf8::decode($out);
	is($out, "TASK  KIND      DESCRIPTION\nboth  workflow  both\none   function  Die „Eins“\ntwo   sql\n", 'as a table');
	($out) = tasks(0, 'list', '--local', '--verbose');
	like($out, qr/LOCAL CHECKSUM\n.*^two +sql +[0-9a-f]{64}$/ms, 'with checksums');
	my $empty = PostgreSQL::Test::Utils::tempdir();
	is(($cli->run('tasks', 'list', '--local', '--tasks', $empty))[1], "no tasks\n", 'of an empty folder');
	tasks(3, 'list', @$_) foreach [], ['--remote'], [ '--local', '--remote' ], [ '--local', '--sync' ];
};

subtest 'changes' => sub {
	put('one/one.sql', echo('one', 11));
	is_deeply(states(), { one => 'changed', two => 'same', both => 'changed' }, 'a change reaches the workflow that has it as a step');
	my ($out) = tasks(0, 'list', '--sync');
	like($out, qr/^changed, to be uploaded +2 +both, one\n.*^orphaned +0$/ms, 'what is to be done');
	is(uploaded('one'), 'one 2', 'one by its name');
	is_deeply(states(), { one => 'same', two => 'same', both => 'changed' }, 'the workflow still has the old version');
	is(uploaded('both'), 'both 2', 'until it is uploaded');
	my $run = outcome($node, 'app', q{orchestrator.enqueue('both')})->{id};
	is($node->psql_as('app', "SELECT version FROM orchestrator.step_status WHERE run_id = $run AND step = 'a'"), 2, 'then it has the new one');
	put('two/task.json', { kind => 'sql', handler => 'SELECT 22 AS two' });
	is(uploaded('both'), 'two 2, both 3', 'what it uses comes with it');
	$node->psql_as('app', q{SELECT orchestrator.define('two', 'SELECT 3', kind => 'sql')});
	is((states())->{two}, 'changed', 'what was defined over it by hand is seen');
	is(uploaded('--all'), 'two 2', 'and its version comes back');
	($out) = tasks(2, 'upload');
	($out) = tasks(2, 'upload', 'one', '--all');
};

subtest 'all or none' => sub {
	my $before = $node->psql_as('app', 'SELECT count(*), max(id) FROM orchestrator.definition');
	my $refused = sub {
		my ($pattern, $name) = @_;
		my ($out, $err) = tasks(1, 'upload', '--all');
		like($err, $pattern, $name);
		is($out, '', 'nothing is shown as done');
		is($node->safe_psql('postgres', q{SELECT to_regprocedure('app.aaa(jsonb)')}), '', 'nothing of the others is there');
		is($node->psql_as('app', 'SELECT count(*), max(id) FROM orchestrator.definition'), $before, 'no definition either');
		remove_tree("$folder/bad");
	};
	put('aaa/task.json', { handler => 'app.aaa' });
	put('aaa/aaa.sql', echo('aaa', 1));
	put('bad/task.json', { handler => 'app.nowhere' });
	$refused->(qr{/bad/task\.json:1: key "handler": function app\.nowhere\(jsonb\) does not exist \(A handler}, 'a function that is not there');
	put('bad/task.json', { handler => 'app.bad' });
	put('bad/bad.sql', "-- ä ö ü\nSELECT 1;\nSELEKT 2;\n");
	$refused->(qr{/bad/bad\.sql:3: syntax error at or near "SELEKT"}, 'a script that does not parse, with its line');
	put('bad/task.json', { handler => 'app.bad' });
	put('bad/bad.sql', echo('bad', 1) . "SELECT 1 / 0;");
	$refused->(qr{/bad/bad\.sql: division by zero}, 'one that fails');
	foreach my $command ('COMMIT', 'ROLLBACK', 'BEGIN', 'SAVEPOINT x', 'COMMIT; BEGIN')
	{
		put('bad/task.json', { handler => 'app.aaa' });
		put('bad/bad.sql', "$command;");
		$refused->(qr{/bad/bad\.sql: .*transaction commands}, "one that says $command");
	}
	put('bad/task.json', { handler => 'app.aaa', queue => 'nowhere' });
	$refused->(qr{/bad/task\.json:1: key "queue": queue "nowhere" does not exist}, 'a queue that is not there');
	put('bad/task.json', qq({"kind": "sql", "handler": "SELECT 1",\n"timeout": "0"}));
	$refused->(qr{/bad/task\.json:2: key "timeout": timeout must be positive}, 'a value that only the server judges');
	put('bad/task.json', qq({"steps": [{"name": "b", "sleep": "1 s"},\n{"name": "a", "definition": "nowhere"}]}));
	$refused->(qr{/bad/task\.json:2: key "steps\[1\]\.definition": definition "nowhere" does not exist}, 'a step that is not there');
	put('bad/task.json', qq({"steps": [{"name": "b", "sleep": "1 s"},\n{"name": "a", "sleep": "1 s", "max_parallel": 3}]}));
	$refused->(qr{/bad/task\.json:2: key "steps\[1\]": step "a" has max_parallel without each}, 'a step that is wrong as a whole');
	put('bad/task.json', '{"handler": 1}');
	$refused->(qr{/bad/task\.json:1: key "handler": it is not a text}, 'a file that is wrong by itself');
	put('bad/task.json', { handler => 'app.aaa' });
	put('bad/bad.sql', 'CREATE ROLE root SUPERUSER');
	$refused->(qr{/bad/bad\.sql: .*(must be superuser|permission denied to create role)}, 'what the role may not');
	put('bad/task.json', { handler => 'aaa.aaa' });
	put('bad/bad.sql', "SET search_path = nowhere; SET statement_timeout = 1;");
	$refused->(qr{/bad/task\.json:1: key "handler": function aaa\.aaa\(jsonb\) does not exist}, 'what a script sets ends with it');
	is(uploaded('--all'), 'aaa 1', 'without it all is well');
	put('bad/task.json', { handler => 'app.aaa' });
	put('bad/bad.sql', "SET SESSION AUTHORIZATION other; DO 'BEGIN RAISE NOTICE ''said''; END'");
	my ($code, $out, $err) = client($node, 'postgres')->run('tasks', 'upload', 'bad', '--verbose', '--tasks', $folder);
	like($out, qr/^TASK .*CHECKSUM\nbad +function +local only +1 +[0-9a-f]{64}$/m, 'what is uploaded, with its checksum') or diag($err);
	is($err, "NOTICE: said\n", 'and what scripts say');
	is($node->safe_psql('postgres', q{SELECT o.name FROM orchestrator.definition d JOIN orchestrator.owner o ON o.id = d.owner WHERE d.name = 'bad'}), 'postgres', 'it belongs to who uploads it, whoever its script became');
	remove_tree("$folder/bad");
};

subtest 'purge' => sub {
	$node->psql_as('app', q{SELECT orchestrator.define('by_hand', 'SELECT 1', kind => 'sql')});
	remove_tree("$folder/$_") foreach qw(one aaa);
	put('both/task.json', { steps => [ { name => 'b', definition => 'two' } ] });
	is_deeply(states(), { one => 'orphaned', aaa => 'orphaned', two => 'same', both => 'changed', by_hand => 'not from files' }, 'what is no longer there');
	my ($out, $err) = tasks(1, 'purge', '--orphaned', '-y');
	like($err, qr/^one: it is used: workflow both$/m, 'a workflow still has it');
	is(uploaded('--all'), 'both 4', 'until that is uploaded');
	($out, $err) = tasks(5, 'purge', '--orphaned');
	like($out, qr/^aaa +function +1 +app\.aaa\(jsonb\)\none +function +1, 2 /m, 'all that would go is shown');
	is_deeply(states('--remote'), { one => 'orphaned', aaa => 'orphaned', two => 'same', both => 'same', by_hand => 'not from files' }, 'and stays without a yes');

	my $task = $node->psql_as('app', q{SELECT orchestrator.enqueue('aaa', delay => '1 day')});
	($out, $err) = tasks(1, 'purge', '--orphaned', '-y');
	like($err, qr/^aaa: it is used: task $task$/m, 'an unfinished task uses it');
	is_deeply((states())->{one}, 'orphaned', 'then nothing goes');
	($out) = tasks(0, 'purge', '--orphaned', '-y', '--force');
	like($out, qr/^deleted 2 definitions\n2 versions stay, being steps of another version of a workflow$/m, 'forced');
	is($node->psql_as('app', "SELECT state FROM orchestrator.task_status WHERE task_id = $task"), 'cancelled', 'its tasks are cancelled');
	is_deeply(states(), { two => 'same', both => 'same', by_hand => 'not from files' }, 'they are gone');
	is($node->safe_psql('postgres', q{SELECT to_regprocedure('app.aaa(jsonb)') IS NOT NULL}), 't', 'the function stays');
	($out) = tasks(0, 'purge', '--orphaned');
	is($out, "nothing is orphaned\n", 'no more');
	is_deeply($cli->json('tasks', 'purge', '--orphaned', '--tasks', $folder), [], 'as JSON');

	$node->psql_as('app', q{SELECT orchestrator.define('caller', 'SELECT 1', kind => 'sql', success_callback => 'by_hand')});
	($out, $err) = tasks(1, 'purge', 'by_hand', '-y');
	like($err, qr/^by_hand: it is used: callback of caller$/m, 'a callback uses it');
	$node->safe_psql('postgres', 'SELECT orchestrator.tick()');
	$node->psql_as('app', q{SELECT orchestrator.schedule('nightly', '@daily', 'by_hand')});
	($out, $err) = tasks(1, 'purge', 'by_hand', 'caller', '-y');
	like($err, qr/^by_hand: it is used: schedule nightly$/m, 'and a schedule');
	$node->psql_as('app', q{SELECT orchestrator.unschedule('nightly')});
	($out) = tasks(0, 'purge', 'by_hand', 'caller', 'caller', '-y');
	like($out, qr/^deleted 2 definitions$/m, 'together they go');
	is($node->psql_as('app', q{SELECT count(*) FROM orchestrator.definition WHERE name IN ('by_hand', 'caller', 'aaa')}), 0, 'with all versions');
	($out, $err) = tasks(1, 'purge', 'by_hand', '-y');
	like($err, qr/you have no definition "by_hand"/, 'what is not there');
	($out, $err) = client($node, 'other')->run('tasks', 'purge', 'two', '-y', '--tasks', $folder);
	is($out, 1, 'nor is what belongs to somebody else');
	tasks(2, 'purge');
	tasks(2, 'purge', 'two', '--orphaned');
	($out) = tasks(0, 'purge', 'both', 'two', 'one', '-y');
	is($node->psql_as('app', q{SELECT count(*) FROM orchestrator.definition WHERE name NOT LIKE 'orchestrator.%'}), 0, 'a workflow and its steps, with all that stayed for it')
	  or diag($node->psql_as('app', q{SELECT name, version FROM orchestrator.definition}));
	put('two/task.json', '{');
	($out, $err) = tasks(1, 'purge', '--orphaned', '-y');
	like($err, qr/two\/task\.json:1:/, 'a file that is wrong is not taken for one that is gone');
};

subtest 'outside calls' => sub {
	remove_tree($folder);
	$node->safe_psql('postgres', q{CREATE SERVER model FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url 'https://model.example', provider 'openai');
		GRANT USAGE ON FOREIGN SERVER model TO app});
	$node->psql_as('app', q{SELECT orchestrator.define('look', 'SELECT 1', 'sql'), orchestrator.define_tool('look')});
	my %file = (
		ask    => { kind => 'llm', endpoint => 'model', request => { model => 'm', prompt => '$', tools => ['look'] } },
		vector => { kind => 'embedding', endpoint => 'model', request => { model => 'm', input => '$.text' } },
		act    => { kind => 'tool', request => { tools => ['look'] } },
		call   => { kind => 'http', endpoint => 'model', request => { path => '/', headers => { 'X-A' => 'b' } } },
		acts   => { steps => [ { name => 'a', kind => 'tool', request => { tools => ['look'] } } ] });
	put("$_/task.json", $file{$_}) foreach keys %file;
	is(uploaded('--all'), 'act 1, acts 1, ask 1, call 1, vector 1', 'models and tools');
	is(states()->{$_}, 'same', "$_ is as its file says") foreach sort keys %file;
	(undef, my $used) = tasks(1, 'purge', 'look', '-y');
	like($used, qr/^look: it is used: workflow acts, tool of act, tool of ask$/m, 'a list of tools uses one');
	put('act/task.json', { kind => 'tool' });
	my (undef, $err) = tasks(1, 'upload', 'act');
	like($err, qr/there is no handler, program or steps/, 'a list of tools is said by its request');
};

$node->stop;
done_testing();
