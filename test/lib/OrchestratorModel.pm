package OrchestratorModel;

# The tests' model (test/model/model.py), and servers and clients from npm.
#
#   my $missing = missing_model();                  # what is not installed
#   my $url = start_model(key => 'k');              # with what it is to be asked for
#   my $folder = secret_folder('k');                # for orchestrator.secrets_directory
#   script_model($url, { content => 'yes' }, ...);  # its next answers
#   my @requests = received_by($url);               # path, headers and body of each
#   forget_received($url);
#   release_model($url);                            # streams that are held go on
#   my $folder = model_packages();                  # of npm's packages; undef: none
#
# All ends with the test.

use strict;
use warnings;

use Exporter 'import';
use HTTP::Tiny;
use JSON::PP;
use OrchestratorTest;
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

our @EXPORT = qw(missing_model start_model secret_folder start_server script_model received_by forget_received release_model model_packages ask);

my $sources = tree() . '/test/model';
my $number  = 0;
my @started;

sub missing_model
{
	return system('command -v python3 >/dev/null 2>&1') == 0 ? undef : 'python3';
}

sub start_model
{
	my %options = @_;
	my @command = ('python3', '-u', '-B', "$sources/model.py", map { ("--$_", $options{$_}) } sort keys %options);
	return start_server(qr/^listening on (\S+)$/m, @command);
}

# With that secret in a file called key.
sub secret_folder
{
	my ($secret) = @_;
	my $folder = PostgreSQL::Test::Utils::tempdir();
	append_to_file("$folder/key", $secret);
	chmod 0600, "$folder/key";
	return $folder;
}

# Start a program that says when it is ready: what the pattern catches of that.
sub start_server
{
	my ($pattern, @command) = @_;
	my $file = PostgreSQL::Test::Utils::tempdir() . '/server' . ++$number;
	my $pid = fork;
	die "fork: $!" unless defined $pid;
	if ($pid == 0)
	{
		open(STDOUT, '>', $file) && open(STDERR, '>&', \*STDOUT) && exec { $command[0] } @command;
		POSIX::_exit(127);
	}
	push @started, $pid;
	my $until = time + $PostgreSQL::Test::Utils::timeout_default;
	while (time < $until)
	{
		return $1 // $& if -e $file && slurp_file($file) =~ $pattern;
		usleep(10_000);
	}
	BAIL_OUT("$command[-1] did not start: " . slurp_file($file));
}

# One request; the answer as HTTP::Tiny gives it.
sub ask
{
	my ($url, $value, %options) = @_;
	my $timeout = delete $options{timeout} || 10;
	return HTTP::Tiny->new(timeout => $timeout, default_headers => { 'Content-Type' => 'application/json', %options })
	  ->post($url, { content => ref $value ? encode_json($value) : $value });
}

sub script_model
{
	my ($url, @answers) = @_;
	die 'the script was refused' unless ask("$url/_script", \@answers)->{success};
	return;
}

sub received_by
{
	my ($url) = @_;
	return @{ decode_json(HTTP::Tiny->new->get("$url/_log")->{content}) };
}

sub forget_received
{
	my ($url) = @_;
	HTTP::Tiny->new->delete("$url/_log");
	return;
}

sub release_model
{
	my ($url) = @_;
	die 'nothing was released' unless ask("$url/_release", {})->{success};
	return;
}

sub model_packages { return npm_packages($sources, 'model', 'clients.mjs', 'webhooks.mjs') }

# Also when the test dies.
END
{
	my $status = $?;
	foreach my $pid (@started)
	{
		kill 'KILL', $pid;
		waitpid $pid, 0;
	}
	$? = $status;
}

1;
