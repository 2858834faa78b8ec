package Chaos;

# Faults at random, under load: nothing may be lost, nothing may happen twice.
#
#   my $result = Chaos::run(tasks => 2000, kills => 20, seed => 7);
#   my $result = Chaos::soak(200_000);
#
# Clients enqueue tasks and keep a journal outside the database: a line before
# a transaction is sent, a line when its outcome is known.  A nemesis kills,
# stops and restarts whatever it meets.  At the end the journal, the tasks and
# what their steps wrote are compared (RULES, section 4).

use strict;
use warnings;

use Fault;
use File::Temp qw(tempdir);
use IO::Handle;
use IPC::Open3;
use List::Util qw(shuffle sum0);
use OrchestratorTest;
use OutsideCalls;
use POSIX qw(WNOHANG);
use PostgreSQL::Test::Utils;
use RemoteWorkers;
use Time::HiRes qw(time usleep);

my @roles = ('app_a', 'app_b', 'app_c');
my $clients = 4;

# Kinds of transactions and how many of a hundred they are.
my %mix = (
	note => 26, noop => 14, retried => 8, delayed => 8, keyed => 8, slow => 16, rolled_back => 6,
	sql => 4, fails => 3, many => 3, parent => 2, procedure => 2, prepared => 2,
	chain => 5, fan => 3, signalled => 3, undone => 3, remote => 5, remote_chain => 2,
	http => 8, http_chain => 3, hooked => 4, asked => 3, embedded => 4, tooled => 3);
my $many = 10;
my $workflows = "'chain', 'fan', 'signalled', 'undone', 'remote_chain', 'http_chain'";
my $remote = 3;    # workers

my $node;
my $calls;    # outside calls
my $tell;
my @slow;     # processes that outlived their postmaster for long
my $quiet;    # when the last transaction was sent

