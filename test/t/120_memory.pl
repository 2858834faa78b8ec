# Memory that workers keep: at most 1 MB for 100,000 tasks (RULES, G9); and
# that a batch's memory is kept for the next one, not faulted in again.

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

# A long chain of steps, again and again, in one executor.  Each step's document
# was once built in the batch's memory, which the kernel got back at its end:
# over 400 pages a chain, and the last steps took 1.4 times as long as the first.
# Few shared buffers, so that all have been touched when we begin to count.
my $node = new_node(name => 'chain', 'orchestrator.executors_per_role' => 1, shared_buffers => '2MB');
$node->start;
$node->create_extension;
$node->safe_psql('postgres', <<'SQL');
CREATE FUNCTION public.identity(input jsonb) RETURNS jsonb LANGUAGE plpgsql AS 'BEGIN RETURN input -> ''item''; END';
SELECT orchestrator.define('identity', 'public.identity');
SELECT orchestrator.define_workflow('chain', ARRAY(
  SELECT orchestrator.step('s' || i, definition => 'identity', needs => CASE WHEN i > 1 THEN ARRAY['s' || i - 1] ELSE '{}' END)
  FROM generate_series(1, 1000) i ORDER BY i)::orchestrator.step_spec[]);
CREATE PROCEDURE chains(n int) LANGUAGE plpgsql AS $$
DECLARE
  v_run    bigint;
  v_result orchestrator.task_result;
BEGIN
  FOR i IN 1 .. n LOOP
    v_run := orchestrator.enqueue('chain');
    COMMIT;
    CALL orchestrator.await(v_run, result => v_result);
  END LOOP;
END $$;
SQL
$node->safe_psql('postgres', 'CALL chains(20)');
my $before = minor_faults($node);
$node->safe_psql('postgres', 'CALL chains(20)');
my $faults = (minor_faults($node) - $before) / 20;
is($node->safe_psql('postgres', q{SELECT count(*) FROM orchestrator.task WHERE state = 'completed'}), 40 * 1001, 'the chains completed');
cmp_ok($faults, '<', 60, "pages faulted in by a chain of 1,000 steps: $faults");
$node->stop;
done_testing();

# Pages the executor had to be given so far (proc(5): field 10 of stat).
sub minor_faults
{
	my ($node) = @_;
	my $pid = $node->safe_psql('postgres', q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'orchestrator executor'});
	open(my $file, '<', "/proc/$pid/stat") or die "no such executor: $pid";
	my $stat = <$file>;
	close $file;
	$stat =~ s/^.*\) //;    # the name may hold blanks
	return (split / /, $stat)[7];
}
