# The worker of the command-line client: programs in any language as steps,
# what becomes of their output, lines, exit codes and children, and of what they
# do when somebody dies or a connection is lost meanwhile.

use strict;
use warnings;
use lib 'test/chaos';

use Cwd ();
use Fault;
use List::Util qw(min);
use OrchestratorClient;
use OrchestratorStep;
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

$PostgreSQL::Test::Utils::timeout_default = 30;

my $node = new_node(name => 'work', 'orchestrator.max_executors' => 2);
$node->start;
$node->create_extension;
$node->plain_role('app');
$node->safe_psql('postgres', q{CREATE ROLE worker LOGIN; CREATE ROLE nobody LOGIN; SELECT orchestrator.grant_usage('worker', 'worker')});
$node->psql_as('app', q{SELECT orchestrator.define_queue('q'), orchestrator.share_queue('q', 'worker', claim => true)});

my $cli = client($node, 'worker');
my $tasks = PostgreSQL::Test::Utils::tempdir();

# Runs until it is ended, and a child with it; both note their numbers.
my $sleeps = "#!/bin/sh\nsh -c 'echo \$\$ >../child.pid.new; mv ../child.pid.new ../child.pid; exec sleep 1000' &\necho \$\$ >../parent.pid\nwait\n";

sub app { return $node->psql_as('app', $_[0]) }

# A task with its program, a definition of the same name, and options of that.
sub program
{
	my ($name, $text, $options) = @_;
	mkdir "$tasks/$name";
	write_file("$tasks/$name/task.json", qq({"name": "$name", "kind": "remote"}\n));
	write_file("$tasks/$name/$name.sh", $text);
	chmod 0755, "$tasks/$name/$name.sh";
	app(sprintf q{SELECT orchestrator.define('%s', NULL, 'remote', queue => 'q', retry_delay => '0.01 s', retry_jitter => 0 %s)}, $name, $options ? ", $options" : '');
	return;
}

sub write_file
{
	my ($path, $text) = @_;
	open my $file, '>', $path or die "$path: $!";
	print $file $text;
	close $file;
	return;
}

sub enqueue { my ($name, $input) = @_; return app(sprintf q{SELECT orchestrator.enqueue('%s', '%s')}, $name, defined $input ? $input : '{}') }

# Run what waits, and leave: what the worker said.
sub work
{
	my ($code, $out, $err) = $cli->run('work', '-q', 'q', '-t', $tasks, '--until-empty', @_);
	is($code, 0, 'the worker leaves when all is done') or diag($out, $err);
	return $out . $err;
}

# One that stays, as a job; TERM stops it.
sub worker { return start_worker('--heartbeat', '0.1', '-v', @_) }

my @started;

sub start_worker
{
	push @started, $cli->start('work', '-q', 'q', '-t', $tasks, @_);
	return $started[-1];
}

# A test that dies leaves none behind.
END { kill 'KILL', map { $_->pid } grep { $_->{run}{STATE} != 2 } @started }

my $soonest = 1000;

sub stop
{
	my ($worker) = @_;
	my $told = time;
	$worker->signal('TERM');
	is($worker->exit_code, 0, 'the worker ends') or diag($worker->{out}, $worker->{err});
	$soonest = min($soonest, time - $told);
	return;
}

sub result { my ($id) = @_; return outcome_of($node, 'app', $id) }

# Of a task that the worker runs to its end, in as many attempts as it takes.
sub run_task
{
	my ($name, $input) = @_;
	my $id = enqueue($name, $input);
	do { work() } while (state($id) =~ /scheduled|pending/);
	return result($id);
}

sub state { return app("SELECT state FROM orchestrator.task WHERE id = $_[0]") }
sub notices { return app("SELECT string_agg(t.detail ->> 'level' || ' ' || (t.detail ->> 'message'), E'\\n' ORDER BY at) FROM orchestrator.trace t WHERE task_id = $_[0] AND event = 'notice'") }

subtest 'results' => \&results;
subtest 'the environment' => \&environment;
subtest 'exit codes' => \&exit_codes;
subtest 'lines' => \&lines;
subtest 'output that is none' => \&bad_output;
subtest 'programs that cannot be run' => \&no_program;
subtest 'no process for them' => \&no_process;
subtest 'what programs leave behind' => \&left_behind;
subtest 'cancel' => \&cancel;
subtest 'time-outs and late reports' => \&late;
subtest 'a clock that is wrong' => \&wrong_clock;
subtest 'stopping' => \&stopping;
subtest 'killed' => \&killed;
subtest 'lost connections' => \&connections;
subtest 'many small ones' => \&many;
subtest 'usage' => \&usage;
subtest 'another encoding' => \&encoding;
cmp_ok($soonest, '<', 0.5, 'one that has nothing to do ends at once');
$node->stop('fast');
done_testing();

