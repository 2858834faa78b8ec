package OrchestratorClient;

# The command-line client in tests.
#
#   my $cli = client($node, 'app');                   # connects as that role
#   my ($code, $out, $err) = $cli->run('list', '--state', 'failed');
#   my ($out, $err) = $cli->exits(4, 'watch', 7);     # a test of the exit code
#   my $rows = $cli->json('queues');                  # dies unless it exits with 0
#
#   my $t = $cli->terminal(100, 30, 'watch', 7);      # on a terminal of that size
#   $t->until(qr/completed/);                         # a test: seen within the timeout
#   $t->type("q");
#   is($t->exit_code, 0);
#   my $screen = $t->screen;                          # what stands on it, as lines

use strict;
use warnings;

use Encode ();
use File::Path qw(make_path);
use IPC::Run ();
use JSON::PP ();
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

use Exporter 'import';
our @EXPORT = qw(client client_program client_files put_file);

my $json = JSON::PP->new->utf8->allow_nonref->canonical;

# What make install put below tmp_install for the tests, or in place.
sub client_files
{
	my ($option, @more) = @_;
	my ($folder) = run_command([ $ENV{PG_CONFIG} || 'pg_config', $option ]);
	my $private = tree() . "/tmp_install$folder";
	return join '/', (-d $private ? $private : $folder), @more;
}

# Write a file, and the folders it is in; what is a reference is made JSON.
sub put_file
{
	my ($path, $content) = @_;
	make_path($path =~ m{^(.*)/});
	$content = $json->encode($content) if ref $content;
	utf8::encode($content) if utf8::is_utf8($content);
	open my $handle, '>:raw', $path or die "$path: $!";
	print $handle $content;
	close $handle;
	return;
}

sub client_program { return client_files('--bindir', 'orchestrator') }

sub client
{
	my ($node, $role, $database) = @_;
	return bless {
		program => client_program(),
		options => [ '-h', $node->host, '-p', $node->port, '-U', $role || 'app', '-d', $database || 'postgres', '-w' ]
	}, __PACKAGE__;
}

# The command with the options of the connection; what options come first stand
# before the command, too.
sub command
{
	my ($self, @arguments) = @_;
	return ($self->{program}, @{ $self->{options} }, @arguments);
}

