# Definitions as files: what is read of a folder of tasks, and what is refused.

use strict;
use warnings;
use utf8;

use File::Path qw(make_path remove_tree);
use IPC::Run ();
use JSON::PP ();
use OrchestratorClient;
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $json = JSON::PP->new->canonical;
my $folder = PostgreSQL::Test::Utils::tempdir() . '/tasks';
my $program = client_program();

# The client without a server.
sub local_run
{
	my (@arguments) = @_;
	my ($out, $err) = ('', '');
	IPC::Run::run([ $program, '-h', '/nowhere', @arguments ], '<', \undef, '>', \$out, '2>', \$err, IPC::Run::timeout(30));
	return ($? >> 8, $out, $err);
}

# A task with these files: a reference is made JSON, one with a "x" before its
# name executable.
sub put_task
{
	my ($name, %files) = @_;
	remove_tree("$folder/$name");
	make_path("$folder/$name");
	foreach my $file (keys %files)
	{
		my $content = ref $files{$file} ? $json->encode($files{$file}) : $files{$file};
		my $mode = $file =~ s/^x// ? 0755 : 0644;
		open my $handle, '>:raw', "$folder/$name/$file" or die "$file: $!";
		print $handle $content;
		close $handle;
		chmod $mode, "$folder/$name/$file";
	}
	return;
}

sub check_is_fine
{
	my ($name, $kind, $test) = @_;
	my ($code, $out, $err) = local_run('tasks', 'check', '--tasks', $folder, $name);
	is($out, "$name: $kind, fine\n", $test) or diag($err);
	return;
}

# The files are refused, with the reason and its place.
sub check_says
{
	my ($name, $pattern, $test) = @_;
	my ($code, $out, $err) = local_run('tasks', 'check', '--tasks', $folder, $name);
	like($err, $pattern, $test);
	is($code, 1, "exit code of $test");
	remove_tree("$folder/$name");
	return;
}

# The same of a document alone.
sub document_says
{
	my ($document, $pattern, $test) = @_;
	put_task('doc', 'task.json' => $document);
	return check_says('doc', $pattern, $test);
}

subtest 'new and check' => sub {
	foreach (qw(sql python shell workflow))
	{
		my ($code, $out, $err) = local_run('tasks', 'new', "My-$_", '--kind', $_, '--tasks', $folder, '--schema', 'app');
		is($code, 0, "new $_") or diag($err);
		like($out, qr{^\Q$folder/My-$_/task.json\E$}m, 'and says what it made');
	}
	is((local_run('tasks', 'new', 'My-sql', '--tasks', $folder))[0], 1, 'not where one is');
	is_deeply($json->decode((local_run('tasks', 'new', 'My-more', '--tasks', $folder, '--json'))[1]), [ "$folder/My-more/task.json", "$folder/My-more/My-more.sql" ], 'as JSON');
	remove_tree("$folder/My-more");
	is((local_run('tasks', 'new', $_, '--tasks', $folder))[0], 2, "not as $_") foreach '../x', '/x', '-k', '.x', 'a b', 'a/b', '', 'x' x 101;
	is((local_run('tasks', 'new', 'x', '--kind', 'cobol', '--tasks', $folder))[0], 2, 'nor of another kind');
	my ($code, $out) = local_run('tasks', 'check', '--tasks', $folder);
	is($out, "My-python: remote, fine\nMy-shell: remote, fine\nMy-sql: function, fine\nMy-workflow: workflow, fine\n", 'all of them are right');
	my ($first) = map { $json->decode((local_run('tasks', 'check', '--json', '--tasks', $folder, 'My-sql'))[1])->[0] } 1;
	append_to_file("$folder/My-sql/My-sql.sql", "-- changed\n");
	my ($second) = map { $json->decode((local_run('tasks', 'check', '--json', '--tasks', $folder, 'My-sql'))[1])->[0] } 1;
	like($first->{checksum}, qr/^[0-9a-f]{64}$/, 'a checksum');
	isnt($second->{checksum}, $first->{checksum}, 'another one when a file changes');
	($code, $out, my $err) = local_run('tasks', 'check', '--tasks', $folder, 'none', 'My-sql');
	like($err, qr{/none: there is no such task$}m, 'a name that is not there');
	($code, $out, $err) = local_run('tasks', 'check', '--tasks', "$folder/none");
	is($code, 1, 'a folder that is not there');
	like($err, qr{none: No such file or directory}, 'which it says');
	remove_tree($folder);
	make_path("$folder/.git", "$folder/__pycache__");
	is((local_run('tasks', 'check', '--tasks', $folder))[1], "no tasks\n", 'what begins with . or _ is no task');
};

