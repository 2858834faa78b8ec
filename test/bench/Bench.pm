package Bench;

# What the benchmark is made of: sessions that stay open, pgbench, statistics
# and the table.

use strict;
use warnings;

use Exporter 'import';
use IO::Handle;
use IPC::Open2;
use List::Util qw(min max);

our @EXPORT = qw(pgbench median percentile thousands spread machine fill_cache);

# Run pgbench, for a time or a number of transactions of each client, and
# return what it measured: tps, and the mean latency in ms.
sub pgbench
{
	my ($node, $script, %options) = @_;
	my @command = (
		'pgbench', '-n', '-M', 'prepared', '-h', $node->host, '-p', $node->port, '-U', 'app',
		'-c', $options{clients}, '-j', min($options{clients}, 2),
		$options{seconds} ? ('-T', $options{seconds}) : ('-t', $options{transactions}),
		'-f', $script, $options{database});
	my $pid = open(my $out, '-|', join(' ', @command) . ' 2>&1') or die "pgbench: $!";
	my $said = join('', <$out>);
	close $out;
	die "pgbench: $said" if $? != 0;
	my ($tps) = $said =~ /^tps = ([\d.]+)/m;
	my ($latency) = $said =~ /^latency average = ([\d.]+) ms/m;
	die "pgbench: $said" unless $tps && $latency;
	return ($tps, $latency);
}

sub percentile
{
	my ($part, @values) = @_;
	@values = sort { $a <=> $b } @values;
	my $place = $part * @values;
	$place = int($place) + ($place > int($place) ? 1 : 0);
	return $values[ max($place, 1) - 1 ];
}

sub median
{
	my @values = sort { $a <=> $b } @_;
	my $middle = int(@values / 2);
	return @values % 2 ? $values[$middle] : ($values[ $middle - 1 ] + $values[$middle]) / 2;
}

sub thousands
{
	my $number = sprintf('%.0f', shift);
	1 while $number =~ s/^(\d+)(\d{3})/$1,$2/;
	return $number;
}

# Median and, of more than one, the range.
sub spread
{
	my ($format, @values) = @_;
	my $show = ref $format ? $format : sub { sprintf($format, shift) };
	return $show->(median(@values)) if @values < 2;
	return $show->(median(@values)) . ' (' . $show->(min(@values)) . '–' . $show->(max(@values)) . ')';
}

sub slurp
{
	open(my $in, '<', shift) or return '';
	local $/;
	my $text = <$in>;
	return $text;
}

sub machine
{
	my $cpu = slurp('/proc/cpuinfo');
	my ($model) = $cpu =~ /^model name\s*:\s*(.*)$/m;
	my $cores = () = $cpu =~ /^processor\s*:/mg;
	my ($memory) = slurp('/proc/meminfo') =~ /^MemTotal:\s*(\d+)/m;
	my $release = slurp('/proc/sys/kernel/osrelease');
	chomp $release;
	return sprintf('%s, %d cores, %.0f GB, Linux %s',
		$model || 'unknown CPU', $cores, ($memory || 0) / 1024 / 1024, $release);
}

# Fill the system's file cache, all but one GB of what is free, with a file that
# has no blocks on disk; returns its name.  A virtual machine gets memory from
# its host at the first touch, ten times slower than it can be written, and may
# give back what is free: a server that has run for a while is past that.
sub fill_cache
{
	my ($folder) = @_;
	my ($free) = slurp('/proc/meminfo') =~ /^MemFree:\s*(\d+)/m;
	my $name = "$folder/cache";
	open(my $file, '+>', $name) or die "$name: $!";
	truncate($file, max(0, ($free || 0) * 1024 - 2**30)) or die "$name: $!";
	1 while sysread($file, my $piece, 2**20);
	close $file;
	return $name;
}

# Of the last minute: other work on the machine shows here.
sub load { return (split / /, slurp('/proc/loadavg'))[0]; }

package Bench::Session;

# A psql that stays open: a statement costs a round trip, not a process.

use strict;
use warnings;

use IO::Handle;
use IPC::Open2;

my $number = 0;

sub new
{
	my ($class, $node, $role, $database) = @_;
	my $self = bless { number => 0 }, $class;
	my $command = sprintf("exec psql -X -q -A -t -F '\t' -h '%s' -p %d -U '%s' -d '%s' 2>&1",
		$node->host, $node->port, $role, $database);
	$self->{pid} = open2($self->{out}, $self->{in}, 'sh', '-c', $command);
	$self->query('SELECT 1');
	return $self;
}

# Send statements without waiting for the answer; finish() waits.
sub send
{
	my ($self, $sql) = @_;
	$self->{number}++;
	$self->{in}->print("$sql\n;\n\\echo end of $self->{number}\n");
	$self->{in}->flush;
	return;
}

# Returns the rows, each as an array; dies of an error.
sub finish
{
	my ($self) = @_;
	my @rows;
	while (defined(my $line = readline $self->{out}))
	{
		chomp $line;
		return @rows if $line eq "end of $self->{number}";
		push @{ $self->{notices} }, $line if $line =~ /^(NOTICE|WARNING):/;
		next if $line =~ /^(NOTICE|WARNING):|^Asynchronous notification/;
		die "psql: $line" if $line =~ /^(psql:.*)?(ERROR|FATAL|PANIC):/;
		push @rows, [ split(/\t/, $line, -1) ] if $line ne '';
	}
	die "psql: the connection is gone";
}

sub query
{
	my ($self, $sql) = @_;
	$self->send($sql);
	return $self->finish;
}

# The first column of the first row.
sub value
{
	my ($self, $sql) = @_;
	my ($row) = $self->query($sql);
	return $row->[0];
}

# Poll until the query answers $expected.
sub poll
{
	my ($self, $sql, $expected, $seconds) = @_;
	for (my $turn = 0; $turn < 50 * ($seconds || 120); $turn++)
	{
		my $answer = $self->value($sql);
		return if defined $answer && $answer eq $expected;
		select(undef, undef, undef, 0.02);
	}
	die "waited in vain for $expected: $sql";
}

# The server's clock, in seconds.
sub clock { return $_[0]->value('SELECT extract(epoch FROM clock_timestamp())'); }

sub close
{
	my ($self) = @_;
	return unless $self->{pid};
	CORE::close $self->{in};
	# Do not let a full pipe keep it.
	1 while defined readline $self->{out};
	CORE::close $self->{out};
	waitpid $self->{pid}, 0;
	delete $self->{pid};
	return;
}

1;