sub results
{
	program('echo', "#!/bin/sh\nexec cat\n");
	my $r = run_task('echo', '{"a": [1, "zwölf", null]}');
	is($r->{state}, 'completed', 'a program that copies its input completes');
	is_deeply($r->{output}, { a => [ 1, 'zwölf', undef ] }, 'and that is its output');
	my $large = '["' . 'x' x 900_000 . '"]';
	is(length(run_task('echo', $large)->{output}[0]), 900_000, 'more than a pipe holds, both ways');

	program('nothing', "#!/bin/sh\nexit 0\n");
	$r = run_task('nothing', $large);
	is($r->{state}, 'completed', 'one that reads and writes nothing');
	is($r->{output}, undef, 'has no output');
	return;
}

sub environment
{
	program('env', <<'SH');
#!/bin/sh
printf '{"cwd": "%s", "id": "%s", "attempt": "%s", "max": "%s", "key": "%s", "definition": "%s", "deadline": "%s", "parent": "%s", "stray": "%s", "run": "%s", "worker": "%s", "queue": "%s", "group": "%s"}' \
  "$PWD" "$ORCHESTRATOR_TASK_ID" "$ORCHESTRATOR_ATTEMPT" "$ORCHESTRATOR_MAX_ATTEMPTS" "$ORCHESTRATOR_IDEMPOTENCY_KEY" "$ORCHESTRATOR_DEFINITION" \
  "$ORCHESTRATOR_DEADLINE" "$ORCHESTRATOR_TRACEPARENT" "$ORCHESTRATOR_STRAY" "${ORCHESTRATOR_PARENT_ID-unset}" "$ORCHESTRATOR_WORKER" "$ORCHESTRATOR_QUEUE" \
  "$(ps -o pgid= -p $$ | tr -d ' ')/$$"
SH
	my $trace = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01';
	my $id = app(sprintf q{SELECT orchestrator.enqueue('env', deadline => '2100-01-01', traceparent => '%s')}, $trace);
	local $ENV{ORCHESTRATOR_STRAY} = 'not of the task';
	work('--name', 'me');
	my $e = result($id)->{output};
	is($e->{id}, $id, 'its number');
	is("$e->{attempt} of $e->{max}", '1 of 3', 'its attempt');
	like($e->{key}, qr/-$id$/, 'the idempotency key');
	is($e->{definition}, 'env', 'the definition');
	like($e->{deadline}, qr/^2100-01-01 00:00:00/, 'the deadline');
	is($e->{parent}, $trace, 'the trace');
	is($e->{stray}, '', 'nothing of another task');
	is($e->{run}, 'unset', 'what it has not is not set');
	is("$e->{worker} $e->{queue}", 'me q', 'the worker and the queue');
	is($e->{cwd}, Cwd::realpath("$tasks/env"), 'it runs in its folder');
	my ($group, $pid) = split m{/}, $e->{group};
	is($group, $pid, 'and leads a process group');
	$id = app(q{SELECT orchestrator.enqueue('env', deadline => 'infinity')});
	work();
	is(result($id)->{output}{deadline}, 'infinity', 'a deadline that never comes');
	return;
}

