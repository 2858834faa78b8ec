# Every SQL block of the README works, in the order they stand there, in one
# session of a server as the README has it installed.

use strict;
use warnings;

use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;

my @blocks = slurp_file('README.md') =~ /^```sql\n(.*?)^```$/gms;
cmp_ok(scalar @blocks, '>=', 4, 'the README has SQL blocks');

my $cron = has_pg_cron();
@blocks = grep { !/orchestrator\.schedule\(/ } @blocks unless $cron;
my $node = $cron ? new_cron_node() : new_node();
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION pg_cron') if $cron;
my ($out, $err) = ('', '');
my $status = $node->psql('postgres', join("\n", @blocks), stdout => \$out, stderr => \$err,
	on_error_stop => 1);
is($status, 0, 'they run') or diag($err);
like($out, qr/^\{"sent": true\}$/m, 'the first screen gives what it says');
like($out, qr/\|created\|0\n.*\|started\|1\n.*\|completed\|1$/m, 'and its trace');
my ($one, $two) = $out =~ /^(\d+)\n(\d+)\n\{/m ? ($1, $2) : (0, 1);
is($one, $two, 'a key used again returns the same id');
$node->stop;
done_testing();
