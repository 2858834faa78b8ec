package OrchestratorOutside;

# The server that outside calls are made to (outside.py), in a process of its own.
#
#   my $server = outside();                  # http on 127.0.0.1
#   my $server = outside('--tls', $cert, $key);
#   my $server = receiver($secret);          # of webhooks (hooks.py)
#   $server->{port}; $server->{url};
#   $server->log;                            # [[key, path], ...] of every request
#
# It ends with the test.

use strict;
use warnings;

use Exporter 'import';
use File::Basename qw(dirname);
use HTTP::Tiny;
use IPC::Open2;
use JSON::PP;

our @EXPORT = qw(outside receiver);

my @running;

sub outside
{
	my @arguments = @_;
	return start(@arguments ? 'https' : 'http', 'outside.py', @arguments);
}

sub receiver
{
	my ($secret) = @_;
	return start('http', 'hooks.py', $secret);
}

sub start
{
	my ($scheme, $program, @arguments) = @_;
	my $self = bless {}, __PACKAGE__;

	$self->{pid} = open2($self->{out}, $self->{in}, 'python3', '-B', dirname(__FILE__) . "/$program", @arguments);
	chomp($self->{port} = readline($self->{out}) // die 'the server of outside calls did not start');
	$self->{url} = "$scheme://127.0.0.1:$self->{port}";
	push @running, $self;
	return $self;
}

# Requests that it has seen, with this path if one is given.
sub log
{
	my ($self, $path) = @_;
	my $log = decode_json(HTTP::Tiny->new->get("$self->{url}/log")->{content});
	return grep { !defined $path || $_->[1] eq $path } @$log;
}

sub stop
{
	my ($self) = @_;
	close $self->{in};
	kill 'KILL', $self->{pid};
	waitpid $self->{pid}, 0;
	@running = grep { $_ != $self } @running;
	return;
}

END
{
	my $status = $?;
	$_->stop foreach @running;
	$? = $status;
}

1;
