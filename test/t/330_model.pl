# The tests' model by itself: the official clients understand it, it refuses what
# the services refuse, and its faults are what they say.  What stands on it is
# only as true as this.

use strict;
use warnings;

use Compress::Zlib;
use JSON::PP;
use OrchestratorModel;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $missing = missing_model();
plan skip_all => "$missing is not installed" if $missing;

my $url = start_model(key => 'sesame');
my $chat = { model => 'm', messages => [ { role => 'user', content => 'hello there' } ] };

sub chat
{
	my %options = @_;
	return ask("$url/v1/chat/completions", $chat, Authorization => 'Bearer sesame', %options);
}

subtest 'official clients' => sub {
	my $folder = model_packages();
	plan skip_all => 'npm can fetch no packages' unless $folder;
	my ($stdout, $stderr) = run_command([ 'node', "$folder/clients.mjs", $url, 'sesame' ]);
	foreach my $line (split /\n/, $stdout)
	{
		ok($1 eq 'ok', $2) if $line =~ /^(ok|not ok) (.*)/;
	}
	is($stderr, '', 'they ran to their end');
};
forget_received($url);

# What is refused
is(ask("$url/v1/chat/completions", $chat)->{status}, 401, 'without the key');
is(ask("$url/v1/chat/completions", { messages => [] }, Authorization => 'Bearer sesame')->{status}, 400, 'without a model');
is(ask("$url/v1/messages", $chat, 'x-api-key' => 'sesame')->{status}, 400, 'Anthropic wants a version');
is(ask("$url/mcp", { jsonrpc => '2.0', id => 1, method => 'tools/list' },
		Accept => 'application/json, text/event-stream')->{status}, 400, 'MCP wants a session');
is(ask("$url/v1/nothing", $chat)->{status}, 404, 'no other path');
my @log = received_by($url);
is(scalar @log, 5, 'all of it was noted');
is($log[1]{headers}{authorization}, 'Bearer sesame', 'with its headers');

# Faults, and the script
script_model($url,
	{ match => 'hello', content => 'once' },
	{ fault => { status => 429, retry_after => 7 } },
	{ fault => { status => 500 } },
	{ fault => { reset => JSON::PP::true } },
	{ fault => { garbage => JSON::PP::true } },
	{ fault => { truncate => JSON::PP::true } },
	{ fault => { huge => 3_000_000 } },
	{ fault => { gzip => JSON::PP::true } },
	{ content => 'drop by drop', fault => { drip => 0.001 } });
is(decode_json(chat()->{content})->{choices}[0]{message}{content}, 'once', 'a scripted answer');
my $answer = chat();
is("$answer->{status} $answer->{headers}{'retry-after'}", '429 7', '429 with Retry-After');
is(chat()->{status}, 500, 'another status');
is(chat()->{status}, 599, 'no answer');
ok(!eval { decode_json(chat()->{content}); 1 }, 'garbage is no JSON');
is(chat()->{status}, 599, 'an answer that ends too early');
cmp_ok(length chat()->{content}, '>', 3_000_000, 'a huge one');
$answer = chat();
is($answer->{headers}{'content-encoding'}, 'gzip', 'a compressed one');
is(decode_json(Compress::Zlib::memGunzip($answer->{content}))->{choices}[0]{message}{content}, 'hello there', 'that is right');
my $began = time;
is(decode_json(chat()->{content})->{choices}[0]{message}{content}, 'drop by drop', 'a slow one');
cmp_ok(time - $began, '>', 0.2, 'it took its time');
is(decode_json(chat()->{content})->{choices}[0]{message}{content}, 'hello there', 'the script is used up');

script_model($url, { fault => { stall => JSON::PP::true } });
is(chat(timeout => 1)->{status}, 599, 'one that never comes');

done_testing();
