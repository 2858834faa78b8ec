package Fault;

# Processes of a test server: finding, hurting and awaiting them.
#
#   use lib 'test/chaos';
#   use Fault;
#
#   my ($pid) = workers($node, 'executor');
#   my $offset = log_end($node);
#   kill_hard($pid);
#   await_ready($node, $offset);                  # the server took it up again
#   ok(defined within(5, sub { workers($node, 'supervisor') }), '...');
#
# Processes are found in /proc, below the postmaster of the node: this works
# while the server accepts no connections, and finds no stranger's process.

use strict;
use warnings;

use Exporter 'import';
use Fcntl qw(SEEK_SET);
use POSIX qw(floor);
use PostgreSQL::Test::Utils;
use Time::HiRes qw(time usleep);
use Time::Local qw(timegm);

our @EXPORT = qw(within postmaster workers children title alive gone kill_hard log_end log_since
  await_ready start_again stop_timed forget_crashes disk value handlers);

# Poll until the code answers something true: the seconds that took, or undef
# when it never did.
sub within
{
	my ($limit, $code) = @_;
	my $began = time;

	for (;;)
	{
		my $late = time - $began > $limit;
		return time - $began if $code->();
		return if $late;
		usleep(10_000);
	}
}

# ---------------------------------------------------------------- processes

sub postmaster
{
	my ($node) = @_;
	my $file = $node->data_dir . '/postmaster.pid';
	return unless -s $file;
	my ($pid) = slurp_file($file) =~ /^(\d+)/;
	return $pid;
}

sub children
{
	my ($parent) = @_;
	my @found;

	return unless $parent;
	foreach my $file (glob '/proc/[0-9]*/stat')
	{
		open my $stat, '<', $file or next;
		my $line = <$stat> // '';
		my ($pid, $state, $ppid) = $line =~ /^(\d+) \(.*\) (\S) (\d+)/ or next;
		push @found, $pid if $ppid == $parent && $state ne 'Z';
	}
	return @found;
}

sub title
{
	my ($pid) = @_;
	open my $file, '<', "/proc/$pid/cmdline" or return '';
	my $title = <$file> // '';
	$title =~ tr/\0/ /;
	return $title;
}

# Process ids of the orchestrator's workers of a kind, or of all kinds.
sub workers
{
	my ($node, $kind) = @_;
	$kind ||= 'launcher|supervisor|executor';
	return grep { title($_) =~ /orchestrator (?:$kind)\b/ } children(postmaster($node));
}

sub alive
{
	my ($pid) = @_;
	open my $stat, '<', "/proc/$pid/stat" or return 0;
	my $line = <$stat> // '';
	return $line =~ /^\d+ \(.*\) [^ZX]/ ? 1 : 0;
}

sub gone { return !grep { alive($_) } @_ }

sub kill_hard
{
	my @pids = @_;
	return kill 'KILL', @pids;
}

# ---------------------------------------------------------------- server

sub log_end
{
	my ($node) = @_;
	return -s $node->logfile || 0;
}

sub log_since
{
	my ($node, $offset) = @_;
	open my $file, '<', $node->logfile or return '';
	seek $file, $offset, SEEK_SET;
	local $/ = undef;
	return <$file> // '';
}

# Wait until the server says in its log that it accepts connections: the time
# it said so.
sub await_ready
{
	my ($node, $offset, $limit) = @_;
	my $ready;

	within($limit || 60,
		sub {
			log_since($node, $offset) =~
			  /^(\d+)-(\d+)-(\d+) (\d+):(\d+):(\d+\.\d+) UTC .*database system is ready to accept connections/m
			  or return 0;
			$ready = timegm(floor($6), $5, $4, $3, $2 - 1, $1) + $6 - floor($6);
			return 1;
		}) // die "the server did not come back";
	return $ready;
}

