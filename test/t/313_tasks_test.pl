# tasks test: a task is run once, and nothing of it stays.

use strict;
use warnings;
use lib 'test/chaos';

use Fault;
use JSON::PP ();
use OrchestratorClient;
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

$PostgreSQL::Test::Utils::timeout_default = 30;

my $node = new_node(name => 'trial', timezone => 'UTC');
$node->start;
$node->create_extension;
$node->plain_role('app');
$node->safe_psql('postgres', 'CREATE SCHEMA app AUTHORIZATION app');

my $folder = PostgreSQL::Test::Utils::tempdir() . '/tasks';
my $cli = client($node, 'app');

sub put
{
	my ($path, $content) = @_;
	put_file("$folder/$path", $content);
	chmod 0755, "$folder/$path" unless $path =~ /\.(json|sql)$/;
	return;
}

sub try_task
{
	my ($code, $name, @more) = @_;
	my ($got, $out, $err) = $cli->run('tasks', 'test', $name, '--tasks', $folder, @more);
	is($got, $code, "exit code of $name") or diag($out, $err);
	return ($out, $err);
}

subtest 'in the database' => sub {
	put('f/task.json', { handler => 'app.f' });
	put('f/f.sql', <<'SQL');
CREATE TABLE IF NOT EXISTS app.seen (v jsonb);
CREATE OR REPLACE FUNCTION app.f(input jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO app.seen VALUES (input);
  RAISE NOTICE 'it got %', input;
  RETURN jsonb_build_object('rows', (SELECT count(*) FROM app.seen));
END $$;
SQL
	my ($out, $err) = try_task(0, 'f', '--input', '{"a": 1}');
	like($out, qr/^\{"rows": 1\}\ntook .* m?s\nrolled back$/m, 'its output');
	like($err, qr/^NOTICE: it got \{"a": 1\}$/m, 'its notices');
	is($node->safe_psql('postgres', q{SELECT to_regclass('app.seen'), to_regprocedure('app.f(jsonb)')}), '|', 'nothing stays of it');
	is($node->psql_as('app', 'SELECT count(*) FROM orchestrator.definition'), 0, 'nor of its definition');
	is($cli->json('tasks', 'test', 'f', '--tasks', $folder)->{output}{rows}, 1, 'as JSON');
	($out, $err) = try_task(1, 'f', '--input', '{');
	like($err, qr/invalid input syntax for type json/, 'an input that is none');

	put('many/task.json', { handler => 'app.many', batch_size => 10 });
	put('many/many.sql', 'CREATE FUNCTION app.many(inputs jsonb[]) RETURNS jsonb[] LANGUAGE sql AS $$ SELECT inputs $$;');
	($out) = try_task(0, 'many', '--input', '{"a": 1}');
	like($out, qr/a\\?":? ?1/, 'one that takes many inputs') or diag($out);
	put('command/task.json', { kind => 'sql', handler => q{SELECT $1 ->> 'x' AS x, 1.5 AS n, true AS t, NULL AS nothing, '{"a": 2}'::jsonb AS j} });
	is_deeply($cli->json('tasks', 'test', 'command', '--tasks', $folder, '--input', '{"x": "\u00e4\""}')->{output},
		[ { x => "\x{e4}\"", n => 1.5, t => JSON::PP::true, nothing => undef, j => { a => 2 } } ], 'the rows of a command');
	put('proc/task.json', { kind => 'procedure', handler => 'app.proc' });
	put('proc/proc.sql', q{CREATE PROCEDURE app.proc(input jsonb) LANGUAGE plpgsql AS $$ BEGIN RAISE WARNING 'called'; END $$;});
	($out, $err) = try_task(0, 'proc');
	like($err, qr/^WARNING: called$/m, 'a procedure');
	put('util/task.json', { kind => 'utility', handler => 'ANALYZE pg_catalog.pg_class' });
	try_task(0, 'util');
	put('flow/task.json', { steps => [ { name => 'a', definition => 'f' }, { name => 'b', definition => 'command', needs => ['a'] } ] });
	($out) = try_task(0, 'flow');
	like($out, qr/b.*<- a/, 'the graph of a workflow, whose steps are only in files');
	put('slow/task.json', { handler => 'app.slow', timeout => '200 ms' });
	put('slow/slow.sql', q{CREATE FUNCTION app.slow(input jsonb) RETURNS void LANGUAGE sql AS $$ SELECT pg_sleep(30) $$;});
	($out, $err) = try_task(1, 'slow');
	like($err, qr/statement timeout/, 'its time-out counts');
	put('bad/task.json', { handler => 'app.bad' });
	put('bad/bad.sql', "\nSELEKT");
	($out, $err) = try_task(1, 'bad');
	like($err, qr{bad/bad\.sql:2: syntax error}, 'what is wrong with a file is told with its line');
};

subtest 'programs' => sub {
	put('prog/task.json', {});
	put('prog/prog.sh', <<'SH');
#!/bin/sh
echo 'on standard error' >&2
echo '0.5 half of it' >&3
printf '{"input": %s, "folder": "%s"}' "$(cat)" "$(basename "$PWD")"
SH
	my ($out, $err) = try_task(0, 'prog', '--input', '{"a": 1}');
	like($out, qr/^\{"input": \{"a": 1\}, "folder": "prog"\}$/m, 'its output, from its folder');
	like($err, qr/^stderr: on standard error$/m, 'what it says');
	like($err, qr/^report: 0\.5 half of it$/m, 'and reports');
	($out, $err) = try_task(1, 'prog', '--input', '{"a":');
	like($err, qr/the input is no JSON, line 1: it ends in the middle/, 'an input that is none');
	put('prog/prog.sh', qq(#!/bin/sh\nprintf '"%s %s %s"' "\$ORCHESTRATOR_DEFINITION" "\$ORCHESTRATOR_ATTEMPT" "\$ORCHESTRATOR_STRAY"\n));
	{
		local $ENV{ORCHESTRATOR_STRAY} = 'not of the task';
		is($cli->json('tasks', 'test', 'prog', '--tasks', $folder)->{output}, 'prog 1 ', 'its environment is as work makes it');
	}
	put('prog/prog.sh', "#!/bin/sh\nexit 3\n");
	($out, $err) = try_task(1, 'prog');
	like($err, qr/prog failed with exit code 3/, 'one that fails');
	put('prog/prog.sh', "#!/bin/sh\necho '{\"a\": 1'\n");
	($out, $err) = try_task(1, 'prog');
	like($err, qr/the output of prog is no JSON/, 'output that is none');
	put('prog/prog.sh', qq(#!/bin/sh\nhead -c 1100000 /dev/zero | tr '\\0' 1\n));
	($out, $err) = try_task(0, 'prog');
	like($err, qr/the output has 1100000 bytes: work takes 1048576/, 'more output than work would take');
	put('prog/prog.sh', "#!/bin/sh\nexit 0\n");
	is($cli->json('tasks', 'test', 'prog', '--tasks', $folder)->{output}, undef, 'no output is null');
	put('prog/task.json', { timeout => '300 ms' });
	put('prog/prog.sh', "#!/bin/sh\nsleep 60 & sleep 60\n");
	my $start = time;
	($out, $err) = try_task(1, 'prog');
	like($err, qr/^timeout: it gets TERM\n(?!grace).*prog took longer than its time-out/ms, 'its time-out counts');
	cmp_ok(time - $start, '<', 20, 'and ends what it started');
	put('prog/prog.sh', "#!/bin/sh\ntrap 'echo 1; exit 0' TERM\nsleep 60 & wait\n");
	($out, $err) = try_task(1, 'prog');
	like($err, qr/prog took longer than its time-out/, 'also where it ends well then');
	is($out, '', 'and what it writes is no output');
	put('none/task.json', { kind => 'remote' });
	($out, $err) = try_task(1, 'none');
	like($err, qr/"none" has no program here/, 'one without a program');
	try_task(1, 'nosuch');
};

# Ctrl-C while a program runs, which says when it is ready for that: what stood
# on standard error in the end.
sub interrupt
{
	my (@options) = @_;
	my $job = $cli->start('tasks', 'test', 'prog', '--tasks', $folder, @options);
	ok(defined within(20, sub { $job->{run}->pump_nb; $job->{err} =~ /^stderr: ready \d+$/m }), 'it runs');
	$job->signal('INT');
	is($job->exit_code, 130, 'Ctrl-C ends it');
	return $job->{err};
}

subtest 'TERM and KILL' => sub {
	put('prog/task.json', {});
	put('prog/prog.sh', "#!/bin/sh\ntrap 'echo cleaned up >&2; exit 0' TERM\nsleep 60 &\necho ready \$! >&2\nwait\n");
	my $err = interrupt('--grace', 60);
	like($err, qr/^stderr: cleaned up$/m, 'it may clean up');
	unlike($err, qr/it is killed/, 'in time');
	put('prog/prog.sh', "#!/bin/sh\ntrap '' TERM\nsleep 60 &\necho ready \$! >&2\nwait\n");
	$err = interrupt('--grace', 0.2);
	like($err, qr/^grace: it is killed$/m, 'one that ignores TERM is killed');
	my ($child) = $err =~ /ready (\d+)/;
	ok(defined within(10, sub { gone($child) }), 'with what it started');
};

$node->stop;
done_testing();
