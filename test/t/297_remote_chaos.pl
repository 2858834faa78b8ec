# Remote workers that die at every point of their protocol, while their backends
# are terminated and the server is killed: what was acknowledged holds, and no
# report with an old token is taken (test/chaos/RemoteWorkers.pm).

use strict;
use warnings;
use lib 'test/chaos';

use Fault;
use File::Temp qw(tempdir);
use OrchestratorTest;
use RemoteWorkers;
use Test::More;
use Time::HiRes qw(time usleep);

my $seed = $ENV{SEED} || int rand 1_000_000;
my ($workers, $seconds) = (4, 10);
srand $seed;
note("seed $seed");

my $node = new_node(name => 'remote_chaos');
$node->start;
$node->create_extension;
handlers($node);
$node->plain_role('app');
RemoteWorkers::prepare($node, 'app');
my $folder = tempdir(CLEANUP => 1, DIR => $node->basedir);
my @pids = RemoteWorkers::start($node, $folder, "$folder/enough", $workers);
my %met;

# Each when its time has come, the first at once: (seconds between two, what).
my %faults = (
	'a backend is terminated in a call' => [ 0.05, \&terminate ],
	'a backend is killed, and the server restarts' => [ 4, \&crash ],
	'the postmaster is killed' => [ 5, \&kill_server ]);
my %next = map { $_ => time + rand $faults{$_}[0] } keys %faults;
my $until = time + $seconds;
while (time < $until)
{
	# no more than the workers finish in seconds: those that die keep their permits until their leases end
	value($node, q{SELECT orchestrator.enqueue('remote'), orchestrator.enqueue('remote_chain') FROM generate_series(1, 3)
		WHERE (SELECT count(*) FROM orchestrator.task WHERE live) < 150}, 'app');
	foreach my $name (grep { $next{$_} < time } sort keys %faults)
	{
		my $n = $faults{$name}[1]->();
		$met{$name} += $n;
		$next{$name} = time + $faults{$name}[0] if $n;
	}
	usleep(20_000);
}
cmp_ok($met{$_} // 0, '>', 0, "$_: " . ($met{$_} // 0)) foreach sort keys %faults;
my $drained = within(40, sub { (value($node, 'SELECT count(*) FROM orchestrator.task WHERE live') // 1) == 0 });
ok(defined $drained, 'every task was finished');
open my $file, '>', "$folder/enough" or die $!;
close $file;
waitpid $_, 0 foreach @pids;

my @violations = RemoteWorkers::check($node, $folder, $workers);
is(scalar @violations, 0, "acknowledged is kept, stale is refused (seed $seed)") or diag(join "\n", "seed $seed", @violations);
note(RemoteWorkers::summary($node));
note($node->safe_psql('postgres', q{SELECT format('%s remote tasks and steps, %s attempts', count(*), sum(t.attempt)) FROM orchestrator.task t JOIN orchestrator.definition d ON d.id = t.definition WHERE d.kind = 'remote'}));
foreach my $part ([ ok => 50 ], [ refused => 20 ], [ send => 100 ])
{
	cmp_ok($node->safe_psql('postgres', "SELECT count(*) FROM chaos.report WHERE event = '$part->[0]'"), '>=', $part->[1], "reports: $part->[0]");
}
cmp_ok($node->safe_psql('postgres', 'SELECT count(*) FROM chaos.report WHERE late'), '>', 0, 'late ones among them');
is($node->safe_psql('postgres', q{SELECT count(DISTINCT (event, verb LIKE 'complete%')) FROM chaos.report WHERE event LIKE 'died%' AND (verb = 'claim' OR verb LIKE 'complete%')}),
	6, 'workers died before, during and after claims and reports');
$node->stop('fast');
done_testing();

sub terminate
{
	return value($node, q{SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity WHERE usename = 'afar' AND state = 'active' AND random() < 0.5 LIMIT 1) one}) // 0;
}

# One of the workers' backends, whatever it does; none where it ended by itself
# just then, because its client had died.
sub crash
{
	my ($pid) = grep { title($_) =~ /afar postgres / } children(postmaster($node)) or return 0;
	my $offset = log_end($node);

	kill_hard($pid);
	within(2, sub { log_since($node, $offset) =~ /\(PID $pid\) was terminated by signal 9/ }) // return 0;
	await_ready($node, $offset);
	return 1;
}

sub kill_server
{
	my $pid = postmaster($node) or return 0;
	my @children = children($pid);

	kill_hard($pid);
	start_again($node, @children);
	return 1;
}