# After a postmaster died: wait until its children left shared memory, start
# another one.
sub start_again
{
	my ($node, @children) = @_;
	my $left = within(30, sub { gone(@children) });

	die 'children of a dead postmaster stay: ' . join ', ', map { title($_) } grep { alive($_) } @children
	  unless defined $left;
	$node->{_pid} = undef;

	# Where nobody reaps it, a dead postmaster still seems to hold its locks.
	unlink $node->data_dir . '/postmaster.pid', $node->host . '/.s.PGSQL.' . $node->port . '.lock';
	$node->start;
	return $left;
}

# Stop the server in a mode: the seconds that took.
sub stop_timed
{
	my ($node, $mode) = @_;
	my $began = time;

	$node->stop($mode);
	return time - $began;
}

# Let the breaker (RULES F03) believe that a healthy minute has passed: it would
# keep executors away for longer and longer where every second brings a crash.
# The times of crashes are in the header of the note file (src/note.c).
sub forget_crashes
{
	my ($node) = @_;
	my $path = $node->data_dir . '/orchestrator.notes';

	open my $file, '+<:raw', $path or return;
	sysread $file, my $magic, 8;
	die "$path is not the note file that this test knows" unless $magic eq 'etonhcro';
	foreach my $field ([ 12, 4 ], [ 64, 8 * 16 + 8 + 8 ])
	{
		sysseek $file, $field->[0], SEEK_SET;
		syswrite $file, "\0" x $field->[1];
	}
	close $file;
	return;
}

# The folder that rules a disk (disk.c), and the library to be preloaded into a
# server that has it.
sub disk
{
	my $control = PostgreSQL::Test::Utils::tempdir();
	system_or_bail($ENV{CC} || 'cc', '-shared', '-fPIC', '-Wall', '-Werror', "-DCONTROL=\"$control\"", '-o', "$control/disk.so", 'test/lib/disk.c', '-ldl');
	return ($control, "$control/disk.so");
}

# ---------------------------------------------------------------- SQL

# One value, or undef while the server does not answer.
sub value
{
	my ($node, $sql, $role) = @_;
	my ($status, $out) = eval { $node->psql('postgres', $sql, extra_params => $role ? [ '-U', $role ] : []) };
	return defined $status && $status == 0 ? $out : undef;
}

# What the steps of the fault tests do.  A step crashes its own process without
# a line of C: the shell of COPY TO PROGRAM knows its parent.
sub handlers
{
	my ($node) = @_;
	$node->safe_psql('postgres', <<'SQL');
CREATE SCHEMA chaos;
CREATE TABLE chaos.gate (name text PRIMARY KEY, closed boolean NOT NULL);
CREATE TABLE chaos.ledger (task_id bigint, attempt int, token text, pid int, at timestamptz);
GRANT USAGE ON SCHEMA chaos TO PUBLIC;
GRANT SELECT ON chaos.gate TO PUBLIC;
GRANT SELECT, INSERT ON chaos.ledger TO PUBLIC;

CREATE FUNCTION chaos.noop(input jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;

CREATE FUNCTION chaos.note(input jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO chaos.ledger
    SELECT t.task_id, t.attempt, input ->> 'token', pg_backend_pid(), clock_timestamp() FROM orchestrator.current_task() t;
END
$$;

-- Runs for as long as its gate is closed; a gate that is missing is open.
CREATE FUNCTION chaos.pass(input jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  WHILE (SELECT closed FROM chaos.gate WHERE name = input ->> 'gate') LOOP
    PERFORM pg_sleep(0.01);
  END LOOP;
  PERFORM chaos.note(input);
END
$$;

CREATE FUNCTION chaos.crash(input jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  COPY (SELECT 1) TO PROGRAM 'kill -SEGV $PPID';
  PERFORM pg_sleep(60);
END
$$;

-- The same, but not before commit.
CREATE TABLE chaos.bait (x int);
GRANT INSERT ON chaos.bait TO PUBLIC;
CREATE FUNCTION chaos.spring() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM chaos.crash(NULL);
  RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER spring AFTER INSERT ON chaos.bait DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION chaos.spring();
CREATE FUNCTION chaos.crash_at_commit(input jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO chaos.bait VALUES (1);
END
$$;
SQL
	return;
}

1;