# (exit code, output, errors) as bytes.  A last argument that is a reference is
# the input, or options: { input => text, env => {} }.
sub run
{
	my ($self, @arguments) = @_;
	my %options = ref $arguments[-1] ? %{ pop @arguments } : ();
	my ($out, $err) = ('', '');
	my $input = defined $options{input} ? $options{input} : '';
	local @ENV{ keys %{ $options{env} || {} } } = values %{ $options{env} || {} };
	IPC::Run::run([ $self->command(@arguments) ],
		'<', \$input, '>', \$out, '2>', \$err, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	return ($? & 127 ? -($? & 127) : $? >> 8, $out, $err);
}

# The same, with its exit code tested; returns output and errors.
sub exits
{
	my ($self, $expected, @arguments) = @_;
	my ($code, $out, $err) = $self->run(@arguments);
	is($code, $expected, 'exit code of ' . join ' ', map { ref $_ ? () : $_ } @arguments) or diag($out, $err);
	return ($out, $err);
}

# The JSON that a command writes; fails loudly.
sub json
{
	my ($self, @arguments) = @_;
	my ($code, $out, $err) = $self->run('--json', @arguments);
	BAIL_OUT("orchestrator @arguments: exit code $code: $err") if $code;
	return decode_json_text($out);
}

sub decode_json_text { return $json->decode($_[0]) }

# Start it in the background: { run, out, err }, both growing while it is pumped.
sub start
{
	my ($self, @arguments) = @_;
	my $job = bless { out => '', err => '' }, 'OrchestratorClient::Job';
	$job->{run} = IPC::Run::start([ $self->command(@arguments) ], '<', \undef, '>', \$job->{out}, '2>', \$job->{err});
	return $job;
}

sub terminal
{
	my ($self, $columns, $rows, @arguments) = @_;
	return OrchestratorClient::Terminal->new($columns, $rows, $self->command(@arguments));
}

package OrchestratorClient::Job;

use Test::More;
use Time::HiRes qw(time usleep);

# Wait until the output matches: a test.
sub until
{
	my ($self, $pattern, $name) = @_;
	my $end = time + $PostgreSQL::Test::Utils::timeout_default;
	while (time < $end && $self->{out} !~ $pattern && $self->{run}->pumpable)
	{
		$self->{run}->pump_nb;
		usleep(10_000);
	}
	return like($self->{out}, $pattern, $name || "output has $pattern") || diag($self->{err});
}

sub pid { return $_[0]->{run}{KIDS}[0]{PID} }

sub exit_code
{
	my ($self) = @_;
	$self->{run}->finish;
	my $status = $self->{run}->full_result;
	return $status & 127 ? -($status & 127) : $status >> 8;
}

sub signal { $_[0]->{run}->signal($_[1]); return }

package OrchestratorClient::Terminal;

use Encode ();
use IO::Pty;
use IO::Select;
use POSIX ();
use Test::More;
use Time::HiRes qw(time);

sub new
{
	my ($class, $columns, $rows, @command) = @_;
	my $pty = IO::Pty->new;
	my $pid = fork;
	die "fork: $!" unless defined $pid;
	if ($pid == 0)
	{
		$pty->make_slave_controlling_terminal;
		my $slave = $pty->slave;
		$slave->set_winsize($rows, $columns);
		close $pty;
		POSIX::dup2(fileno $slave, $_) foreach 0 .. 2;
		@ENV{ 'TERM', 'LC_ALL' } = ('xterm', 'C.UTF-8');
		exec @command or POSIX::_exit(127);
	}
	$pty->close_slave;
	return bless { pty => $pty, pid => $pid, out => '', columns => $columns, rows => $rows }, $class;
}

# Read what is there, waiting up to so many seconds; false at the end.
sub read
{
	my ($self, $seconds) = @_;
	return 1 unless IO::Select->new($self->{pty})->can_read($seconds);
	my $count = sysread $self->{pty}, my $bytes, 65536;
	return 0 unless $count;
	$self->{out} .= $bytes;
	return 1;
}

sub until
{
	my ($self, $pattern, $name) = @_;
	my $end = time + $PostgreSQL::Test::Utils::timeout_default;
	while (time < $end && $self->text !~ $pattern)
	{
		last unless $self->read(0.2);
	}
	return like($self->text, $pattern, $name || "terminal shows $pattern");
}

# Everything it wrote, as characters.
sub text { return Encode::decode('UTF-8', $_[0]->{out}) }

sub type { syswrite $_[0]->{pty}, $_[1]; return }

# Forget what was written so far, so that until() waits for what comes.
sub forget { $_[0]->{out} = ''; return }

sub resize
{
	my ($self, $columns, $rows) = @_;
	$self->{pty}->set_winsize($rows, $columns);
	return;
}

sub exit_code
{
	my ($self) = @_;
	my $end = time + $PostgreSQL::Test::Utils::timeout_default;
	1 while time < $end && $self->read(0.2);
	waitpid $self->{pid}, 0;
	return $? & 127 ? -($? & 127) : $? >> 8;
}

# What stands on the screen: the few sequences that the client writes.
sub screen
{
	my ($self) = @_;
	my @lines = ('');
	my ($row, $column) = (0, 0);
	my $text = $self->text;
	while ($text =~ /\G(?:\e\[([?\d;]*)([A-Za-z])|(.))/gs)
	{
		my ($number, $letter, $char) = ($1, $2, $3);
		if (defined $char)
		{
			if ($char eq "\n") { $row++ }
			elsif ($char eq "\r") { $column = 0 }
			else
			{
				$lines[$row] = '' unless defined $lines[$row];
				$lines[$row] .= ' ' x ($column - length $lines[$row]) if length $lines[$row] < $column;
				substr($lines[$row], $column++, 1) = $char;
			}
		}
		elsif ($letter eq 'A') { $row = $row > ($number || 1) ? $row - ($number || 1) : 0 }
		elsif ($letter eq 'H') { ($row, $column) = (0, 0) }
		elsif ($letter eq 'K') { substr($lines[$row], $column) = '' if defined $lines[$row] && length $lines[$row] > $column }
		elsif ($letter eq 'J') { $#lines = $row if $number eq '' && $#lines > $row; @lines = ('') if $number eq '2' }
		elsif ($letter eq 'h' && $number eq '?1049') { @lines = (''); ($row, $column) = (0, 0) }
	}
	return map { defined $_ ? $_ : '' } @lines;
}

1;
