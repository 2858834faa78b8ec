# Names that cannot be looked up (F54): the name server says nothing, or that there
# is no such name.  The test runs in a network of its own, where it is the name
# server; without the right to make one it is skipped.

use strict;
use warnings;

use IO::Socket::INET;
use OrchestratorOutside;
use OrchestratorStep;
use OrchestratorTest;
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;

my $mode;

# Before the test's output is redirected.
BEGIN
{
	my @own = ('unshare', '--user', '--map-current-user', '--keep-caps', '--mount', '--net', '--');
	my $mount = 'mount --bind "$1" /etc/resolv.conf';

	$mode = ($ENV{TMPDIR} || '/tmp') . "/resolver.$$";
	if (!$ENV{ORCHESTRATOR_RESOLVER_TEST})
	{
		open my $file, '>', $mode or die "$mode: $!";
		print $file "nameserver 127.0.0.1\n";
		close $file;
		$ENV{ORCHESTRATOR_RESOLVER_TEST} = 1;
		exec @own, 'sh', '-c', "$mount && rm \"\$1\" && shift && exec \"\$@\"", '-', $mode, $^X, (map { "-I$_" } @INC), $0
		  if system("@own sh -c '$mount' - '$mode' >/dev/null 2>&1") == 0;
		unlink $mode;
		print "1..0 # SKIP no network of its own can be made here\n";
		exit;
	}
}

$PostgreSQL::Test::Utils::timeout_default = 30;

# The network has itself only, which is down: SIOCSIFFLAGS, IFF_UP.
my $any = IO::Socket::INET->new(Proto => 'udp') or die "socket: $!";
my $up = pack 'a16 s x22', 'lo', 1;
ioctl($any, 0x8914, $up) or die "lo: $!";
my $names = IO::Socket::INET->new(Proto => 'udp', LocalAddr => '127.0.0.1', LocalPort => 53) or die "port 53: $!";
be('silent');
my $name_server = fork // die "fork: $!";
if ($name_server == 0)
{
	answer() while 1;
}
END { my $status = $?; kill 'KILL', $name_server if $name_server; unlink $mode; $? = $status }

sub be { open my $file, '>', "$mode.new" or die $!; print $file $_[0]; close $file; rename "$mode.new", $mode or die $!; return }

# One question: silence, no such name, or our own address.
sub answer
{
	my $from = recv $names, my $question, 512, 0 or POSIX::_exit(0);
	my $how = slurp_file($mode);
	return if $how eq 'silent';
	my ($id, $asked) = (substr($question, 0, 2), substr $question, 12);
	my $size = index($asked, "\0") + 5;
	my $found = $how eq 'found' && substr($asked, $size - 4, 2) eq pack 'n', 1;
	send $names, $id . pack('n5', $how eq 'found' ? 0x8180 : 0x8183, 1, $found, 0, 0) . substr($asked, 0, $size)
	  . ($found ? pack('n3 N n C4', 0xc00c, 1, 1, 0, 4, 127, 0, 0, 1) : ''), 0, $from;
	return;
}

my $server = outside();
my $node = new_node(name => 'resolver', 'orchestrator.courier_max_in_flight' => 500);
$node->start;
$node->create_extension;
$node->plain_role('app');
$node->safe_psql('postgres', <<"SQL");
CREATE SERVER named FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url 'http://model.example:$server->{port}', allow_private 'on', timeout '1 h', connect_timeout '1 h');
CREATE SERVER brief FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url 'http://model.example:$server->{port}', allow_private 'on', timeout '1 h', connect_timeout '1500 ms');
CREATE SERVER numbered FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url '$server->{url}', allow_private 'on');
GRANT USAGE ON FOREIGN SERVER named, brief, numbered TO app;
CREATE DATABASE elsewhere;
SQL
app(q{SELECT orchestrator.define(e, NULL, 'http', endpoint => e, max_attempts => 1, request => '{"path": "/echo"}') FROM unnest('{named,brief,numbered}'::text[]) e;
	SELECT orchestrator.define('again', NULL, 'http', endpoint => 'named', max_attempts => 100, retry_delay => '100 ms', backoff => 'fixed', request => '{"path": "/echo"}')});

sub app { return $node->psql_as('app', $_[0]) }
sub under_way { return $node->wait_for(q{SELECT claimed FROM orchestrator.worker_status WHERE kind = 'courier'}, $_[0], "$_[0] calls are under way") }

sub ends
{
	my ($definition) = @_;
	my $end = outcome($node, 'app', "orchestrator.enqueue('$definition')");
	return join ' ', $end->{state}, $end->{error}{sqlstate} // ();
}

is(ends('numbered'), 'completed', 'an address needs no name server');
app(q{SELECT orchestrator.enqueue_many('named', array_fill('{}'::jsonb, ARRAY[200]))});
under_way(200);
measure_ok(1, 'meanwhile another call', sub { is(ends('numbered'), 'completed', 'while 200 names are looked up') });
measure_ok(2, 'dropping another database', sub { $node->safe_psql('postgres', 'DROP DATABASE elsewhere') });
measure_ok(1, 'cancel', sub { app(q{SELECT orchestrator.cancel(min(task_id)) FROM orchestrator.task_status WHERE state = 'running'}); under_way(199) });
measure_ok(1, 'cancel of all', sub { app(q{SELECT orchestrator.cancel_many('named', all_tasks => true)}); under_way(0) });
measure_ok(2.5, 'connect_timeout', sub { is(ends('brief'), 'failed OR004', 'a look-up that takes too long') });
be('unknown');
is(ends('named'), 'failed OR012', 'a name that is unknown');
my $task = app(q{SELECT orchestrator.enqueue('again')});
$node->wait_for("SELECT attempt > 1 FROM orchestrator.task WHERE id = $task", 't', 'which is tried again');
be('found');
app("CALL orchestrator.await($task, '20 s')");
is(app("SELECT state FROM orchestrator.task WHERE id = $task"), 'completed', 'until it is known');
unlike(slurp_file($node->logfile), qr/the program that makes outside calls (ended|hung)/, 'the program went on all the time');
$node->stop('fast');
done_testing();
