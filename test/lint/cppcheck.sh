#!/bin/sh
# Static analysis, where cppcheck is installed.  It does not see PostgreSQL's
# headers, so what it cannot know about their macros is no finding.
command -v cppcheck >/dev/null || { echo "skipped: no cppcheck"; exit 0; }
ls src/*.c >/dev/null 2>&1 || exit 0
timeout 300 cppcheck --quiet --std=c11 --language=c -j 2 -Isrc \
	--enable=warning,portability --inline-suppr --error-exitcode=1 \
	--suppress=unknownMacro --suppress=missingInclude --suppress=missingIncludeSystem \
	--suppress=normalCheckLevelMaxBranches \
	--suppress=nullPointer --suppress=internalAstError --suppress=syntaxError \
	--suppress=preprocessorErrorDirective \
	-DINT64_FORMAT='"%ld"' -DUINT64_FORMAT='"%lu"' \
	'-DPG_MODULE_MAGIC=' '-DPG_FUNCTION_INFO_V1(x)=' '-DPGDLLEXPORT=' \
	src
