# test/chaos, as often as a test run has time for.

use strict;
use warnings;
use lib 'test/chaos';

use Chaos;
use OrchestratorTest;
use Test::More;

my $seed = $ENV{SEED} || int rand 1_000_000;
note("seed $seed");
my $result = Chaos::run(tasks => 2_000, kills => 20, seed => $seed, tell => \&note);

note("kills $result->{kills}, faults $result->{events}, transactions: $result->{journal}");
note("tasks: $result->{tasks}; effects: $result->{effects}; drained after $result->{drained} s");
note("outside calls: $result->{outside}");
cmp_ok($result->{kills}, '>=', 20, "$result->{kills} kills");
cmp_ok($result->{count}, '>=', 2_000, "$result->{count} tasks");
isnt($result->{drained}, 'never', "every task was finished (seed $seed)");
is(scalar @{ $result->{violations} }, 0, "nothing lost, nothing double (seed $seed)")
  or diag(join "\n", "seed $seed", @{ $result->{violations} });
done_testing();