subtest 'completion' => sub {
	my ($code, $out) = local_run('help', '--words', 'tasks');
	is(join(' ', grep { /^[a-z]/ } split /\n/, $out), 'list upload purge test check new schema', 'the commands of tasks');
	($code, $out) = local_run('help', '--words', 'tasks', 'upload');
	like($out, qr/^--tasks=\n--all\n--force\n--dry-run\n--verbose\n/, 'and their options');
};

subtest 'keys' => sub {
	document_says("{\n \"handler\": \"a.b\",\n \"colour\": 1\n}", qr{/doc/task\.json:3: key "colour": a task without steps has no such key$}m, 'an unknown key');
	document_says({ handler => 'a.b', owner => 'app' }, qr{key "owner": a task belongs to the role that uploads it}, 'the owner');
	document_says({ handler => 'f' }, qr{key "handler": "f" is not of the form schema\.function}, 'a function without its schema');
	document_says({ handler => 'a.b', name => 'other' }, qr{key "name": "other" is not the name of its folder, "doc"}, 'another name');
	document_says({}, qr{there is no handler, program or steps}, 'nothing to do');
	document_says({ handler => '' }, qr{key "handler": it is empty}, 'an empty text');
	foreach ([ timeout => 5, 'an interval' ], [ timeout => 'soon', 'an interval' ], [ timeout => '-1 s', 'an interval' ], [ max_attempts => '5', 'an integer' ],
		[ never_retry => 'x', 'an array' ], [ metadata => [], 'an object' ], [ queue => {}, 'a text' ])
	{
		my ($key, $value, $what) = @$_;
		document_says({ handler => 'a.b', $key => $value }, qr{:1: key "$key": it is not $what}, "$key that is not $what");
	}
	document_says('{"handler": "a.b", "max_attempts": 1.5}', qr{key "max_attempts": it is not an integer}, 'a fraction');
	document_says({ handler => 'a.b', max_attempts => 0 }, qr{key "max_attempts": it is not from 1 to 10000}, 'too little');
	document_says({ handler => 'a.b', never_retry => [ '22', 7 ] }, qr{key "never_retry\[1\]": it is not a text}, 'an element');
	document_says({ handler => 'a.b', backoff => 'slow' }, qr{key "backoff": "slow" is none of: exponential fixed linear}, 'a word');
	document_says({ handler => 'a.b', backoff => 'exponential fixed' }, qr{key "backoff": .* is none of}, 'two words');
	put_task('doc', 'task.json' => { handler => 'a.b', queue => undef, metadata => { a => [ 1, { b => undef } ] } });
	check_is_fine('doc', 'function', 'null is as not given');
};

subtest 'steps' => sub {
	document_says({ steps => [] }, qr{key "steps": a workflow has 1 to 10000 steps}, 'no steps');
	document_says({ steps => {} }, qr{key "steps": it is not an array of steps}, 'no array');
	document_says({ steps => [ 1 ] }, qr{key "steps\[0\]": it is not an object}, 'no object');
	document_says("{\"steps\": [\n{\"name\": \"a\", \"sleep\": \"1 s\"},\n{\"name\": \"b\",\n \"nedes\": []}]}", qr{:4: key "steps\[1\]\.nedes": a step has no such key}, 'a key of a step');
	document_says({ steps => [ { name => 'a' } ] }, qr{key "steps\[0\]": it does nothing}, 'a step that does nothing');
	document_says({ steps => [ { sleep => '1 s' } ] }, qr{key "steps\[0\]": it has no name}, 'one without a name');
	document_says({ steps => [ { name => 'a', sleep => '1 s' }, { name => 'a', sleep => '1 s' } ] }, qr{key "steps\[1\]\.name": there are two steps "a"}, 'a name twice');
	document_says({ steps => [ { name => 'a', sleep => '1 s', needs => [ 'z' ] } ] }, qr{key "steps\[0\]\.needs\[0\]": there is no step "z"}, 'a need that is not there');
	document_says({ steps => [ map { { name => "s$_", sleep => '1 s', needs => [ 's' . ($_ + 1) % 3 ] } } 0 .. 2 ] }, qr{key "steps\[2\]\.needs": the steps need each other in a circle}, 'a circle');
	document_says({ steps => [ { name => 'a', handler => 'a.b', definition => 'c' } ] }, qr{key "steps\[0\]\.definition": it has a handler, too}, 'two things to do');
	document_says({ program => 'x', steps => [ { name => 'a', sleep => '1 s' } ] }, qr{key "program": a workflow has no such key}, 'a workflow with a program');
	put_task('long', 'task.json' => { steps => [ map { { name => "s$_", definition => 'x', $_ < 9999 ? (needs => [ 's' . ($_ + 1) ]) : () } } 0 .. 9999 ] });
	my $start = time;
	check_is_fine('long', 'workflow', 'a chain of 10,000 steps, the last one first');
	cmp_ok(time - $start, '<', 10, 'in time');
	remove_tree("$folder/long");
};

