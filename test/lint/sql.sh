#!/bin/sh
# The install script makes everything anew: OR REPLACE and IF NOT EXISTS would
# take over what an attacker had put there.  A SECURITY DEFINER function without
# a search_path of its own runs whatever the caller's one finds.  (The bodies of
# functions are not looked at: they run later.)
exec perl -0777 -ne '
	my $text = $_;
	# Blank out, keeping the lines: bodies, comments, strings.
	$text =~ s{(--[^\n]*)|(/\*.*?\*/)|(\$\w*\$)(?:.*?)\3|(\x27(?:[^\x27]|\x27\x27)*\x27)}
		{ my $t = $&; $t =~ s/[^\n]+/ /g; $t }gsex;
	$text =~ s{\bBEGIN\s+ATOMIC\b.*?\bEND\s*;}{ my $t = $&; $t =~ s/[^\n]+/ /g; "$t;" }gsiex;
	sub complain
	{
		my ($at, $what) = @_;
		printf "%s:%d: %s\n", $ARGV, 1 + (substr($text, 0, $at) =~ tr/\n//), $what;
		$bad = 1;
	}
	complain($-[0], "CREATE OR REPLACE") while $text =~ /\bCREATE\s+OR\s+REPLACE\b/gi;
	complain($-[0], "IF NOT EXISTS") while $text =~ /\bIF\s+NOT\s+EXISTS\b/gi;
	while ($text =~ /[^;]+/g)
	{
		my ($statement, $at) = ($&, $-[0]);
		next unless $statement =~ /\bSECURITY\s+DEFINER\b/i;
		complain($at + $-[0], "SECURITY DEFINER without SET search_path")
			if $statement !~ /\bSET\s+search_path\b/i && $statement =~ /\b(?:CREATE|ALTER)\b/i;
	}
	END { exit($bad ? 1 : 0) }' sql/[0-9]*.sql
