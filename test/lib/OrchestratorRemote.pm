package OrchestratorRemote;

# The remote workers of test/clients in tests, and a pooler for them.
#
#   my $missing = missing_clients();                  # what is not installed
#   my $worker = start_client($node, 'worker.js', ['queue'], role => 'worker');
#   said($worker);                                    # what it has written so far
#   is(stop_client($worker), 0);                      # SIGTERM; its exit code
#   is(ended_client($worker), 0);                     # wait until it ends by itself
#   my $port = start_pooler($node);                   # pgbouncer, transaction mode

use strict;
use warnings;

use Exporter 'import';
use OrchestratorTest;
use POSIX qw(WNOHANG);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

our @EXPORT = qw(missing_clients start_client stop_client ended_client said start_pooler);

my $sources = tree() . '/test/clients';
my $packages;
my $number  = 0;
my @started;

sub python
{
	return (grep { system("$_ -c 'import psycopg2' >/dev/null 2>&1") == 0 } '/usr/bin/python3', 'python3')[0];
}

# The first of what test/setup.sh installs that is not there.  node-postgres comes
# from npm, into a folder of the run.
sub missing_clients
{
	return 'pgbouncer' if system('command -v pgbouncer >/dev/null 2>&1') != 0;
	return 'psycopg2' unless python();
	$packages = npm_packages($sources, 'clients') or return 'node-postgres';
	return;
}

# Options: port, role.
sub start_client
{
	my ($node, $program, $arguments, %options) = @_;
	local @ENV{qw(PGHOST PGPORT PGUSER PGDATABASE NODE_PATH)} =
	  ($node->host, $options{port} || $node->port, $options{role} || 'app', 'postgres', "$packages/node_modules");
	return start($program =~ /\.py$/ ? (python(), '-u') : ('node'), "$sources/$program", @$arguments);
}

# A process that writes to a file.
sub start
{
	my @command = @_;
	my $client = { file => PostgreSQL::Test::Utils::tempdir() . '/client' . ++$number };
	$client->{pid} = fork;
	die "fork: $!" unless defined $client->{pid};
	if ($client->{pid} == 0)
	{
		open(STDOUT, '>', $client->{file}) && open(STDERR, '>&', \*STDOUT) && exec { $command[0] } @command;
		POSIX::_exit(127);
	}
	push @started, $client;
	return $client;
}

sub said { return slurp_file($_[0]{file}) }

sub stop_client
{
	my ($client, $signal) = @_;
	kill $signal || 'TERM', $client->{pid};
	return ended_client($client);
}

# 128 and the signal, if one ended it; what does not end in time is killed.
sub ended_client
{
	my ($client) = @_;
	my $until = time + $PostgreSQL::Test::Utils::timeout_default;
	until (waitpid($client->{pid}, WNOHANG) == $client->{pid})
	{
		kill 'KILL', $client->{pid} if time > $until;
		usleep(10_000);
	}
	$client->{ended} = 1;
	return $? & 127 ? 128 + ($? & 127) : $? >> 8;
}

# pgbouncer before a node, with few connections to it; its port, on the same
# socket folder.
sub start_pooler
{
	my ($node) = @_;
	my $port = $node->port + 10000;
	my $file = PostgreSQL::Test::Utils::tempdir() . '/pgbouncer';
	my $host = $node->host;
	append_to_file("$file.users", join '', map { qq("$_" ""\n) } qw(app worker));
	append_to_file("$file.ini", <<"INI");
[databases]
* = host=$host port=@{[$node->port]}
[pgbouncer]
listen_addr =
listen_port = $port
unix_socket_dir = $host
auth_type = trust
auth_file = $file.users
pool_mode = transaction
default_pool_size = 5
INI
	start('pgbouncer', "$file.ini");
	my $until = time + $PostgreSQL::Test::Utils::timeout_default;
	usleep(10_000) until -S "$host/.s.PGSQL.$port" || time > $until;
	return $port;
}

# Also when the test dies.
END
{
	my $status = $?;
	foreach my $client (grep { !$_->{ended} } @started)
	{
		kill 'KILL', $client->{pid};
		waitpid $client->{pid}, 0;
	}
	$? = $status;
}

1;