sub run
{
	my (%option) = @_;
	my %done = (seed => $option{seed});
	my $began = time;

	$tell = $option{tell} || sub { };
	srand $option{seed};
	my $journals = tempdir(CLEANUP => 1);
	$calls = OutsideCalls->start($journals, $option{seed});
	start_server();
	my $enough = "$journals/enough";
	my @pids = map { start_client($_, $journals, $enough, int($option{tasks} / $clients), rand 2**31) } 1 .. $clients;

	my @workers = RemoteWorkers::start($node, $journals, "$journals/drained", $remote);
	haunt($option{kills}, \%done);
	within(60, sub { defined value($node, 'SELECT 1') }) // die 'the server does not come back';
	forget_crashes($node);
	append_to_file($enough, '');
	waitpid $_, 0 foreach @pids;

	$done{prepared} = settle_prepared($journals);
	$node->safe_psql('postgres', send_signals(''));
	$quiet = time;
	$done{drained} =
	  within(120, sub { (value($node, 'SELECT count(*) FROM orchestrator.task WHERE live') // 1) == 0 }) // 'never';
	append_to_file("$journals/drained", '');
	waitpid $_, 0 foreach @workers;
	$done{violations} = check($journals, \%done);
	$done{remote} = RemoteWorkers::summary($node);
	$done{outside} = $calls->summary($node);
	$done{seconds} = time - $began;
	$node->stop('fast');
	$calls->stop;
	return \%done;
}

# ---------------------------------------------------------------- set-up

sub start_server
{
	$node = new_node(
		name => 'chaos',
		'orchestrator.max_executors' => 6,
		'max_prepared_transactions' => 20,
		'orchestrator.courier_hang_timeout' => '1 s',
		'orchestrator.secrets_directory' => $calls->secrets,
		'orchestrator.executors_per_role' => 2);
	$node->start;
	$node->create_extension;
	handlers($node);
	$node->safe_psql('postgres', <<'SQL');
CREATE TABLE chaos.journal (n serial, at float8, client int, event text, token text, kind text, role text, key text, id bigint);
CREATE TABLE chaos.witness (token text);   -- of procedures, which run at least once
GRANT SELECT, INSERT ON chaos.witness TO PUBLIC;

CREATE FUNCTION chaos.retried(input jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM chaos.note(input);
  IF (SELECT attempt FROM orchestrator.current_task()) <= 2 THEN
    RAISE EXCEPTION 'not yet';
  END IF;
END
$$;
CREATE FUNCTION chaos.fails(input jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM chaos.note(input);
  RAISE EXCEPTION 'never';
END
$$;
CREATE FUNCTION chaos.slow(input jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM chaos.note(input);
  PERFORM pg_sleep(0.05 + 0.15 * random());
END
$$;
CREATE FUNCTION chaos.parent(input jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM chaos.note(input);
  PERFORM orchestrator.enqueue('note', jsonb_build_object('token', (input ->> 'token') || '-child', 'kind', 'child'));
END
$$;
-- A step of a workflow: its run's token, and which step it is.
CREATE FUNCTION chaos.step(input jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO chaos.ledger
    SELECT t.task_id, t.attempt, (input -> 'input' ->> 'token') || '/' || regexp_replace(t.definition, '^orchestrator\.', ''), pg_backend_pid(), clock_timestamp()
    FROM orchestrator.current_task() t;
  RETURN to_jsonb((SELECT attempt FROM orchestrator.current_task()));
END
$$;
CREATE FUNCTION chaos.step_fails(input jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM chaos.step(input);
  RAISE EXCEPTION 'never';
END
$$;
CREATE PROCEDURE chaos.procedure(input jsonb) LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO chaos.witness VALUES (input ->> 'token');
  COMMIT;
  INSERT INTO chaos.witness VALUES (input ->> 'token');
END
$$;
SQL
	my $options = q(max_attempts => 10000, retry_delay => '0.05 second', backoff => 'fixed');
	foreach my $role (@roles)
	{
		$node->plain_role($role);

		# RULES F08: what was acknowledged is kept, whatever the role prefers.
		$node->safe_psql('postgres', "ALTER ROLE $role SET synchronous_commit = off") if $role eq 'app_c';
		$node->psql_as($role, "SELECT orchestrator.define('$_', 'chaos.$_', $options)")
		  foreach 'noop', 'note', 'retried', 'slow', 'parent';
		$node->psql_as($role, workflow('chain', ['a'], [ 'b', needs => '{a}' ], [ 'c', needs => '{b}' ]));
		$node->psql_as($role, workflow('fan', ['a'],
			[ 'm', needs => '{a}', each => '$.input.items[*]', max_parallel => 3 ], ['o'], [ 'z', needs => '{m,o}' ]));
		$node->psql_as($role, workflow('signalled', ['a'],
			[ 'w', needs => '{a}', wait_for => 'go' ], [ 's', sleep => '0.3 second' ], [ 'z', needs => '{w,s}' ]));
		$node->psql_as($role, workflow('undone', [ 'a', undo => 'chaos.step' ],
			[ 'b', needs => '{a}', undo => 'chaos.step' ], [ 'f', handler => 'chaos.step_fails', needs => '{b}', max_attempts => 2 ]));
		$node->psql_as($role, <<"SQL");
SELECT orchestrator.define('fails', 'chaos.fails', max_attempts => 3, retry_delay => '0.05 second');
SELECT orchestrator.define('procedure', 'chaos.procedure', 'procedure', max_attempts => 10000, retry_delay => '0.05 second', backoff => 'fixed');
SELECT orchestrator.define('sql', 'INSERT INTO chaos.ledger SELECT t.task_id, t.attempt, \$1 ->> ''token'', pg_backend_pid(), clock_timestamp() FROM orchestrator.current_task() t',
  'sql', max_attempts => 10000, retry_delay => '0.05 second', backoff => 'fixed');
SQL
	}
	RemoteWorkers::prepare($node, @roles);
	$calls->prepare($node, @roles);
	return;
}

# A workflow whose steps write the ledger, and are tried for as long as it takes.
sub workflow
{
	my ($name, @steps) = @_;
	return "SELECT orchestrator.define_workflow('$name', ARRAY[" . join(', ', map { step(@$_) } @steps) . '])';
}

sub step
{
	my ($name, %given) = @_;
	my %option = (max_attempts => 10000, retry_delay => '0.05 second', backoff => 'fixed', handler => 'chaos.step', %given);
	delete @option{qw(handler max_attempts retry_delay backoff)} if $given{wait_for} || $given{sleep};
	return "orchestrator.step('$name', " . join(', ', map { "$_ => '$option{$_}'" } sort keys %option) . ')';
}

# ---------------------------------------------------------------- load

sub start_client
{
	my ($number, $journals, $enough, $quota, $seed) = @_;
	my $pid = fork // die "fork: $!";
	return $pid if $pid;

	# Not the test's own ending, which would stop the server.
	eval { client($number, $journals, $enough, $quota, $seed); 1 } or print STDERR "client $number: $@";
	POSIX::_exit(0);
}

# One session's work: transactions until there are enough, and the nemesis had
# enough, too; or the test is gone.
sub client
{
	my ($number, $journals, $enough, $quota, $seed) = @_;
	my ($sent, $n, $session) = (0, 0, undef);
	my $test = getppid;

	srand $seed;
	open my $journal, '>', "$journals/$number" or die $!;
	open my $errors, '>', "$journals/errors.$number" or die $!;
	$journal->autoflush(1);
	while (getppid == $test && ($sent < $quota || !-e $enough))
	{
		my $transaction = compose($number, $n++);
		$session //= connect_as($transaction->{role} = $roles[ rand @roles ], $journals, $number);
		usleep(50_000), next unless $session;
		$transaction->{role} = $session->{role};
		record($journal, $number, 'send', $transaction, 0);
		$session->{refused} = sub { print $errors map { "$_\n" } @{ $_[0] } };
		my ($event, @ids) = perform($session, $transaction);
		record($journal, $number, $event, $transaction, @ids);
		$session = undef if $event eq 'unknown' || rand() < 0.02;
		$sent += @{ $transaction->{tokens} };
		usleep(rand $sent > $quota ? 60_000 : 20_000);
	}
	close $journal;
	close $errors;
	return;
}

sub record
{
	my ($journal, $number, $event, $transaction, @ids) = @_;
	my @tokens = @{ $transaction->{tokens} };

	foreach my $i (0 .. $#tokens)
	{
		print $journal join("\t", time, $number, $event, $tokens[$i], $transaction->{kind}, $transaction->{role},
			$transaction->{key} // '\N', $ids[$i] || '\N'), "\n";
	}
	return;
}

sub compose
{
	my ($number, $n) = @_;
	my $pick = rand sum0 values %mix;
	my ($kind) = grep { ($pick -= $mix{$_}) < 0 } sort keys %mix;
	my @tokens = ("$number-$n");
	my ($head, $tail) = ("BEGIN;\n", "COMMIT;\n");
	my %definition = (delayed => 'note', keyed => 'note', many => 'note', prepared => 'note', rolled_back => 'note', hooked => 'note');
	my ($definition, $key) = ($definition{$kind} || $kind, undef);
	my $options = '';

	($head, $tail) = ('', '') if rand() < 0.5;
	if ($kind eq 'rolled_back')
	{
		$head = "BEGIN;\n";
		$tail = rand() < 0.5 ? "ROLLBACK;\n" : "SELECT 1 / 0;\nCOMMIT;\n";
	}
	elsif ($kind eq 'prepared')
	{
		$head = "BEGIN;\n";
		$tail = "PREPARE TRANSACTION '$tokens[0]';\nCOMMIT PREPARED '$tokens[0]';\n";
	}
	elsif ($kind eq 'delayed') { $options = sprintf ", delay => '%f second'", 0.1 + rand 3 }
	elsif ($kind eq 'keyed')
	{
		$key = 'key-' . int rand 100;
		$options = ", key => '$key'";
	}
	elsif ($kind eq 'signalled' && rand() < 0.3)
	{
		# early: before its step waits for it
		$tail = "SELECT orchestrator.signal(max(id), 'go') FROM orchestrator.task WHERE input ->> 'token' = '$tokens[0]';\nCOMMIT;\n";
		$head = "BEGIN;\n";
	}
	elsif ($kind eq 'many') { @tokens = map { "$number-$n-$_" } 1 .. $many }

	my $statement = $kind eq 'many'
	  ? "SELECT 'id ' || i FROM unnest(orchestrator.enqueue_many('$definition', ARRAY["
	  . join(', ', map { input($_, $kind) } @tokens) . "]::jsonb[])) i;\n"
	  : $kind eq 'hooked' ? OutsideCalls::hooked(input($tokens[0], $kind))
	  : "SELECT 'id ' || orchestrator.enqueue('$definition', " . input($tokens[0], $kind) . "$options);\n";
	return {
		kind => $kind, tokens => \@tokens, key => $key,
		sql => "$head$statement$tail",
		committed => $kind eq 'prepared' ? 'COMMIT PREPARED' : $head ? 'COMMIT' : undef };
}

sub input
{
	my ($token, $kind) = @_;
	my %items = (fan => '[1, 2, 3, 4, 5, 6, 7]', http_chain => OutsideCalls::items());
	my $items = $items{$kind} ? qq(, "items": $items{$kind}) : '';
	return qq('{"token": "$token", "kind": "$kind"$items}');
}

sub connect_as
{
	my ($role, $journals, $number) = @_;
	my ($in, $out);
	my $pid = open3($in, $out, undef, 'psql', '-X', '-A', '-t', '-U', $role, '-d', $node->connstr('postgres'));
	my $session = { role => $role, in => $in, out => $out, pid => $pid };

	local $SIG{PIPE} = 'IGNORE';
	return $session if defined ask($session, "SELECT 1;\n");
	end_session($session);
	return;
}

sub end_session
{
	my ($session) = @_;
	close $session->{in};
	close $session->{out};
	waitpid $session->{pid}, 0;
	return;
}

# What psql prints for some SQL; undef when its session ended.
sub ask
{
	my ($session, $sql) = @_;
	my $end = 'done-' . ++$session->{asked};
	my @lines;

	local $SIG{PIPE} = 'IGNORE';
	print { $session->{in} } "$sql\\echo $end\n" or return;
	$session->{in}->flush or return;
	while (defined(my $line = readline $session->{out}))
	{
		chomp $line;
		return \@lines if $line eq $end;
		push @lines, $line;
		$session->{lines} = \@lines;
	}
	return;
}

# Send a transaction: what became of it, and the ids it returned.
sub perform
{
	my ($session, $transaction) = @_;
	$session->{lines} = [];
	my $lines = ask($session, $transaction->{sql});
	my $lost = !defined $lines || grep { /^server closed the connection|^connection to server was lost/ } @$lines;
	$lines = $session->{lines} if $lost;
	my @ids = map { /^id (\d+)$/ ? $1 : () } @$lines;
	my $acknowledged = $transaction->{committed}
	  ? grep { $_ eq $transaction->{committed} } @$lines
	  : @ids == @{ $transaction->{tokens} };

	end_session($session) if $lost;

	# Whatever became of its session, it was never asked to commit.
	return 'rolled_back' if $transaction->{kind} eq 'rolled_back';
	return ('ok', @ids) if $acknowledged && @ids == @{ $transaction->{tokens} };
	return 'unknown' if $lost;
	return 'unknown' if $transaction->{kind} eq 'prepared';
	$session->{refused}->($lines);
	return 'error';
}

# Prepared transactions that nobody knows the outcome of: some are committed,
# by a session that never saw their enqueue.
sub settle_prepared
{
	my ($journals) = @_;
	open my $journal, '>', "$journals/settle" or die $!;
	my @tokens = split /\n/, $node->safe_psql('postgres', 'SELECT gid FROM pg_prepared_xacts ORDER BY 1');
	foreach my $token (@tokens)
	{
		my $commit = rand() < 0.5;
		$node->safe_psql('postgres', ($commit ? 'COMMIT' : 'ROLLBACK') . " PREPARED '$token'");
		record($journal, 0, $commit ? 'ok' : 'rolled_back', { tokens => [$token], kind => 'prepared', role => '' });
	}
	close $journal;
	return scalar @tokens;
}

# ---------------------------------------------------------------- nemesis

# Name => [weight, how many SIGKILLs it is, what it does (false: it met nobody)]
my %fault = (
	'kill executor' => [ 30, 1, sub { crash(one('executor')) } ],
	'kill supervisor' => [ 8, 1, sub { crash(one('supervisor')) } ],
	'kill launcher' => [ 8, 1, sub { crash(one('launcher')) } ],
	'kill postmaster' => [ 14, 1, \&kill_postmaster ],
	'kill two executors' => [ 4, 2, sub { crash(several('executor', 2)) } ],
	'kill client backend' => [ 3, 1, sub { crash(pick(grep { title($_) =~ /app_. postgres / } children(postmaster($node)))) } ],
	'kill backend of a remote worker' => [ 4, 1, sub { crash(pick(grep { title($_) =~ /afar postgres / } children(postmaster($node)))) } ],
	'terminate backend of a remote worker' => [ 4, 0, sub { send_signal('TERM', pick(grep { title($_) =~ /afar postgres / } children(postmaster($node)))) } ],
	'terminate executor' => [ 12, 0, sub { send_signal('TERM', one('executor')) } ],
	'cancel executor' => [ 4, 0, sub { send_signal('INT', one('executor')) } ],
	'terminate supervisor' => [ 4, 0, sub { send_signal('TERM', one('supervisor')) } ],
	'terminate launcher' => [ 4, 0, sub { send_signal('TERM', one('launcher')) } ],
	'stop and continue executor' => [ 6, 0, sub { suspend(one('executor')) } ],
	'stop and continue supervisor' => [ 3, 0, sub { suspend(one('supervisor')) } ],
	'stop and continue launcher' => [ 2, 0, sub { suspend(one('launcher')) } ],
	'stop, then kill executor' => [ 3, 1, \&kill_stopped ],
	'kill courier' => [ 8, 1, sub { crash(one('courier')) } ],
	'terminate courier' => [ 5, 0, sub { send_signal('TERM', one('courier')) } ],
	'stop and continue courier' => [ 3, 0, sub { suspend(one('courier')) } ],
	'kill program of courier' => [ 8, 1, sub { send_signal('KILL', program()) } ],
	'terminate program of courier' => [ 4, 0, sub { send_signal('TERM', program()) } ],
	'stop program of courier' => [ 4, 0, sub { send_signal('STOP', program()) } ],
	'stop and continue program of courier' => [ 3, 0, sub { suspend(program()) } ],
	'pause and resume calls' => [ 4, 0, sub { $calls->interrupt($node) } ],
	'immediate restart' => [ 5, 0, sub { $node->stop('immediate'); $node->start; 1 } ],
	'fast restart' => [ 5, 0, sub { $node->stop('fast'); $node->start; 1 } ],
	'reload' => [ 2, 0, sub { $node->reload; 1 } ]);

# Every fault once, in any order, then at random until there were enough kills.
sub haunt
{
	my ($kills, $done) = @_;
	my @names = sort keys %fault;
	my @next = $kills > 10 ? shuffle @names : ();
	my $killed = 0;

	while ($killed < $kills || @next)
	{
		my $pick = rand sum0 map { $fault{$_}[0] } @names;
		my $name = shift @next // (grep { ($pick -= $fault{$_}[0]) < 0 } @names)[0];

		usleep(100_000 + rand 900_000);
		value($node, send_signals('AND random() < 0.5'));
		forget_crashes($node);
		$calls->remember($node);
		my $from = time;
		my $met = $fault{$name}[2]->();
		$tell->(sprintf "%-36s %s%.2f s\n", $name, $met ? '' : 'nobody met, ', time - $from);
		next unless $met;
		$done->{faults}{$name}++;
		$killed += $fault{$name}[1];
	}
	$done->{kills} = $killed;
	$done->{events} = sum0 values %{ $done->{faults} };
	return;
}

# Signals for runs that nobody sent one yet.
sub send_signals
{
	my ($which) = @_;
	return "SELECT count(*) FROM (SELECT orchestrator.signal(t.id, 'go') FROM orchestrator.task t
		WHERE t.live AND t.input ->> 'kind' = 'signalled' AND NOT EXISTS (SELECT FROM orchestrator.signal s WHERE s.task_id = t.id) $which) sent";
}

sub pick { return @_ ? $_[ rand @_ ] : () }

# One of the workers of a kind, when there is one soon.
sub one
{
	my ($kind) = @_;
	my @found;
	within(10, sub { @found = workers($node, $kind) });
	return pick(@found);
}

# The program that the courier has make its calls.
sub program
{
	my $pid;
	within(10, sub { $pid = $calls->program($node) });
	return $pid // ();
}

sub several
{
	my ($kind, $n) = @_;
	my @found;
	within(3, sub { (@found = workers($node, $kind)) >= $n });
	return @found >= $n ? (shuffle @found)[ 0 .. $n - 1 ] : ();
}

sub send_signal
{
	my ($signal, @pids) = @_;
	return @pids ? kill $signal, @pids : 0;
}

# Kill processes and wait until the server is up again; sometimes not.
sub crash
{
	my (@pids) = @_;
	my $offset = log_end($node);
	return 0 unless @pids && kill_hard(@pids);
	await_ready($node, $offset) if rand() < 0.8;
	return 1;
}

sub kill_postmaster
{
	my $pid = postmaster($node) or return 0;
	my @children = children($pid);
	return 0 unless kill_hard($pid);
	my $last = '';
	within(2, sub { $last = join ', ', map { title($_) } grep { alive($_) } @children; $last eq '' });
	push @slow, $last if $last;
	start_again($node, @children);
	return 1;
}

sub suspend
{
	my ($pid) = @_;
	return 0 unless $pid;
	kill 'STOP', $pid;
	usleep(50_000 + rand 1_500_000);
	return kill 'CONT', $pid;
}

sub kill_stopped
{
	my ($pid) = one('executor') or return 0;
	kill 'STOP', $pid;
	usleep(rand 500_000);
	return crash($pid);
}

# ---------------------------------------------------------------- verdict

# Each query finds what must not be; a row is a violation.
my @checks = (
	'I1: an acknowledged enqueue was lost' => q(
		SELECT j.* FROM chaos.journal j LEFT JOIN orchestrator.task t ON t.id = j.id AND (t.input ->> 'token' = j.token OR t.key = j.key)
		WHERE j.event = 'ok' AND j.client > 0 AND t.id IS NULL),
	'I1: a prepared transaction that was committed was lost' => q(
		SELECT j.* FROM chaos.journal j LEFT JOIN orchestrator.task t ON t.input ->> 'token' = j.token
		WHERE j.event = 'ok' AND j.client = 0 AND t.id IS NULL),
	'I2: one enqueue made two tasks' => q(
		SELECT t.input ->> 'token', array_agg(t.id) FROM orchestrator.task t WHERE t.parent_id IS NULL AND t.input ? 'token' GROUP BY 1 HAVING count(*) > 1),
	'I2: one key made two tasks' => q(
		SELECT t.owner, t.queue, t.key, array_agg(t.id) FROM orchestrator.task t WHERE t.key IS NOT NULL GROUP BY 1, 2, 3 HAVING count(*) > 1),
	'a key answered two ids' => q(
		SELECT j.role, j.key, array_agg(DISTINCT j.id) FROM chaos.journal j
		WHERE j.event = 'ok' AND j.key IS NOT NULL GROUP BY 1, 2 HAVING count(DISTINCT j.id) > 1),
	'I3: a rolled-back enqueue left a task or an effect' => q(
		SELECT j.* FROM chaos.journal j
		WHERE j.event IN ('rolled_back', 'error')
		  AND (EXISTS (SELECT FROM orchestrator.task t WHERE t.input ->> 'token' = j.token)
		    OR EXISTS (SELECT FROM chaos.ledger l WHERE l.token = j.token))),
	'a task that nobody enqueued' => q(
		SELECT t.id, t.input FROM orchestrator.task t
		WHERE t.input ->> 'kind' <> 'child' AND NOT EXISTS (SELECT FROM chaos.journal j WHERE j.token = t.input ->> 'token')),
	'I4: a task is not finished' => q(
		SELECT t.id, t.state, t.attempt, t.epoch, t.worker, t.run_at, t.sort_key, t.input, t.error FROM orchestrator.task t
		WHERE t.live OR t.state NOT IN ('completed', 'failed') AND t.parent_id IS NULL),
	'a task is there twice' => q(
		SELECT t.id, array_agg(t.tableoid::regclass) FROM orchestrator.task t GROUP BY 1 HAVING count(*) > 1),
	'a task ended in the wrong state' => q(
		SELECT t.id, t.state, t.attempt, t.error, t.input FROM orchestrator.task t
		WHERE NOT t.live AND t.parent_id IS NULL
		  AND t.state <> CASE WHEN t.input ->> 'kind' IN ('fails', 'undone') THEN 'failed' ELSE 'completed' END::orchestrator.task_state),
	'a run has open steps, or a compensation that was not done' => q(
		SELECT t.id, t.state, t.remaining, t.compensation FROM orchestrator.task t
		WHERE t.remaining IS NOT NULL
		  AND (t.state = 'completed' AND t.remaining <> 0 OR t.compensation IS DISTINCT FROM CASE t.input ->> 'kind' WHEN 'undone' THEN 'done' END)),
	'a step of a run did not happen exactly once' => q(
		SELECT t.id, t.input, e.step, e.n, l.n, l.at FROM orchestrator.task t
		JOIN (VALUES ('chain', 'step.chain.a', 1), ('chain', 'step.chain.b', 1), ('chain', 'step.chain.c', 1),
		             ('fan', 'step.fan.a', 1), ('fan', 'step.fan.m', 7), ('fan', 'step.fan.o', 1), ('fan', 'step.fan.z', 1),
		             ('signalled', 'step.signalled.a', 1), ('signalled', 'step.signalled.z', 1),
		             ('undone', 'step.undone.a', 1), ('undone', 'step.undone.b', 1), ('undone', 'step.undone.f', 0),
		             ('undone', 'undo.undone.a', 1), ('undone', 'undo.undone.b', 1), ('http_chain', 'step.http_chain.z', 1)) e(kind, step, n) ON e.kind = t.input ->> 'kind'
		CROSS JOIN LATERAL (SELECT count(*) AS n, array_agg(l.at) AS at FROM chaos.ledger l WHERE l.token = (t.input ->> 'token') || '/' || e.step) l
		WHERE t.parent_id IS NULL AND l.n <> e.n),
	'a step came before what it needs, or an undo before a later one' => q(
		SELECT b.* FROM chaos.ledger a JOIN chaos.ledger b ON split_part(a.token, '/', 1) = split_part(b.token, '/', 1)
		JOIN (VALUES ('step.chain.a', 'step.chain.b'), ('step.chain.b', 'step.chain.c'), ('step.fan.a', 'step.fan.m'), ('step.fan.m', 'step.fan.z'),
		             ('step.fan.o', 'step.fan.z'), ('step.signalled.a', 'step.signalled.z'), ('step.undone.a', 'step.undone.b'),
		             ('step.undone.b', 'undo.undone.b'), ('undo.undone.b', 'undo.undone.a')) o(first, second)
		  ON split_part(a.token, '/', 2) = o.first AND split_part(b.token, '/', 2) = o.second
		WHERE b.at < a.at),
	'a signal was consumed twice, or left by a run that waited for it' => q(
		SELECT t.id, array_agg(s.consumed_by) FROM orchestrator.task t LEFT JOIN orchestrator.signal s ON s.task_id = t.id
		WHERE t.input ->> 'kind' = 'signalled' AND t.parent_id IS NULL GROUP BY 1 HAVING count(s.consumed_by) <> 1),
	'I5: a task was completed without its effect' => q(
		SELECT t.id, t.attempt, t.epoch, t.input FROM orchestrator.task t
		WHERE t.state = 'completed' AND t.input ->> 'kind' NOT IN ('noop', 'procedure', 'remote', 'http', 'asked', 'embedded', 'tooled', 'chain', 'fan', 'signalled', 'undone', 'remote_chain', 'http_chain')
		  AND NOT EXISTS (SELECT FROM chaos.ledger l WHERE l.task_id = t.id)),
	'I5: a procedure was completed without its effect' => q(
		SELECT t.id, t.attempt, t.epoch, t.input FROM orchestrator.task t
		WHERE t.state = 'completed' AND t.input ->> 'kind' = 'procedure'
		  AND (SELECT count(*) FROM chaos.witness w WHERE w.token = t.input ->> 'token') < 2),
	'I5: an effect without its task completed' => q(
		SELECT l.* FROM chaos.ledger l LEFT JOIN orchestrator.task t ON t.id = l.task_id WHERE t.state IS DISTINCT FROM 'completed'),
	'I5: an effect happened twice' => q(
		SELECT l.task_id, count(*), array_agg(l.attempt), array_agg(l.at) FROM chaos.ledger l GROUP BY 1 HAVING count(*) > 1),
	'I6: the effect is not of the attempt that was settled' => q(
		SELECT l.*, t.attempt, t.epoch FROM chaos.ledger l JOIN orchestrator.task t ON t.id = l.task_id WHERE l.attempt <> t.attempt),
	'a completed parent without its child' => q(
		SELECT t.id FROM orchestrator.task t WHERE t.state = 'completed' AND t.input ->> 'kind' = 'parent'
		  AND NOT EXISTS (SELECT FROM orchestrator.task c WHERE c.input ->> 'token' = (t.input ->> 'token') || '-child')),
	'a child without its completed parent' => q(
		SELECT c.id FROM orchestrator.task c WHERE c.input ->> 'kind' = 'child'
		  AND NOT EXISTS (SELECT FROM orchestrator.task t WHERE t.state = 'completed' AND c.input ->> 'token' = (t.input ->> 'token') || '-child')),
	'a delayed task ran too early' => q(
		SELECT t.id, t.run_at, t.started_at FROM orchestrator.task t
		WHERE t.input ->> 'kind' = 'delayed' AND t.started_at < t.created_at + interval '0.1 second'),
	'I8: more attempts than allowed' => q(
		SELECT t.id, t.attempt, t.max_attempts FROM orchestrator.task t
		WHERE t.attempt > t.max_attempts OR t.attempt < 1 AND t.remaining IS NULL AND t.name IS DISTINCT FROM 'w' AND t.name IS DISTINCT FROM 's'),
	'I8: attempts that the trace does not tell of' => q(
		SELECT t.id, t.attempt, array_agg(r.event || ' ' || r.attempt ORDER BY r.at)
		FROM orchestrator.task t LEFT JOIN orchestrator.trace r ON r.task_id = t.id
		WHERE t.remaining IS NULL AND t.attempt > 0
		  AND NOT EXISTS (SELECT FROM orchestrator.trace p WHERE p.task_id = t.id AND p.event = 'paused')
		GROUP BY t.id, t.attempt
		HAVING t.attempt <> count(DISTINCT r.attempt) FILTER (WHERE r.event IN ('retrying', 'failed', 'completed'))
		    OR t.attempt <> count(*) FILTER (WHERE r.event IN ('retrying', 'failed', 'completed'))),
	'I13: a worker is in a transaction' => q(
		SELECT pid, backend_type, state, query, xact_start, backend_xid, backend_xmin FROM pg_stat_activity
		WHERE backend_type LIKE 'orchestrator%' AND (xact_start IS NOT NULL OR backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)),
	'I13: an advisory lock is left' => q(SELECT * FROM pg_locks WHERE locktype = 'advisory'),
	'I13: a prepared transaction is left' => q(SELECT * FROM pg_prepared_xacts));

sub check
{
	my ($journals, $done) = @_;
	my @violations;

	$node->safe_psql('postgres',
		join "\n", map { "\\copy chaos.journal (at, client, event, token, kind, role, key, id) FROM '$_'" } (map { "$journals/$_" } 1 .. $clients), "$journals/settle");
	$node->safe_psql('postgres', 'ANALYZE');    # without statistics, some of the queries take long
	# The look once a minute is for what another session's COMMIT PREPARED made ready.
	push @checks, 'a task was stuck' => qq(
		SELECT t.id, t.input, t.created_at, t.run_at, t.started_at, t.finished_at FROM orchestrator.task t
		WHERE t.finished_at > to_timestamp($quiet) + interval '5 seconds'
		  AND NOT EXISTS (SELECT FROM chaos.journal j WHERE j.client = 0 AND j.token = t.input ->> 'token')
		  AND t.input ->> 'kind' NOT IN ('remote', 'http', 'asked', 'embedded', 'tooled', $workflows));
	while (my ($name, $query) = splice @checks, 0, 2)
	{
		my $found = $node->safe_psql('postgres', "SELECT count(*) FROM ($query) found");
		next if $found == 0;
		push @violations, "$name: $found\n" . $node->safe_psql('postgres', "$query LIMIT 10");
	}
	push @violations, RemoteWorkers::check($node, $journals, $remote), $calls->check($node, $quiet);
	push @violations, map { "F06: after two seconds without a postmaster: $_" } @slow;
	push @violations, check_log(), check_relations();
	$done->{errors} = join '', map { slurp_file($_) } glob "$journals/errors.*";
	$done->{journal} = counts("SELECT event, count(*) FROM chaos.journal WHERE event <> 'send' GROUP BY 1 ORDER BY 1");
	$done->{tasks} = counts('SELECT state, count(*) FROM orchestrator.task GROUP BY 1 ORDER BY 1');
	$done->{kinds} = counts(q(SELECT coalesce(input ->> 'kind', 'step'), count(*) FROM orchestrator.task GROUP BY 1 ORDER BY 1));
	$done->{count} = $node->safe_psql('postgres', 'SELECT count(*) FROM orchestrator.task');
	$done->{effects} = $node->safe_psql('postgres', 'SELECT count(*) FROM chaos.ledger');
	$done->{lost} = $node->safe_psql('postgres', q(SELECT count(*) FROM orchestrator.trace WHERE detail ->> 'sqlstate' = 'OR003'));
	$done->{released} = $node->safe_psql('postgres', q(SELECT count(*) FROM orchestrator.trace WHERE event = 'released'));
	return \@violations;
}

sub counts
{
	my ($query) = @_;
	return join ', ', map { tr/|/ /r } split /\n/, $node->safe_psql('postgres', $query);
}

# I14: errors that no fault of ours explains.
sub check_log
{
	my @odd = grep {
		/ (?:ERROR|FATAL|PANIC): /
		  && !/FATAL:  terminating (?:connection|background worker|walreceiver|autovacuum process).* due to (?:administrator command|unexpected postmaster exit)/
		  && !/FATAL:  the database system is /
		  && !/FATAL:  postmaster exited during a parallel transaction/
		  && !/client backend .*ERROR:  division by zero/
		  && !/client backend .*FATAL:  connection to client lost/
		  && !/client backend .*FATAL:  canceling authentication due to timeout/    # one that is terminated says so while it connects
		  && !/client backend .*ERROR:  task \d+ is no longer claimed with this token/
		  && !/client backend .*ERROR:  cannot (?:pause|resume) task \d+/
	} split /\n/, slurp_file($node->logfile);
	return @odd ? 'I14: errors in the log: ' . @odd . "\n" . join("\n", @odd[ 0 .. ($#odd > 9 ? 9 : $#odd) ]) : ();
}

# I15: heap and indexes agree.
sub check_relations
{
	my ($status, $out, $err) = $node->psql('postgres', <<'SQL');
CREATE EXTENSION amcheck;
SELECT count(bt_index_check(c.oid, true) IS NULL) FROM pg_class c JOIN pg_am a ON a.oid = c.relam
  WHERE a.amname = 'btree' AND c.relkind = 'i' AND c.relnamespace = 'orchestrator'::regnamespace;
SELECT c.relname, v.* FROM pg_class c, verify_heapam(c.oid) v
  WHERE c.relkind IN ('r', 't') AND c.relnamespace = 'orchestrator'::regnamespace;
SQL
	return $status == 0 && $out =~ /^\d+$/ ? () : "I15: amcheck: $out $err";
}

# ---------------------------------------------------------------- memory

# Megabytes of its own memory that a process holds.
sub memory
{
	my ($pid) = @_;
	my ($kilobytes) = slurp_file("/proc/$pid/status") =~ /^RssAnon:\s+(\d+)/m;
	return $kilobytes / 1024;
}

# Run that many tasks, and a tenth as many that fail: how many megabytes each
# worker grew by for 100,000 tasks, after a warm-up.
sub soak
{
	my ($tasks, $progress) = @_;
	my %before;

	$tell = $progress || sub { };
	$node = new_node(
		name => 'soak',
		'orchestrator.executor_max_tasks' => 2_000_000_000,
		'orchestrator.executors_per_role' => 1,
		max_wal_size => '4GB');
	$node->start;
	$node->create_extension;
	handlers($node);
	$node->plain_role('app');
	$node->safe_psql('postgres', q(CREATE FUNCTION chaos.fails(jsonb) RETURNS void LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; END'));
	$node->psql_as('app', q(SELECT orchestrator.define('noop', 'chaos.noop'), orchestrator.define('fails', 'chaos.fails', max_attempts => 1)));

	pour('noop', 50_000);
	pour('fails', 5_000);
	$before{$_} = memory($_) foreach workers($node);
	my $began = time;
	for (my $left = $tasks; $left > 0; $left -= 50_000)
	{
		pour('noop', $left < 50_000 ? $left : 50_000);
		pour('fails', $left < 50_000 ? $left / 10 : 5_000);
		$tell->(join('  ', map { sprintf '%s %.1f MB', title($_) =~ /orchestrator (\w+)/, memory($_) } workers($node)) . "\n");
	}
	my @workers = map {
		{
			name => title($_) =~ /orchestrator (\w+)/,
			pid => $_,
			before => $before{$_},
			after => memory($_),
			slope => (memory($_) - ($before{$_} // 0)) / ($tasks / 100_000) }
	} workers($node);
	my $seconds = time - $began;
	my @kept = grep { exists $before{ $_->{pid} } } @workers;
	$node->stop('fast');
	return { workers => \@kept, replaced => @workers - @kept, seconds => $seconds };
}

sub pour
{
	my ($definition, $n) = @_;
	$node->psql_as('app', "SELECT count(*) FROM unnest(orchestrator.enqueue_many('$definition', array_fill('{}'::jsonb, ARRAY[" . int($n) . "])))")
	  if $n >= 1;
	defined within(300, sub { (value($node, 'SELECT count(*) FROM orchestrator.task_live') // 1) == 0 })
	  or die 'tasks were not finished: ' . value($node, 'SELECT state, count(*) FROM orchestrator.task_live GROUP BY 1');
	return;
}

1;