sub exit_codes
{
	program('exits', qq(#!/bin/sh\necho "first line" >&2\necho "last line" >&2\nexit 3\n));
	my $r = run_task('exits');
	is($r->{state}, 'failed', 'exit code 3 fails it');
	is($r->{error}{message}, "first line\nlast line", 'with what it wrote on standard error');
	is($r->{error}{detail}, 'exit code 3', 'and the code');
	is(app("SELECT attempt FROM orchestrator.task WHERE id = $r->{id}"), 3, 'in the last of its attempts');

	program('silent', "#!/bin/sh\nexit 7\n");
	is(run_task('silent')->{error}{message}, 'exit code 7', 'one that says nothing');

	program('for_good', "#!/bin/sh\necho 'the input makes no sense' >&2\nexit 65\n");
	$r = run_task('for_good');
	is($r->{error}{message}, 'the input makes no sense', 'exit code 65');
	is(app("SELECT attempt FROM orchestrator.task WHERE id = $r->{id}"), 1, 'is not retried');

	program('signals', "#!/bin/sh\nkill -SEGV \$\$\n", 'max_attempts => 1');
	like(run_task('signals')->{error}{message}, qr/^the program was ended by signal 11 \(Segmentation fault\)/, 'a signal');

	program('talks', "#!/bin/sh\ni=0; while [ \$i -lt 1000 ]; do echo \"line \$i of many\"; i=\$((i+1)); done >&2; exit 1\n", 'max_attempts => 1');
	$r = run_task('talks');
	like($r->{error}{message}, qr/^line \d+ of many\n.*line 999 of many$/s, 'the end of what it said, from the start of a line');
	cmp_ok(length $r->{error}{message}, '<=', 2000, 'and no more');
	return;
}

sub lines
{
	program('lines', <<'SH');
#!/bin/sh
echo '0.25 a quarter' >&3
echo 'just a line' >&3
echo '{"log": "careful", "level": "warning"}' >&3
echo '{"progress": 0.5, "message": "half", "stage": "second"}' >&3
echo '{"neither": "one nor the other"}' >&3
echo 'of standard error' >&2
while [ ! -e ../next ]; do sleep 0.02; done
echo 'orchestrator: 60% more than half' >&2
printf 'bytes \377\000 and\ttab' >&3
while [ ! -e ../go ]; do sleep 0.02; done
SH
	my $id = enqueue('lines');
	my $worker = worker();
	my $far = "SELECT progress || ' ' || message || ' ' || stage FROM orchestrator.task_status WHERE task_id = $id";
	$node->wait_for($far, '0.5 half second', 'how far it is while it runs');
	write_file("$tasks/next", '');
	$node->wait_for($far, '0.6 more than half second', 'as it says on standard error, too');
	$node->wait_for("SELECT count(*) FROM orchestrator.trace WHERE task_id = $id AND event = 'notice'", 4, 'lines, while it runs');
	write_file("$tasks/go", '');
	is(result($id)->{state}, 'completed', 'it completes');
	is(join("\n", sort split /\n/, notices($id)), join("\n", sort 'info just a line', 'warning careful', 'info {"neither": "one nor the other"}', 'info of standard error', "info bytes \\xff\\x00 and\ttab"), 'its lines are in the trace');
	stop($worker);

	program('floods', "#!/bin/sh\nyes 'a line' | head -n 300000 >&2\nyes | head -c 300000 | tr -d '\\n' >&2\n");
	my $r = run_task('floods');
	is($r->{state}, 'completed', 'a flood of lines harms nobody');
	my $kept = app("SELECT count(*) FROM orchestrator.trace WHERE task_id = $r->{id} AND event = 'notice'");
	cmp_ok($kept, '<=', 1001, 'a thousand of them are kept at most');
	like(app("SELECT detail ->> 'message' FROM orchestrator.trace WHERE task_id = $r->{id} AND event = 'notice' ORDER BY at DESC LIMIT 1"), qr/^\d+ more lines were not kept$/, 'and the last says how many were not');
	return;
}

sub bad_output
{
	my %bad = (
		words => [ q(echo 'hello'), qr/^the output of the program was refused: invalid input syntax for type json/, '22P02' ],
		twice => [ q(echo '1 2'), qr/^the output of the program was refused: invalid input syntax for type json/, '22P02' ],
		bytes => [ q(printf '"\377"'), qr/^the output of the program is not UTF-8$/, '22021' ],
		zero => [ q(printf '"a\000b"'), qr/^the output of the program has a byte 0$/, '22P05' ],
		escaped_zero => [ q(printf '"\\\\u0000"'), qr/^the output of the program was refused: unsupported Unicode escape sequence/, '22P05' ],
		deep => [ q(head -c 900000 /dev/zero | tr '\0' '['), qr/^the output of the program was refused: stack depth limit exceeded/, '54001' ],
		exponent => [ q(echo 1e999999), qr/^the output of the program was refused: value overflows numeric format/, '22003' ],
		large => [ q(yes '"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",' | head -c 1000000000), qr/^the program wrote more than 1048576 bytes; it was killed$/, '54000' ],
	);
	my %id;
	foreach my $name (sort keys %bad)
	{
		program($name, "#!/bin/sh\n$bad{$name}[0]\n");
		$id{$name} = enqueue($name);
	}
	my @good = map { enqueue('echo', $_) } 1 .. 5;
	work('-c', 2);
	foreach my $name (sort keys %bad)
	{
		my $r = result($id{$name});
		like($r->{error}{message}, $bad{$name}[1], "$name: the error");
		is($r->{error}{sqlstate}, $bad{$name}[2], 'its code');
		is(app("SELECT attempt FROM orchestrator.task WHERE id = $id{$name}"), 1, 'it is not retried');
	}
	is_deeply([ map { result($_)->{output} } @good ], [ 1 .. 5 ], 'others, reported with them, complete');

	# a gigabyte that nobody counts in memory
	my $id = enqueue('large');
	my $worker = worker();
	$node->wait_for("SELECT state FROM orchestrator.task WHERE id = $id", 'failed', 'again a gigabyte');
	my ($kb) = slurp_file('/proc/' . $worker->pid . '/status') =~ /^VmHWM:\s+(\d+)/m;
	cmp_ok($kb, '<', 40_000, 'the worker never had 40 MB');
	stop($worker);
	return;
}

sub no_program
{
	app(q{SELECT orchestrator.define('absent', NULL, 'remote', queue => 'q', max_attempts => 1)});
	my $id = enqueue('absent');
	work();
	is(state($id), 'pending', 'what has no folder is left to others');
	mkdir "$tasks/absent";
	my $worker = worker();
	is(result(enqueue('echo', 1))->{output}, 1, 'a worker has looked for folders');
	write_file("$tasks/absent/absent.sh", "#!/bin/sh\necho '\"late\"'\n");
	chmod 0755, "$tasks/absent/absent.sh";
	write_file("$tasks/absent/task.json", '{}');
	is(result($id)->{output}, 'late', 'its files may come later');
	stop($worker);
	unlink map { "$tasks/absent/$_" } 'absent.sh', 'task.json';
	rmdir "$tasks/absent";
	$id = enqueue('absent');
	work('-D', 'absent');
	like(result($id)->{error}{message}, qr/^there is no task "absent" in /, 'unless it is asked for by name');

	program('plain', "#!/bin/sh\n", 'max_attempts => 1');
	chmod 0644, "$tasks/plain/plain.sh";
	like(run_task('plain')->{error}{message}, qr/plain/, 'a program that is not executable');
	write_file("$tasks/plain/task.json", qq({\n"timeout": 5}));
	like(run_task('plain')->{error}{message}, qr{plain/task\.json:2: key "timeout": it is not an interval}, 'what is wrong with its files, with line and key');
	program('lost_shell', "#!/nonexistent/shell\n", 'max_attempts => 1');
	my $r = run_task('lost_shell');
	like($r->{error}{message}, qr/^could not run .*lost_shell\.sh: No such file or directory$/, 'one without its interpreter');
	like($r->{error}{detail}, qr/interpreter/, 'with a hint');
	program('no_format', "\x7fELF nonsense", 'max_attempts => 1');
	like(run_task('no_format')->{error}{message}, qr/^could not run .*: Exec format error$/, 'one that is none');

	foreach my $name ('../echo/echo', '/bin/sh', '.', '..', 'a/b', '')
	{
		app(sprintf q{SELECT orchestrator.define('hostile', '%s', 'remote', queue => 'q', max_attempts => 1)}, $name) if $name ne '';
		$id = enqueue('hostile');
		work('-D', 'hostile');
		like(result($id)->{error}{message}, qr/^there is no task "/, "handler \"$name\" is no way out of the folder");
	}
	return;
}

# How many processes the user of a worker may have, as that sees it; the user has
# more than one.
sub allow_processes
{
	my ($worker, $number) = @_;
	my @command = ('prlimit', '--pid', $worker->pid);
	my ($before) = run_command([ @command, '--nproc', '--output', 'SOFT', '--noheadings' ]);
	is(system(@command, "--nproc=$number:"), 0, "the worker sees a limit of $number processes");
	return $before;
}

sub no_process
{
	my $text = "#!/bin/sh\necho \$ORCHESTRATOR_ATTEMPT\n";
	program($_, $text, 'max_attempts => 1') foreach 'plainly', 'needs';
	write_file("$tasks/needs/requirements.txt", "# nothing\n");
	my $folder = PostgreSQL::Test::Utils::tempdir();
	put_file("$folder/python3", "#!/bin/sh\nmkdir -p \"\$3/bin\"\nln -s /bin/true \"\$3/bin/python\"\n");
	chmod 0755, "$folder/python3";
	local $ENV{PATH} = "$folder:$ENV{PATH}";
	my $worker = worker('-c', 2, '--cache', "$folder/cache");
	is(result(enqueue('plainly'))->{output}, 1, 'a worker runs programs');
	my $before = allow_processes($worker, 1);
	my @ids = map { enqueue($_) } 'plainly', 'needs';
	foreach my $id (@ids)
	{
		my $released = "FROM (SELECT array_agg(at ORDER BY at) FROM orchestrator.trace WHERE task_id = $id AND event = 'released') r(at)";
		$node->wait_for("SELECT cardinality(at) >= 5 $released", 't', 'a task goes back, again and again');
		is($node->safe_psql('postgres', "SELECT at[5] - at[1] > '0.5 s' $released"), 't', 'with a pause before each claim');
	}
	allow_processes($worker, $before);
	is(result($_)->{output}, 1, 'then it runs, in its only attempt') foreach @ids;
	stop($worker);
	my @said = $worker->{err} =~ /^orchestrator: (could not run .*|programs .*)/mg;
	is(scalar @said, 2, 'both are told once') or diag($worker->{err});
	like($said[0], qr/^could not run .*: Resource temporarily unavailable; tasks are given back until it can$/, 'that no process can be started');
	is($said[1], 'programs can be run again', 'and that it can again');
	return;
}

# A pid that a program wrote into a file.
sub pid_of
{
	my ($name) = @_;
	ok(defined within(20, sub { -s "$tasks/$name.pid" && slurp_file("$tasks/$name.pid") =~ /^\d+\n/ }), "$name has started");
	my ($pid) = slurp_file("$tasks/$name.pid") =~ /^(\d+)/;
	unlink "$tasks/$name.pid";
	return $pid;
}

sub left_behind
{
	program('forks', "#!/bin/sh\nsleep 1000 &\necho \$! >../forks.pid\necho '\"done\"'\n");
	my $r = run_task('forks');
	is($r->{output}, 'done', 'a program is through when it ends, whoever holds its output');
	my $pid = pid_of('forks');
	ok(defined within(10, sub { gone($pid) }), 'and what it left behind is killed');

	program('daemon', "#!/bin/sh\nsetsid sh -c 'echo \$\$ >../daemon.pid; exec sleep 1000' &\nwhile [ ! -s ../daemon.pid ]; do sleep 0.01; done\necho '\"done\"'\n");
	$r = run_task('daemon');
	is($r->{output}, 'done', 'one whose daemon holds its output, too');
	$pid = pid_of('daemon');
	ok(alive($pid), 'what left its group stays');
	kill 'KILL', $pid;
	return;
}

sub cancel
{
	program('sleeps', $sleeps);
	my $worker = worker('--grace', 30);
	my $id = enqueue('sleeps');
	my @pids = (pid_of('parent'), pid_of('child'));
	app("SELECT orchestrator.cancel($id)");
	ok(defined within(10, sub { gone(@pids) }), 'cancel ends the program and its children, by TERM');
	is(state($id), 'cancelled', 'and the task is cancelled');
	$worker->until(qr/^task $id sleeps: cancelled$/m, 'which is said');
	stop($worker);

	program('ignores', "#!/bin/sh\ntrap '' TERM\n" . substr $sleeps, 10);
	$worker = worker('--grace', 0.3);
	$id = enqueue('ignores');
	@pids = (pid_of('parent'), pid_of('child'));
	app("SELECT orchestrator.cancel($id)");
	ok(defined within(10, sub { gone(@pids) }), 'one that ignores TERM is killed, with its children');
	stop($worker);
	return;
}

sub late
{
	program('slow', $sleeps, q{timeout => '0.5 s', max_attempts => 1});
	my $worker = worker();
	my $id = enqueue('slow');
	my @pids = (pid_of('parent'), pid_of('child'));
	my $r = result($id);
	is($r->{error}{sqlstate}, 'OR004', 'an attempt that took too long is ended by the server');
	ok(defined within(10, sub { gone(@pids) }), 'and its program by the worker');
	stop($worker);

	# stopped for longer than its lease: what it reports then is too late
	program('late', "#!/bin/sh\necho \$\$ >../parent.pid\nwhile [ ! -e ../too_late ]; do sleep 0.01; done\necho '\"late\"'\n", 'max_attempts => 2');
	$worker = start_worker('--lease', 1, '-v');
	$id = enqueue('late');
	pid_of('parent');
	$worker->signal('STOP');
	is(state($id), 'running', 'it runs') or diag(app("SELECT string_agg(event || coalesce(detail::text, ''), ' ' ORDER BY at) FROM orchestrator.trace WHERE task_id = $id"));
	$node->wait_for("SELECT state <> 'running' FROM orchestrator.task WHERE id = $id", 't', 'its lease ends');
	app("SELECT orchestrator.pause_queue('q')");
	write_file("$tasks/too_late", '');
	$worker->signal('CONT');
	$worker->until(qr/^task $id late: lost: /m, 'it is told, and says so');
	like(app("SELECT attempt || ' ' || state FROM orchestrator.task WHERE id = $id"), qr/^1 (?:scheduled|pending)$/, 'the late report changed nothing')
	  or diag(app("SELECT string_agg(event || coalesce(detail::text, ''), ' ' ORDER BY at) FROM orchestrator.trace WHERE task_id = $id"));
	app("SELECT orchestrator.resume_queue('q')");
	is(result($id)->{output}, 'late', 'the next attempt does');
	pid_of('parent');
	stop($worker);
	return;
}

# What the worker's clock of the wall shows does not matter, in either direction.
sub wrong_clock
{
	my ($library) = glob '/usr/lib/*/faketime/libfaketimeMT.so.1';
	plan skip_all => 'needs libfaketime' unless $library;
	program('clock', "#!/bin/sh\nsleep 0.3\ndate +%s\n", "response_timeout => '2 s', timeout => '20 s'");
	foreach my $off ('-30h', '+30h')
	{
		my @ids = map { enqueue('clock') } 1 .. 3;
		{
			local @ENV{qw(LD_PRELOAD FAKETIME FAKETIME_DONT_FAKE_MONOTONIC)} = ($library, $off, 1);
			work('--heartbeat', '0.1', '--lease', '2');
		}
		my @results = map { result($_) } @ids;
		is(app('SELECT string_agg(concat_ws(\' \', state, attempt), \', \') FROM orchestrator.task WHERE id IN (' . join(', ', @ids) . ')'),
			join(', ', ('completed 1') x 3), "off by $off: each is done in one attempt");
		cmp_ok(abs($results[0]{output} - time), '>', 20 * 3600, 'and it was off');
	}
	return;
}

sub stopping
{
	program('waits', "#!/bin/sh\necho \$\$ >../parent.pid\nwhile [ ! -e ../finish ]; do sleep 0.01; done\necho '\"finished\"'\n");
	my $worker = worker();
	my $id = enqueue('waits');
	pid_of('parent');
	my $other = enqueue('waits');
	$worker->signal('TERM');
	ok(defined within(20, sub { $worker->{run}->pump_nb; $worker->{err} =~ /stopping: 1 programs may end/ }), 'TERM: it says that it stops');
	write_file("$tasks/finish", '');
	is($worker->exit_code, 0, 'and leaves when its program has ended');
	is(result($id)->{output}, 'finished', 'which is reported');
	is(state($other), 'pending', 'nothing more was claimed');
	app("SELECT orchestrator.cancel($other)");
	unlink "$tasks/finish";

	$worker = worker('--grace', 0.3);
	$id = enqueue('ignores');
	my @pids = (pid_of('parent'), pid_of('child'));
	$worker->signal('TERM');
	ok(defined within(20, sub { $worker->{run}->pump_nb; $worker->{err} =~ /programs may end/ }), 'TERM');
	$worker->signal('TERM');
	is($worker->exit_code, 0, 'a second TERM does not wait for programs');
	ok(defined within(10, sub { gone(@pids) }), 'they are ended');
	is(app("SELECT state || ' ' || attempt FROM orchestrator.task WHERE id = $id"), 'pending 0', 'the task is given back, and its attempt not counted');

	$worker = worker('--grace', 100);
	@pids = (pid_of('parent'), pid_of('child'));
	foreach my $n (1 .. 3)
	{
		$worker->signal('TERM');
		ok(defined within(20, sub { $worker->{run}->pump_nb; (() = $worker->{err} =~ /stopping/g) >= $n }), "TERM $n") if $n < 3;
	}
	is($worker->exit_code, 130, 'a third TERM waits for nothing');
	ok(defined within(10, sub { gone(@pids) }), 'its programs are killed all the same');
	app("SELECT orchestrator.cancel($id)");
	return;
}

# Workers die at random while tasks run; the ledger has each attempt.
sub killed
{
	my $worker = worker();
	my $id = enqueue('sleeps');
	my @pids = (pid_of('parent'), pid_of('child'));
	kill 'KILL', $worker->pid;
	ok(defined within(10, sub { gone(@pids) }), 'its programs die with it, and their children');
	$worker->exit_code;
	app("SELECT orchestrator.cancel($id)");

	program('ledger', "#!/bin/sh\necho \"\$ORCHESTRATOR_TASK_ID \$ORCHESTRATOR_ATTEMPT\" >>../ran\nsleep 0.0\$((\$\$ % 9))\necho \$ORCHESTRATOR_ATTEMPT\n", 'max_attempts => 20');
	my @ids = split /\n/, app(q{SELECT unnest(orchestrator.enqueue_many('ledger', ARRAY(SELECT to_jsonb(i) FROM generate_series(1, 150) i)))});
	my @workers = map { start_worker('-c', 4, '--lease', 1) } 1 .. 2;
	foreach (1 .. 8)
	{
		my $before = app(q{SELECT count(*) FROM orchestrator.task WHERE state = 'completed' AND name IS NULL});
		my $victim = shift @workers;
		within(5, sub { -s "$tasks/ran" && app(q{SELECT count(*) FROM orchestrator.task WHERE state = 'completed' AND name IS NULL}) > $before });
		kill 'KILL', $victim->pid;
		$victim->exit_code;
		push @workers, start_worker('-c', 4, '--lease', 1);
	}
	$node->wait_for(sprintf(q{SELECT count(*) FROM orchestrator.task WHERE id BETWEEN %d AND %d AND state = 'completed'}, $ids[0], $ids[-1]), 150, 'however many workers were killed, all complete');
	stop($_) foreach @workers;
	my (%ran, %twice);
	foreach (split /\n/, slurp_file("$tasks/ran")) { $twice{$_}++ if $ran{$_}++ }
	is_deeply(\%twice, {}, 'no attempt ran twice');
	my @wrong = grep { my ($task, $attempt) = split; !$ran{"$task $attempt"} }
	  split /\n/, app(sprintf q{SELECT id || ' ' || (output #>> '{}') FROM orchestrator.task WHERE id BETWEEN %d AND %d}, $ids[0], $ids[-1]);
	is_deeply(\@wrong, [], 'what completed is what an attempt wrote');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM orchestrator.lease'), 0, 'no lease is left');
	return;
}

sub connections
{
	my $end_all = q{SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'worker'};
	my $worker = worker('--lease', 20, '-c', 4);
	my $id = enqueue('waits');
	my $pid = pid_of('parent');
	$node->safe_psql('postgres', 'ALTER ROLE worker CONNECTION LIMIT 0');
	$node->safe_psql('postgres', $end_all);
	ok(defined within(20, sub { $worker->{run}->pump_nb; $worker->{err} =~ /^orchestrator: connection: /m }), 'the connection is lost, and that is said');
	write_file("$tasks/finish", '');
	ok(defined within(20, sub { gone($pid) }), 'its program goes on and ends');
	is(state($id), 'running', 'which nobody knows yet');
	$node->safe_psql('postgres', 'ALTER ROLE worker CONNECTION LIMIT -1');
	is(result($id)->{output}, 'finished', 'until there is a connection again');
	is(app("SELECT attempt FROM orchestrator.task WHERE id = $id"), 1, 'in the same attempt');
	ok(defined within(20, sub { $worker->{run}->pump_nb; $worker->{err} =~ /: connected again$/m }), 'that is said, too');

	# over restarts of the server, with much to do
	unlink "$tasks/ran";
	my @ids = split /\n/, app(q{SELECT unnest(orchestrator.enqueue_many('ledger', ARRAY(SELECT to_jsonb(i) FROM generate_series(1, 200) i)))});
	foreach my $mode ('fast', 'immediate')
	{
		my $half = sprintf q{SELECT count(*) > 20 FROM orchestrator.task WHERE id BETWEEN %d AND %d AND state = 'completed'}, $ids[0], $ids[-1];
		$node->wait_for($half);
		$node->stop($mode);
		$node->start;
	}
	$node->wait_for(sprintf(q{SELECT count(*) FROM orchestrator.task WHERE id BETWEEN %d AND %d AND state = 'completed'}, $ids[0], $ids[-1]), 200, 'all complete over restarts of the server');
	stop($worker);
	return;
}

sub many
{
	my @ids = split /\n/, app(q{SELECT unnest(orchestrator.enqueue_many('echo', ARRAY(SELECT to_jsonb(i) FROM generate_series(1, 1000) i)))});
	work('-c', 4);
	is(app(sprintf q{SELECT count(*) || ' ' || sum((output #>> '{}')::int) || ' ' || max(attempt) FROM orchestrator.task WHERE state = 'completed' AND id BETWEEN %d AND %d}, $ids[0], $ids[-1]),
		'1000 500500 1', 'a thousand, each with its own output, once');

	# one that is slow does not hold up what was claimed with it
	app(q{SELECT orchestrator.enqueue_many('echo', ARRAY(SELECT to_jsonb(i) FROM generate_series(1, 200) i))});
	my $slow = enqueue('waits');
	my @after = map { enqueue('echo', $_) } 1 .. 20;
	unlink "$tasks/finish";
	my $worker = worker();
	pid_of('parent');
	my $second = worker('-n', 'second');
	is(result($_)->{state}, 'completed', 'a task behind a slow one') foreach $after[-1];
	write_file("$tasks/finish", '');
	is(result($slow)->{state}, 'completed', 'and the slow one');
	stop($_) foreach $worker, $second;

	my ($code, $out) = $cli->run('--json', 'work', '-q', 'q', '-t', $tasks, '--until-empty', '-v');
	is($code, 0, 'with nothing to do it leaves');
	my $id = enqueue('exits');
	($code, $out) = $cli->run('--json', 'work', '-q', 'q', '-t', $tasks, '--until-empty');
	is_deeply(OrchestratorClient::decode_json_text((split /\n/, $out)[0]),
		{ task_id => $id, definition => 'exits', event => 'failed', message => "first line\nlast line" }, 'events as JSON');
	program('colours', "#!/bin/sh\nprintf '\\302\\23331m' >&2\nexit 65\n");
	enqueue('colours');
	($code, $out) = $cli->run('--json', 'work', '-q', 'q', '-t', $tasks, '--until-empty');
	like($out, qr/"message": "\\u009b31m"/, 'without what would steer a terminal');
	return;
}

# A database that has no characters for what a program says.
sub encoding
{
	$node->safe_psql('postgres', q{CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1'});
	$node->safe_psql('latin', q{CREATE EXTENSION orchestrator; SELECT orchestrator.define_queue('q'),
		orchestrator.define('speaks', NULL, 'remote', queue => 'q', max_attempts => 1), orchestrator.enqueue('speaks')});
	mkdir "$tasks/speaks";
	write_file("$tasks/speaks/task.json", '{}');
	write_file("$tasks/speaks/speaks.sh", "#!/bin/sh\necho 'well \xe2\x98\x83' >&2\nexit 1\n");
	chmod 0755, "$tasks/speaks/speaks.sh";
	my ($code) = client($node, 'postgres', 'latin')->run('work', '-q', 'q', '-t', $tasks, '--until-empty');
	like($node->safe_psql('latin', q{SELECT state || ' ' || (error ->> 'message') FROM orchestrator.task}),
		qr/^failed the program failed; what it said was refused: .* no equivalent in encoding "LATIN1"/, 'a failure is reported all the same');
	return;
}

sub usage
{
	my @bad = ([ 'work' ], [ 'work', '-q', 'q', '-c', 0 ], [ 'work', '-q', 'q', '--lease', '-1' ]);
	is(($cli->run(@$_))[0], 2, "@$_ is refused") foreach @bad;
	my ($code, $out, $err) = $cli->run('work', '-q', 'nope', '-t', $tasks);
	is($code, 1, 'a queue that is not there');
	like($err, qr/queue "nope" does not exist/, 'is named');
	($code, $out, $err) = $cli->run('work', '-q', 'q', '-t', '/nonexistent');
	is($code, 1, 'so is a folder');
	like($err, qr{"/nonexistent"}, 'that is not there');
	is(IPC::Run::run([ 'sh', '-c', 'ulimit -n 64; exec "$0" "$@"', $cli->command('work', '-q', 'q', '-t', $tasks, '--until-empty', '-c', 50) ], '<', \undef, '>', \$out, '2>', \$err), '', 'too many at once');
	like($err, qr/may need 264 open files, and 64 are allowed/, 'for what the worker may open');
	my $empty = PostgreSQL::Test::Utils::tempdir();
	($code, $out, $err) = $cli->run('work', '-q', 'q', '-t', $empty, '--until-empty');
	like($err, qr/there are no tasks in the folder yet/, 'one without tasks is told');
	($code, $out, $err) = $cli->run('work', '-q', 'q', '-t', $empty, '--until-empty', '--json');
	like(OrchestratorClient::decode_json_text($err)->{warning}{message}, qr/no tasks in the folder/, 'as JSON');
	($code, $out, $err) = client($node, 'nobody')->run('list');
	like($err, qr/permission denied.*\nHint: An administrator gives rights with orchestrator\.grant_usage/, 'a role without rights is told who gives them');
	return;
}