subtest 'programs' => sub {
	put_task('page', 'task.json' => { timeout => '1 min' }, 'xpage.py' => '#!/bin/sh', 'requirements.txt' => '');
	check_is_fine('page', 'remote', 'an executable makes it remote');
	put_task('page', 'task.json' => {}, 'page.py' => '');
	check_says('page', qr{page\.py is not executable: chmod \+x}, 'one that is not executable');
	put_task('page', 'task.json' => {}, 'xpage.py' => '', 'xpage.sh' => '');
	check_says('page', qr{several executables: say which with "program"}, 'two of them');
	put_task('page', 'task.json' => { program => 'page.sh' }, 'xpage.py' => '', 'xpage.sh' => '');
	check_is_fine('page', 'remote', 'one that is named');
	put_task('page', 'task.json' => { kind => 'remote' });
	check_is_fine('page', 'remote', 'one that others do');
	foreach ([ 'nothing', qr{key "program": nothing: No such file} ], [ '../' x 20 . 'bin/sh', qr{key "program": \S+ leads out of the folder of the task} ],
		[ '/bin/sh', qr{key "program": /bin/sh: No such file} ], [ '.', qr{key "program": \. leads out} ], [ 'lib', qr{key "program": lib is not a plain file} ])
	{
		put_task('page', 'task.json' => { program => $_->[0] });
		make_path("$folder/page/lib");
		check_says('page', $_->[1], "program $_->[0]");
	}
	put_task('page', 'task.json' => { handler => 'a.b', program => 'x' }, 'xx' => '');
	check_says('page', qr{key "program": it has a handler, too}, 'with a handler');
	put_task('page', 'task.json' => { kind => 'sql', program => 'x' }, 'xx' => '');
	check_says('page', qr{key "program": only a task of kind remote has a program}, 'with another kind');
	put_task('page', 'task.json' => { handler => 'a.b', dependencies => 'package.json' }, 'package.json' => '{}');
	check_says('page', qr{key "dependencies": only a program has dependencies}, 'dependencies without a program');
};

