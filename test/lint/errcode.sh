#!/bin/sh
# An ereport of WARNING and up names its SQLSTATE.
exec perl -0777 -ne '
	while (/\bereport(\((?:[^()"\x27]++|"(?:\\.|[^"\\])*+"|\x27(?:\\.|[^\x27\\])*+\x27|(?1))*+\))/g)
	{
		my ($call, $before) = ($1, $`);
		next unless $call =~ /^\(\s*(?:WARNING|ERROR|FATAL|PANIC)\b/;
		next if $call =~ /\berrcode/;
		printf "%s:%d: ereport without errcode\n", $ARGV, 1 + ($before =~ tr/\n//);
		$bad = 1;
	}
	END { exit($bad ? 1 : 0) }' src/*.c
