package RemoteWorkers;

# Remote workers that die at every point of their protocol, and what must hold.
#
#   RemoteWorkers::prepare($node, 'app', @roles);       # tables; a queue of those roles' tasks
#   my @pids = RemoteWorkers::start($node, $folder, $enough, 3);   # until that file exists
#   waitpid $_, 0 foreach @pids;
#   my @violations = RemoteWorkers::check($node, $folder, 3);
#
# Each call of a worker (claim, heartbeat, the effect, a report) may be the last
# thing that it does: it dies before the call, while the server works on it, or
# after it without having looked at the answer.  Some sleep over the end of their
# lease and report all the same, some report twice, some give back or fail what
# they have.  A worker writes to its journal what it sends and what it was told.

use strict;
use warnings;

use IO::Handle;
use IPC::Open3;
use PostgreSQL::Test::Utils;
use POSIX ();
use Time::HiRes qw(time usleep);

my $queue = 'afar';
my $lease = 1;    # second

# The definitions are those of each role, all in one queue of the first.
sub prepare
{
	my ($node, @roles) = @_;
	$node->safe_psql('postgres', <<'SQL');
CREATE ROLE afar LOGIN;
SELECT orchestrator.grant_usage('afar', 'worker');
CREATE TABLE chaos.report (at float8, event text, verb text, task bigint, token text, late boolean);
CREATE TABLE chaos.effect (task bigint, token text);   -- of remote tasks, which run at least once
GRANT SELECT, INSERT ON chaos.effect TO PUBLIC;
SQL
	$node->psql_as($roles[0], "SELECT orchestrator.define_queue('$queue', max_running => 12), orchestrator.share_queue('$queue', 'afar', claim => true);
		SELECT orchestrator.share_queue('$queue', r) FROM unnest('{@{[join ',', @roles[1 .. $#roles]]}}'::text[]) r");
	$node->psql_as($_, <<"SQL") foreach @roles;
SELECT orchestrator.define('remote', NULL, 'remote', queue => '$queue', max_attempts => 10000, backoff => 'fixed', retry_delay => '0.05 s');
SELECT orchestrator.define_workflow('remote_chain', ARRAY[orchestrator.step('a', 'a', 'remote', max_attempts => 10000, backoff => 'fixed', retry_delay => '0.05 s'),
  orchestrator.step('b', 'b', 'remote', needs => '{a}', max_attempts => 10000, backoff => 'fixed', retry_delay => '0.05 s')], queue => '$queue');
SQL
	return;
}

sub start
{
	my ($node, $folder, $enough, $n) = @_;
	return map { start_one($node, "$folder/remote.$_", $enough, rand 2**31) } 1 .. $n;
}

sub start_one
{
	my ($node, $journal, $enough, $seed) = @_;
	my $pid = fork // die "fork: $!";
	return $pid if $pid;
	my $worker = { node => $node, name => $journal =~ s/.*\///r, old => [] };
	my $test = getppid;

	srand $seed;
	open $worker->{journal}, '>', $journal or die $!;
	$worker->{journal}->autoflush(1);
	until (-e $enough || getppid != $test)
	{
		next if eval { work($worker); 1 };
		print STDERR "worker $worker->{name}: $@" unless $@ eq "dead\n";
		usleep(20_000);
	}
	eval { die_now($worker) };

	# Not the test's own ending, which would stop the server.
	POSIX::_exit(0);
}

# ---------------------------------------------------------------- a worker

sub work
{
	my ($worker) = @_;
	my $n = 1 + int rand 4;
	my @tasks = map { /^task (\d+) (\S+)$/ ? { id => $1, token => $2 } : () } @{
		call($worker, "SELECT 'task ' || task_id || ' ' || token FROM orchestrator.claim('{$queue}', '$worker->{name}', $n, '$lease s')") };

	if (!@tasks)
	{
		late($worker);
		call($worker, "CALL orchestrator.await_work('{$queue}', '0.3 s')");
		return;
	}
	usleep(rand 5_000);
	call($worker, "SELECT orchestrator.heartbeat($_->{id}, '$_->{token}', fraction => 0.5)") foreach grep { rand() < 0.3 } @tasks;
	call($worker, 'INSERT INTO chaos.effect VALUES ' . join ', ', map { "($_->{id}, '$_->{token}')" } @tasks);
	my $fate = rand;
	if    ($fate < 0.05) { usleep(($lease + 0.2) * 1e6); report($worker, 'complete', 1, @tasks) }
	elsif ($fate < 0.15) { report($worker, 'fail', 0, $_) foreach @tasks }
	elsif ($fate < 0.25) { report($worker, 'release', 0, $_) foreach @tasks }
	elsif ($fate < 0.60) { report($worker, 'complete_many', 0, @tasks) }
	else                 { report($worker, 'complete', 0, $_) foreach @tasks }
	push @{ $worker->{old} }, @tasks;
	report($worker, (qw(complete fail release complete_many))[ rand 4 ], 0, @tasks) if rand() < 0.1;
	return;
}

# Reports of what it had more than a lease ago, if it still remembers.
sub late
{
	my ($worker) = @_;
	my @old = splice @{ $worker->{old} }, 0, 3;

	report($worker, 'complete', 0, $_) foreach @old;
	return;
}

# Several at once, or one; and what the server said.
sub report
{
	my ($worker, $verb, $late, @tasks) = @_;
	if ($verb ne 'complete_many')
	{
		report_one($worker, $verb, $late, $_) foreach @tasks;
		return;
	}
	note($worker, 'send', $verb, $_, $late) foreach @tasks;
	my $lines = call($worker, sprintf "SELECT 'end ' || task_id || ' ' || state FROM orchestrator.complete_many('{%s}', '{%s}', ARRAY[%s]::jsonb[])",
		join(',', map { $_->{id} } @tasks), join(',', map { $_->{token} } @tasks), join(',', map { qq('"$_->{token}"') } @tasks));
	my %state = map { /^end (\d+) (\w+)$/ ? ($1 => $2) : () } @$lines;
	note($worker, ($state{ $_->{id} } // '') eq 'completed' ? 'ok' : 'refused', $verb, $_, $late) foreach @tasks;
	return;
}

sub report_one
{
	my ($worker, $verb, $late, $task) = @_;
	my $more = { complete => qq(, '"$task->{token}"'), fail => q(, '"so it was planned"'), release => '' }->{$verb};

	note($worker, 'send', $verb, $task, $late);
	my $lines = call($worker, "SELECT 'ok' FROM orchestrator.$verb($task->{id}, '$task->{token}'$more)");
	my ($event) = map { $_ eq 'ok' ? 'ok' : /ERROR:  task \d+ is no longer claimed with this token/ ? 'refused' : () } @$lines;
	note($worker, $event // "odd: @$lines", $verb, $task, $late);
	return;
}

sub note
{
	my ($worker, $event, $verb, $task, $late) = @_;
	print { $worker->{journal} } join("\t", time, $event =~ s/\s+|\\/ /gr, $verb, $task->{id}, $task->{token}, $late ? 't' : 'f'), "\n";
	return;
}

# What psql prints for some SQL.  Dies, and with it the worker, when the session
# ends, or when it was to die at this point.
sub call
{
	my ($worker, $sql) = @_;
	my $fate = rand() < 0.06 ? (qw(before during after))[ rand 3 ] : '';
	my ($what) = $sql =~ /orchestrator\.(\w+)/;

	note($worker, "died $fate", $what // 'effect', { id => 0, token => '' }, 0) if $fate;
	die_now($worker) if $fate eq 'before';
	my $session = $worker->{session} ||= connect_to($worker);
	my $end = 'done-' . ++$worker->{asked};
	local $SIG{PIPE} = 'IGNORE';
	print { $session->{in} } "$sql;\n\\echo $end\n" or die_now($worker);
	$session->{in}->flush or die_now($worker);
	if ($fate eq 'during')
	{
		usleep(rand 4_000);
		die_now($worker);
	}
	my @lines;
	while (defined(my $line = readline $session->{out}))
	{
		chomp $line;
		last if $line =~ /^server closed the connection|^connection to server was lost|^psql: error/;
		if ($line eq $end)
		{
			die_now($worker) if $fate eq 'after';
			return \@lines;
		}
		push @lines, $line;
	}
	die_now($worker);
	return;
}

sub connect_to
{
	my ($worker) = @_;
	my ($in, $out);
	my $pid = open3($in, $out, undef, 'psql', '-X', '-q', '-A', '-t', '-U', 'afar', '-d', $worker->{node}->connstr('postgres'));
	return { in => $in, out => $out, pid => $pid };
}

# It may remember what it had, as one does that lost its connection only.
sub die_now
{
	my ($worker) = @_;
	if (my $session = delete $worker->{session})
	{
		kill 'KILL', $session->{pid};
		close $session->{in};
		close $session->{out};
		waitpid $session->{pid}, 0;
	}
	$worker->{old} = [] if rand() < 0.5;
	die "dead\n";
}

# ---------------------------------------------------------------- verdict

# Each query finds what must not be; a row is a violation.
my $mine = q(JOIN orchestrator.definition d ON d.id = t.definition AND d.kind = 'remote');
my @checks = (
	'R1: an acknowledged completion was lost, or is another' => q(
		SELECT r.*, t.state, t.output FROM chaos.report r LEFT JOIN orchestrator.task t ON t.id = r.task
		WHERE r.event = 'ok' AND r.verb LIKE 'complete%' AND (t.state IS DISTINCT FROM 'completed' OR t.output #>> '{}' IS DISTINCT FROM r.token)),
	'R2: a token was good for two reports' => q(
		SELECT r.task, r.token, array_agg(r.verb) FROM chaos.report r WHERE r.event = 'ok' GROUP BY 1, 2 HAVING count(*) > 1),
	'R3: a report after the end of the lease was accepted' => q(
		SELECT * FROM chaos.report r WHERE r.event = 'ok' AND r.late),
	# sent after it: when its answer is noted says nothing, a worker may be held up
	'R4: a report after that of a later attempt was accepted' => q(
		SELECT * FROM chaos.report a JOIN chaos.report b ON b.task = a.task AND b.at > a.at
		WHERE a.event = 'ok' AND b.event = 'ok' AND split_part(b.token, '-', 1)::int <= split_part(a.token, '-', 1)::int
		AND a.at < (SELECT max(s.at) FROM chaos.report s
		            WHERE s.event = 'send' AND s.task = b.task AND s.token = b.token AND s.verb = b.verb AND s.at <= b.at)),
	'R5: an answer that is none' => q(SELECT * FROM chaos.report r WHERE r.event LIKE 'odd%'),
	'R6: a remote task is not completed' => qq(
		SELECT t.id, t.state, t.attempt, t.error FROM orchestrator.task t $mine WHERE t.live OR t.state <> 'completed'),
	'R7: a remote task was completed by a token that nobody sent' => qq(
		SELECT t.id, t.output FROM orchestrator.task t $mine
		WHERE NOT EXISTS (SELECT FROM chaos.report r WHERE r.event = 'send' AND r.verb LIKE 'complete%' AND r.task = t.id AND r.token = t.output #>> '{}')),
	'R8: a remote task was completed without its effect' => qq(
		SELECT t.id FROM orchestrator.task t $mine
		WHERE t.state = 'completed' AND NOT EXISTS (SELECT FROM chaos.effect e WHERE e.task = t.id AND e.token = t.output #>> '{}')),
	'R9: more attempts than allowed' => qq(
		SELECT t.id, t.attempt, t.max_attempts FROM orchestrator.task t $mine WHERE t.attempt NOT BETWEEN 1 AND t.max_attempts),
	'R10: a lease is left' => q(SELECT * FROM orchestrator.lease),
	'R11: a permit is left' => q(SELECT * FROM orchestrator._permits() p WHERE p.running > 0));

sub check
{
	my ($node, $folder, $n) = @_;
	my @violations;

	$node->safe_psql('postgres', join "\n", map { "\\copy chaos.report FROM '$folder/remote.$_'" } 1 .. $n);
	my @left = @checks;
	while (my ($name, $query) = splice @left, 0, 2)
	{
		my $found = $node->safe_psql('postgres', "SELECT count(*) FROM ($query) found");
		next if $found == 0;
		push @violations, "$name: $found\n" . $node->safe_psql('postgres', "$query LIMIT 10");
	}
	return @violations;
}

# Reports by what became of them, as text.
sub summary
{
	my ($node) = @_;
	return join ', ', map { tr/|/ /r } split /\n/,
	  $node->safe_psql('postgres', q(SELECT verb, event, count(*) FROM chaos.report GROUP BY 1, 2 ORDER BY 1, 2));
}

1;