subtest 'hostile files' => sub {
	# JSON that is none
	document_says($_->[0], $_->[1], $_->[2]) foreach
		[ '', qr{:1: it ends in the middle}, 'an empty file' ],
		[ "{\n\"a\"\n", qr{:3: expected ":" after a key}, 'a part of one' ],
		[ "{\"handler\": \"a.b\"}\n x", qr{:2: there is something behind its end}, 'something behind it' ],
		[ '{"handler": "a.b",}', qr{:1: expected a key in double quotes}, 'a comma too many' ],
		[ '[1 2]', qr{:1: expected "," or the end}, 'one too few' ],
		[ '{"a": 01}', qr{a number begins wrongly}, 'a number' ],
		[ '{"a": 1.}', qr{no digits behind its point}, 'a point' ],
		[ '{"a": 1e}', qr{no digits in its exponent}, 'an exponent' ],
		[ '{"a": truE}', qr{expected a value}, 'a word' ],
		[ "{\"a\": \"x\ny\"}", qr{:1: a string is not ended on its line}, 'a line end in a string' ],
		[ '{"a": "\q"}', qr{unknown escape}, 'an escape' ],
		[ '{"a": "\u12x4"}', qr{four hexadecimal digits}, 'digits' ],
		[ '{"a": "\ud800"}', qr{half of a pair}, 'half a character' ],
		[ '{"a": "\udc00"}', qr{\\udc00 is no character}, 'the other half' ],
		[ '{"a": "\u0000"}', qr{\\u0000 is no character}, 'an escaped byte 0' ],
		[ "{\"handler\": \"a.b\"}\0", qr{it is not UTF-8}, 'a byte 0' ],
		[ "{\n\"handler\": \"a.\xff\"}", qr{:2: it is not UTF-8}, 'no UTF-8' ],
		[ "{\"handler\": \"a.\xed\xa0\x80\"}", qr{it is not UTF-8}, 'a surrogate in UTF-8' ],
		[ "{\"handler\": \"a.b\",\n\"handler\": \"a.c\"}", qr{:2: key "handler" is there twice}, 'a key twice' ],
		[ '{"handler": "a.b", "metadata": {"a": [{"b": 1, "\u0062": 2}]}}', qr{key "b" is there twice}, 'a key twice, escaped and below' ],
		[ '[' x 1_000_000, qr{:1: nested more than 64 levels deep}, 'a million brackets' ],
		[ '{"metadata": ' x 65 . '1', qr{nested more than 64 levels deep}, 'too deep by one' ],
		[ '[]', qr{:1: it is not an object}, 'an array' ],
		[ "\xef\xbb\xbf{\"handler\": \"a.b\"}", qr{:1: it begins with a byte order mark}, 'a byte order mark' ],
		[ '{"handler": "a.b", "description": "' . 'x' x 10_000_000 . '"}', qr{task\.json: it is too large}, '10 MB' ];
	put_task('doc', 'task.json' => $json->encode({ handler => 'a.b', metadata => { map { ("k$_" => 1) } 1 .. 60_000 } }));
	my $start = time;
	check_is_fine('doc', 'function', 'many keys');
	cmp_ok(time - $start, '<', 5, 'are looked through in time');
	put_task('doc', 'task.json' => '{"handler": "a.b", "description": "\ud83d\ude00 \u00e4 \/\b"}');
	check_is_fine('doc', 'function', 'escapes that are right');

	# files that are none
	put_task('doc');
	check_says('doc', qr{there is no task\.json}, 'no task.json');
	put_task('doc');
	make_path("$folder/doc/task.json");
	check_says('doc', qr{task\.json is not a plain file}, 'a folder');
	put_task('doc');
	system('mkfifo', "$folder/doc/task.json") == 0 or die;
	check_says('doc', qr{task\.json is not a plain file}, 'a pipe');
	put_task('doc');
	symlink '/dev/zero', "$folder/doc/task.json";
	check_says('doc', qr{leads out of the folder}, 'a link to a device');
	put_task('doc');
	symlink 'task.json', "$folder/doc/task.json";
	check_says('doc', qr{task\.json: Too many levels of symbolic links}, 'a link to itself');
	append_to_file("$folder/../outside.json", '{"handler": "a.b"}');
	put_task('doc');
	symlink '../../outside.json', "$folder/doc/task.json";
	check_says('doc', qr{task\.json leads out of the folder of the task}, 'a link out of the folder');
	put_task('doc', 'task.json' => { handler => 'a.b' });
	symlink '../../outside.json', "$folder/doc/doc.sql";
	check_says('doc', qr{doc\.sql leads out of the folder of the task}, 'the same of a script');
	put_task('doc', 'task.json' => { handler => 'a.b' });
	symlink '../../outside.json', "$folder/doc/data.json";
	check_says('doc', qr{a link out of its folder}, 'and of any other file');
	put_task('doc', 'task.json' => { handler => 'a.b' });
	symlink '..', "$folder/doc/up";
	check_says('doc', qr{a link out of its folder}, 'and of a folder');
	put_task('doc', 'real.json' => { handler => 'a.b' });
	symlink 'real.json', "$folder/doc/task.json";
	check_is_fine('doc', 'function', 'a link within it is fine');
	make_path("$folder/../elsewhere");
	append_to_file("$folder/../elsewhere/task.json", '{"handler": "a.b"}');
	remove_tree("$folder/doc");
	symlink '../elsewhere', "$folder/doc";
	my ($code, $out, $err) = local_run('tasks', 'check', '--tasks', $folder, 'doc');
	like($err, qr{/doc: it leads out of the folder of tasks}, 'a link of the folder');
	unlink "$folder/doc";
	put_task('doc', 'task.json' => { handler => 'a.b' }, 'doc.sql' => "SELECT\n1;\0");
	check_says('doc', qr{doc\.sql:2: it is not UTF-8}, 'a script with a byte 0');
	put_task('doc', 'task.json' => { handler => 'a.b' });
	make_path("$folder/doc/" . 'deep/' x 20);
	check_says('doc', qr{too many folders in each other}, 'folders too deep');
	put_task('doc', 'task.json' => { handler => 'a.b' }, map { ("f$_" => '') } 1 .. 1000);
	check_says('doc', qr{more than 1000 files}, 'too many files');

	# names
	foreach ('../tasks/doc', '/etc/passwd', '.', '..', '.git', "a\nb", 'a/../b', 'orchestrator.x', '-x', "\xff")
	{
		($code, $out, $err) = local_run('tasks', 'check', '--tasks', $folder, '--', $_);
		like($err, qr/cannot be the name of a task in a file/, 'refused as a name');
		is(scalar(() = $err =~ /[^\n\x20-\x7e]/g), 0, 'without writing what it has');
	}
	make_path("$folder/b\xc3\xa4d");
	($code, $out, $err) = local_run('--json', 'tasks', 'check', '--tasks', $folder);
	is(scalar @{ JSON::PP->new->utf8->decode($err)->{problems} }, 1, 'problems as JSON');
	remove_tree("$folder/b\xc3\xa4d");
};

