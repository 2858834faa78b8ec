#!/bin/sh
# The install script is the same whatever the settings and the encoding of the
# database are: a string with a backslash is written E'...' (what a plain one says
# depends on standard_conforming_strings of whoever calls the function first), and
# all of it in ASCII.
exec perl -0777 -ne '
	sub complain
	{
		my ($before, $what) = @_;
		printf "%s:%d: %s\n", $ARGV, 1 + ($before =~ tr/\n//), $what;
		$bad = 1;
	}
	while (/--[^\n]*|\/\*.*?\*\/|(\b[eE]\x27(?:[^\x27\\]|\\.|\x27\x27)*\x27)|"[^"]*"|(\x27(?:[^\x27]|\x27\x27)*\x27)/gs)
	{
		my ($string, $before) = ($2, $`);
		complain($before, "backslash in $string") if defined $string && $string =~ /\\/;
	}
	complain($`, "$& is not ASCII") while /[^\x00-\x7f]+/g;
	END { exit($bad ? 1 : 0) }' sql/[0-9]*.sql
