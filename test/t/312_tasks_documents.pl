# The tasks of test/tasks, from their files to a zip: PDFs are taken apart by
# several remote workers, and each of their pages is indexed by the database.

use strict;
use warnings;

use Cwd qw(getcwd);
use File::Basename qw(basename);
use JSON::PP ();
use OrchestratorClient;
use OrchestratorStep;
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;

$PostgreSQL::Test::Utils::timeout_default = 120;

# Of the package xfig-doc: 24 pages, images on some.
my $pdf = '/usr/share/doc/xfig/xfig-howto.pdf';
plan skip_all => 'needs poppler-utils, python3 and xfig-doc'
  unless -r $pdf && !grep { system("command -v $_ >/dev/null") } qw(pdftotext pdfimages python3);

my $tasks = getcwd() . '/test/tasks';
my $out = PostgreSQL::Test::Utils::tempdir();
my $node = new_node(name => 'documents', timezone => 'UTC');
$node->start;
$node->create_extension;
$node->plain_role('app');
$node->safe_psql('postgres', q{CREATE SCHEMA docs AUTHORIZATION app; CREATE ROLE worker LOGIN; SELECT orchestrator.grant_usage('worker', 'worker')});
$node->psql_as('app', q{SELECT orchestrator.define_queue('documents'), orchestrator.share_queue('documents', 'worker', claim => true)});

my $cli = client($node, 'app');

is(($cli->run('tasks', 'check', '--tasks', $tasks))[0], 0, 'the files are right');
my $uploaded = $cli->json('tasks', 'upload', 'document', '--tasks', $tasks);
is(join(' ', map { $_->{task} } @$uploaded), 'pdf index_pages part document', 'a workflow brings what it uses');
is(join(' ', map { $_->{uploaded} } @{ $cli->json('tasks', 'upload', '--all', '--tasks', $tasks) }), '0 0 0 0', 'that is all there is');

append_to_file("$out/broken.pdf", 'not a PDF');
my $remote = client($node, 'worker');
my @workers = map { $remote->start('work', '--queue', 'documents', '--tasks', $tasks, '--concurrency', 2, '--name', "worker $_", '--verbose') } 1, 2;
my @runs = map {
	$cli->json('enqueue', 'document', '--input', JSON::PP->new->encode({ pdf => $_, out => "$out/" . basename($_, '.pdf') }))->{task}
} $pdf, "$out/broken.pdf";

my $watch = $cli->start('watch', $runs[0]);
is($watch->exit_code, 0, 'watch follows the run to its end');
like($watch->{out}, qr/parts/, 'and shows its steps') or diag($watch->{err});
my $end = outcome_of($node, 'app', $runs[0], timeout => 120);
is($end->{state}, 'completed', 'the document is done') or BAIL_OUT(explain($end->{error}) . join '', map { $_->{run}->pump_nb; $_->{err} } @workers);
is($end->{output}{zip}, "$out/xfig-howto.zip", 'its output is the zip');
cmp_ok(-s $end->{output}{zip}, '>', 100_000, 'which is there');
my ($listing) = run_command([ 'python3', '-m', 'zipfile', '-l', $end->{output}{zip} ]);
is(scalar(() = $listing =~ /^page-\d{4}\.txt /mg), 24, 'with the text of each page');
is(scalar(() = $listing =~ /^page-\d{4}\.jpg /mg), 24, 'a picture of each');
cmp_ok(scalar(() = $listing =~ /^page-\d{4}-\d+\.png /mg), '>=', 1, 'and the images in it');
is($node->psql_as('app', 'SELECT count(*), min(page), max(page) FROM docs.page'), '24|1|24', 'each page is indexed');
cmp_ok($node->psql_as('app', q{SELECT count(*) FROM docs.page WHERE words @@ to_tsquery('english', 'polygon')}), '>', 0, 'and found by its words');
my $broken = outcome_of($node, 'app', $runs[1], timeout => 60);
is($broken->{state}, 'failed', 'what is no PDF fails');
like($broken->{error}{message}, qr/pdf|exit/i, 'with a reason');

$_->signal('TERM') foreach @workers;
is($_->exit_code, 0, 'a worker leaves when it is told to') foreach @workers;
is(($cli->run('tasks', 'list', '--tasks', $tasks, '--sync'))[0], 0, 'in the end files and database agree');
$node->stop;
done_testing();