subtest 'what a workflow uses' => sub {
	put_task('book', 'task.json' => { steps => [ { name => 'a', definition => 'part' }, { name => 'b', definition => 'other' } ] });
	put_task('part', 'task.json' => { steps => [ { name => 'a', kind => 'sql', handler => 'SELECT 1', undo => 'undo' } ] });
	put_task('undo', 'task.json' => { kind => 'sql', handler => 'SELECT 2', failure_callback => 'book' });
	my ($code, $out, $err) = local_run('tasks', 'check', '--json', '--tasks', $folder, 'book');
	is($code, 0, 'what is used is read') or diag($err);
	my @before = map { $_->{checksum} } @{ $json->decode($out) };
	is(join(' ', map { $_->{task} } @{ $json->decode($out) }), 'undo part book', 'and comes first');
	put_task('undo', 'task.json' => { kind => 'sql', handler => 'SELECT 3' });
	my @after = map { $_->{checksum} } @{ $json->decode((local_run('tasks', 'check', '--json', '--tasks', $folder, 'book'))[1]) };
	isnt($before[$_], $after[$_], "a change below changes the checksum of number $_") foreach 0 .. 2;
	put_task('part', 'task.json' => { steps => [ { name => 'a', definition => 'book' } ] });
	($code, $out, $err) = local_run('tasks', 'check', '--tasks', $folder);
	like($err, qr{part/task\.json:1: key "steps\[0\]\.definition": "book" and it use each other}, 'a circle');
	remove_tree("$folder/$_") foreach qw(book part undo);
};

my $node = new_node(name => 'tasks', timezone => 'UTC');
$node->start;
$node->create_extension;

subtest 'the schema' => sub {
	my $schema = $json->decode((local_run('tasks', 'schema'))[1]);
	my %keys = map { ($_ => [ sort keys %{ $schema->{'$defs'}{$_}{properties} } ]) } qw(task workflow step);
	my $parameters = sub {
		my ($function, @more) = @_;
		my $names = $node->safe_psql('postgres', "SELECT unnest(proargnames) FROM pg_proc WHERE oid = (SELECT max(oid) FROM pg_proc WHERE pronamespace = 'orchestrator'::regnamespace AND proname = '$function' AND pronargs > 1)");
		my %all = map { ($_ => 1) } split(/\n/, $names), @more;
		delete $all{owner};
		return [ sort keys %all ];
	};
	is_deeply($keys{task}, $parameters->('define', 'program', 'dependencies'), 'a task has the parameters of define(), and those of files');
	is_deeply($keys{workflow}, $parameters->('define_workflow'), 'a workflow those of define_workflow()');
	is_deeply($keys{step}, $parameters->('step'), 'a step those of step()');
};

subtest 'intervals' => sub {
	foreach my $interval ('90', '1 s', '1.5 s', '10 min', '2 hours 5 minutes', '00:01:30', '1:30', '1 day 02:03:04.5', '3 weeks', '1 mon', '1 year', '5m', '500 ms', '1 h 1 us')
	{
		is($node->safe_psql('postgres', "SELECT '$interval'::interval > '0'"), 't', "the server reads $interval");
		put_task('doc', 'task.json' => { handler => 'a.b', timeout => $interval });
		check_is_fine('doc', 'function', 'so do we');
	}
	document_says({ handler => 'a.b', timeout => $_ }, qr/it is not an interval/, "no interval: $_") foreach '', ' ', '1 x', 's', '1.2.3 s', '1:', '1:75', '--1', '1e3 s', '0x1 s', "1 s\n;", 'P1D';
};

$node->stop;
done_testing();
