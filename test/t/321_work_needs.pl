# What programs of the worker need: an environment that is made once, by whoever
# comes first, and again when that changes.

use strict;
use warnings;

use JSON::PP ();
use OrchestratorClient;
use OrchestratorStep;
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;

$PostgreSQL::Test::Utils::timeout_default = 120;

my $node = new_node(name => 'needs');
$node->start;
$node->create_extension;
$node->plain_role('app');
$node->safe_psql('postgres', q{SELECT orchestrator.grant_usage('app', 'worker')});
$node->psql_as('app', q{SELECT orchestrator.define_queue('q')});

my $cli = client($node, 'app');
my $tasks = PostgreSQL::Test::Utils::tempdir();
my $cache = PostgreSQL::Test::Utils::tempdir();
# Not the registries of whoever runs this.
delete @ENV{ grep { /^(?:PIP|npm_config|NPM_CONFIG)_/ } keys %ENV };
@ENV{ 'PIP_NO_INDEX', 'PIP_CONFIG_FILE', 'npm_config_offline' } = (1, '/dev/null', 'true');

sub write_file
{
	my ($path, $text) = @_;
	(my $folder = $path) =~ s{/[^/]*$}{};
	system('mkdir', '-p', $folder);
	open my $file, '>', $path or die "$path: $!";
	print $file $text;
	close $file;
	chmod 0755, $path if $text =~ /^#!/;
	return;
}

sub define
{
	my ($name, $options) = @_;
	write_file("$tasks/$name/task.json", qq({"name": "$name"}\n));
	return $node->psql_as('app', sprintf q{SELECT orchestrator.define('%s', NULL, 'remote', queue => 'q', %s)}, $name, $options || 'max_attempts => 1');
}

sub enqueue { return $node->psql_as('app', "SELECT orchestrator.enqueue('$_[0]')") }

sub work
{
	my ($code, $out, $err) = $cli->run('work', '-q', 'q', '-t', $tasks, '--cache', $cache, '--until-empty', '-v', @_);
	is($code, 0, 'the worker leaves') or diag($out, $err);
	return $out;
}

sub result { return outcome_of($node, 'app', $_[0], timeout => 60) }

sub has { return system("command -v $_[0] >/dev/null 2>&1") == 0 }

subtest 'python' => sub {
	plan skip_all => 'no python3 with venv and pip' if system('python3 -c "import venv, ensurepip" 2>/dev/null') != 0;
	define('py');
	write_file("$tasks/py/py.py", <<'PY');
#!/usr/bin/env python3
import json, sys
try:
    import thing
    thing = thing.what
except ImportError:
    thing = None
json.dump({"thing": thing, "own": sys.prefix != sys.base_prefix, "input": json.load(sys.stdin)}, sys.stdout)
PY
	write_file("$tasks/py/requirements.txt", "# nothing\n");
	my @ids = map { enqueue('py') } 1 .. 3;
	my $said = work('-c', 3);
	is_deeply(result($_)->{output}, { thing => undef, own => JSON::PP::true(), input => {} }, 'it runs in an environment of its own') foreach @ids;
	is((() = $said =~ /: preparing$/mg), 1, 'which three that come together make once');
	enqueue('py');
	unlike(work(), qr/: preparing$/m, 'and the next worker finds');

	# a package beside the program, and another environment for it
	write_file("$tasks/py/make.py", wheel_maker());
	is(system("cd $tasks/py && python3 make.py"), 0, 'a wheel is made');
	write_file("$tasks/py/requirements.txt", "./thing-1-py3-none-any.whl\n");
	my $id = enqueue('py');
	like(work(), qr/: preparing$/m, 'other requirements make another');
	is(result($id)->{output}{thing}, 'of the package', 'with what they ask for');

	write_file("$tasks/py/requirements.txt", "no-such-package-anywhere==1.0\n");
	$id = enqueue('py');
	work();
	my $error = result($id)->{error};
	is($error->{message}, 'what the program needs could not be installed', 'what cannot be installed fails the task');
	like($error->{detail}, qr/no-such-package-anywhere/, 'with what pip said');
};

# A wheel is a zip file with little in it: no need to build one.
sub wheel_maker
{
	return <<'PY';
import zipfile
with zipfile.ZipFile("thing-1-py3-none-any.whl", "w") as z:
    z.writestr("thing.py", "what = 'of the package'\n")
    z.writestr("thing-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1\n")
    z.writestr("thing-1.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    z.writestr("thing-1.dist-info/RECORD", "thing.py,,\nthing-1.dist-info/METADATA,,\nthing-1.dist-info/WHEEL,,\nthing-1.dist-info/RECORD,,\n")
PY
}

subtest 'node' => sub {
	plan skip_all => 'no node with npm' unless has('node') && has('npm');
	define('js');
	write_file("$tasks/js/js.js", "#!/usr/bin/env node\nprocess.stdout.write(JSON.stringify(require('thing')))\n");
	write_file("$tasks/js/thing/package.json", '{"name": "thing", "version": "1.0.0", "main": "thing.js"}');
	write_file("$tasks/js/thing/thing.js", "module.exports = 'of the package'\n");
	write_file("$tasks/js/package.json", '{"private": true, "dependencies": {"thing": "file:./thing"}}');
	my $id = enqueue('js');
	work();
	is(result($id)->{output}, 'of the package', 'a program finds what package.json names') or diag(explain result($id));
	write_file("$tasks/js/package.json", '{"private": true, "dependencies": {"no-such-package-anywhere": "1.0.0"}}');
	$id = enqueue('js');
	work();
	like(result($id)->{error}{detail}, qr/no-such-package-anywhere/, 'what cannot be installed fails the task');
};

# Installing takes as long as it takes: the task may be too late, but what was
# begun is made to its end, and the next attempt finds it.
subtest 'time-out of the task' => sub {
	define('patient', q{timeout => '0.5 s', retry_delay => '0.1 s', max_attempts => 5});
	write_file("$tasks/patient/patient.sh", "#!/bin/sh\nexec cat\n");
	write_file("$tasks/patient/requirements.txt", "# nothing\n");
	write_file("$tasks/fake/python3", <<"SH");
#!/bin/sh
echo made >>'$tasks/made'
mkdir -p "\$3/bin"
printf '#!/bin/sh\nwhile [ ! -e "$tasks/go" ]; do sleep 0.02; done\n' >"\$3/bin/python"
chmod +x "\$3/bin/python"
SH
	local $ENV{PATH} = "$tasks/fake:$ENV{PATH}";
	my $worker = $cli->start('work', '-q', 'q', '-t', $tasks, '--cache', $cache, '--heartbeat', '0.1');
	my $id = enqueue('patient');
	$node->wait_for("SELECT count(*) > 0 FROM orchestrator.trace WHERE task_id = $id AND event = 'retrying'", 't', 'the first attempt is too late');
	write_file("$tasks/go", '');
	is(result($id)->{state}, 'completed', 'a later one completes');
	is(slurp_file("$tasks/made"), "made\n", 'with what the first one began');
	$worker->signal('TERM');
	is($worker->exit_code, 0, 'the worker ends');

	$id = enqueue('patient');
	IPC::Run::run([ 'sh', '-c', 'cd "$0" && exec "$@"', $cache, $cli->command('work', '-q', 'q', '-t', $tasks, '--cache', 'here', '--until-empty') ], IPC::Run::timeout(60));
	is(result($id)->{state}, 'completed', 'a cache that is named from where the worker is');
	ok(scalar(glob "$cache/here/patient-*/ready"), 'is there');
};

$node->stop('fast');
done_testing();
