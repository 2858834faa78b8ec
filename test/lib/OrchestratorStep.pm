package OrchestratorStep;

# For tests that run steps with real executors and keep sessions open.
#
#   my $r = outcome($node, 'app', q{orchestrator.run('SELECT 1')});
#   is($r->{state}, 'completed');        # also: id, output, error (decoded)
#
#   like(refused($node, 'app', 'SELECT ...'), qr/permission denied/);
#
#   my $s = session($node, 'app');       # a psql that stays
#   is($s->query('SELECT 1'), '1');      # waits for the answer
#   $s->send('SELECT pg_sleep(10)');     # does not
#   is($s->answer, '');                  # what send() gave, in the end
#   $s->quit;
#
#   measure_ok(5, 'DROP DATABASE', sub { ... });   # must take no longer

use strict;
use warnings;

use Exporter 'import';
use IPC::Run ();
use JSON::PP ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

our @EXPORT = qw(outcome outcome_of ends_of refused session measure_ok sqlstate_of json);

my $json = JSON::PP->new->allow_nonref->canonical;

sub json { return $_[0] eq '' ? undef : $json->decode($_[0]) }

# Start what the expression enqueues, as the role, and wait for its end.  Options:
# database, timeout (seconds).
sub outcome
{
	my ($node, $role, $expression, %options) = @_;
	my $id = $node->psql_as($role, "SELECT $expression", database => $options{database});
	return outcome_of($node, $role, $id, %options);
}

sub outcome_of
{
	my ($node, $role, $id, %options) = @_;
	my $timeout = $options{timeout} || 20;
	my ($status, $out, $err) = $node->psql($options{database} || 'postgres',
		"SELECT state, coalesce(output::text, ''), coalesce(error::text, '') FROM orchestrator.wait($id, '$timeout s')",
		extra_params => [ '-U', $role, '-R', "\x1e", '-F', "\x1f" ]);
	BAIL_OUT("no outcome of task $id: $err") if $status && !$options{may_fail};
	return { id => $id, state => 'unknown', stderr => $err } if $status;
	my ($state, $output, $error) = split /\x1f/, $out, -1;
	return { id => $id, state => $state, output => json($output), error => json($error) };
}

# How tasks ended: states, attempts, codes of errors; equal ones counted.
sub ends_of
{
	my ($node, @ids) = @_;
	my $ids = join ',', @ids;
	return $node->safe_psql('postgres',
		qq{SELECT string_agg(format('%s x%s', what, n), ', ' ORDER BY what) FROM (
		SELECT concat_ws(' ', state, attempt, error ->> 'sqlstate') AS what, count(*) AS n FROM orchestrator.task WHERE id IN ($ids) GROUP BY 1) x});
}

sub sqlstate_of { return $_[0]->{error} ? $_[0]->{error}{sqlstate} : undef }

# What the server answers to a command that must fail; empty if it did not.
sub refused
{
	my ($node, $role, $sql, %options) = @_;
	my ($status, $out, $err) = $node->psql($options{database} || 'postgres', $sql, extra_params => [ '-U', $role ]);
	return $status == 0 ? '' : $err;
}

sub measure_ok
{
	my ($limit, $name, $code) = @_;
	my $start = time;
	$code->();
	my $took = time - $start;
	ok($took <= $limit, "$name within $limit s") or diag("it took $took s");
	return $took;
}

sub session
{
	my ($node, $role, $database) = @_;
	my $self = bless { in => '', out => '', err => '', n => 0 }, 'OrchestratorStep::Session';
	$self->{timer} = IPC::Run::timer($PostgreSQL::Test::Utils::timeout_default);
	$self->{run} = IPC::Run::start(
		[
			'psql', '-XAtq', '-d', $node->connstr($database || 'postgres'), '-U', $role || 'postgres',
			'-v', 'ON_ERROR_STOP=0', '-f', '-'
		],
		'<', \$self->{in}, '>', \$self->{out}, '2>', \$self->{err}, $self->{timer});
	return $self;
}

package OrchestratorStep::Session;

sub send
{
	my ($self, $sql) = @_;
	$self->{n}++;
	$self->{out} = $self->{err} = '';
	$self->{in} .= "$sql;\n\\echo done-$self->{n}\n\\warn done-$self->{n}\n";
	$self->{run}->pump_nb;
	return;
}

# Both streams must have come to their mark.
sub answer
{
	my ($self) = @_;
	my $mark = "done-$self->{n}\n";
	$self->{timer}->start($PostgreSQL::Test::Utils::timeout_default);
	$self->{run}->pump until $self->{out} =~ /^\Q$mark\E/m && $self->{err} =~ /^\Q$mark\E/m;
	(my $out = $self->{out}) =~ s/\Q$mark\E$//;
	$self->{err} =~ s/\Q$mark\E$//;
	chomp $out;
	return $out;
}

sub query
{
	my ($self, $sql) = @_;
	$self->send($sql);
	return $self->answer;
}

sub errors { return $_[0]->{err} }

sub quit
{
	my ($self) = @_;
	$self->{in} .= "\\q\n";
	$self->{run}->finish;
	return;
}

sub kill { $_[0]->{run}->kill_kill; return }

1;
