# Memory that workers keep: at most 1 MB for 100,000 tasks (RULES, G9).

use strict;
use warnings;
use lib 'test/chaos';

use Chaos;
use OrchestratorTest;
use Test::More;

my $result = Chaos::soak(200_000, \&note);

is($result->{replaced}, 0, 'no worker was replaced meanwhile');
is(join(' ', sort map { $_->{name} } @{ $result->{workers} }), 'executor launcher supervisor', 'all kinds were watched');
foreach my $worker (@{ $result->{workers} })
{
	cmp_ok($worker->{slope}, '<=', 1,
		sprintf '%s: %.1f MB, then %.1f MB: %+.2f MB for 100,000 tasks', @$worker{qw(name before after slope)});
}
note(sprintf '200,000 tasks in %.0f s', $result->{seconds});
done_testing();
