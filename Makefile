# orchestrator: durable task orchestration inside PostgreSQL.
#
# What a person types:
#
#   make                 build the extension and the client, src/cli/orchestrator
#   make install         install them into the PostgreSQL of PG_CONFIG (as root)
#   make test            everything: lint, build, regress, isolation, TAP, pgTAP
#   make test T=claim    only the tests whose file name matches
#   make demo            a throw-away server that indexes the PostgreSQL manual
#   make demo-stop       end that server
#   make bench           benchmarks          (N= tasks, K= executors)
#   make chaos           faults under load   (N= tasks, K= kills, SEED=, SOAK= tasks)
#   make lint            the checks of test/lint
#   make format          lay out src/ with clang-format 14
#   make ubsan           the tests, with the undefined behaviour sanitizer
#   make matrix          the tests on the PostgreSQL of newer Debian releases
#
# What they take:
#
#   PG_CONFIG=path       build for this PostgreSQL
#   PGVERSION=15         else: for this major version, if Debian has it
#   WORK=dir             keep the folder test, bench and chaos build and run in,
#                        so that the next run compiles only what has changed
#   LANES=2              so many files of tests at once; else two, or one on one core
#   EXISTING=1           installcheck against an installed, running server

EXTENSION  = orchestrator
EXTVERSION = $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" $(EXTENSION).control)

PGVERSION ?= 15
PG_CONFIG ?= $(firstword $(wildcard /usr/lib/postgresql/$(PGVERSION)/bin/pg_config) \
	$(shell ls -d /usr/lib/postgresql/*/bin/pg_config 2>/dev/null | sort -rV) pg_config)

# These install what is missing and call make again for the build itself, so
# they must work before there is a pg_config.
DRIVERS = bench chaos demo demo-stop format help lint matrix test ubsan
.PHONY: $(DRIVERS)

ifneq ($(filter-out $(DRIVERS),$(or $(MAKECMDGOALS),all)),)

MODULE_big  = orchestrator
OBJS        = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c)))
# Macros of the server's own headers compare signed with unsigned.
PG_CFLAGS   = -Wall -Wextra -Wno-unused-parameter -Wno-missing-field-initializers -Wno-sign-compare
PG_CPPFLAGS = -Isrc -DORCHESTRATOR_VERSION=\"$(EXTVERSION)\"

# For the tests only: a newer compiler's new warning must not stop a user.
ifdef WERROR
PG_CFLAGS  += -Werror
endif

# No bitcode: it would need the very clang the server was built with.
override with_llvm = no

# The command-line client, with its man page and its completion for bash.
CLI         = src/cli/orchestrator
CLI_OBJS    = $(patsubst %.c,%.o,$(sort $(wildcard src/cli/*.c)))
CLI_MAN     = src/cli/orchestrator.1
CLI_WORDS   = src/cli/orchestrator.bash

# The courier's program.  Without the headers of libcurl, and of libcrypto, which
# signs webhooks, the extension does without: outside calls fail and say why.
COURIER      = src/courier/orchestrator-courier
COURIER_OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/courier/*.c))) src/courier/frame.o
HAS_CURL     = $(shell printf '\043include <curl/curl.h>\n\043include <openssl/hmac.h>\n' | $(CC) -fsyntax-only -xc - 2>/dev/null && echo yes)

# The install script is the sources of sql/, in the order of their numbers.
SQL_SOURCES = $(sort $(wildcard sql/[0-9]*.sql))
SQL_INSTALL = sql/$(EXTENSION)--$(EXTVERSION).sql
DATA        = $(wildcard sql/$(EXTENSION)--*--*.sql)
DATA_built  = $(SQL_INSTALL)

# Expected output is in expected/: pg_regress looks in the output directory
# first.  It does the same for the tests, hence the numbers in sql/.
REGRESS        = $(notdir $(basename $(sort $(wildcard test/sql/*.sql))))
ISOLATION      = $(notdir $(basename $(sort $(wildcard test/specs/*.spec))))
REGRESS_OPTS   = --inputdir=test --encoding=UTF8 --no-locale
ISOLATION_OPTS = --inputdir=test --outputdir=. --encoding=UTF8 --no-locale \
	--load-extension=orchestrator
ifndef EXISTING
REGRESS_OPTS   += --temp-instance=tmp_check_regress --temp-config=tmp_install/server.conf
ISOLATION_OPTS += --temp-instance=tmp_check_iso --temp-config=tmp_install/server.conf
TAP_TESTS      = 1
PROVE_TESTS    = test/t/*.pl
export ORCHESTRATOR_CONF = $(CURDIR)/tmp_install/server.conf
endif
EXTRA_CLEAN    = $(CLI) $(CLI_OBJS) $(COURIER) $(COURIER_OBJS) tmp_check tmp_check_regress tmp_check_iso tmp_failed tmp_install log results

PGXS := $(shell $(PG_CONFIG) --pgxs)
ifeq ($(PGXS),)
$(error $(PG_CONFIG) not found: install postgresql-server-dev-$(PGVERSION), or say PG_CONFIG=path)
endif
include $(PGXS)
PROVE_FLAGS += -I test/lib

# PGXS tracks headers only where the server was built to; most were not.
$(OBJS): $(wildcard src/*.h) $(EXTENSION).control

all: $(CLI)
install: install-cli
uninstall: uninstall-cli uninstall-courier
ifeq ($(HAS_CURL),yes)
all: $(COURIER)
install: install-courier
else
all: no-courier
endif

$(CLI_OBJS): $(wildcard src/cli/*.h) $(EXTENSION).control
$(CLI_OBJS): override CPPFLAGS += -I$(libpq_srcdir)

$(CLI): $(CLI_OBJS)
	$(CC) $(CFLAGS) $(CLI_OBJS) $(LDFLAGS) $(LDFLAGS_EX) -L$(pkglibdir) -lpgcommon -lpgport $(libpq) $(filter -lcrypto,$(LIBS)) -lm -o $@

$(COURIER_OBJS): $(wildcard src/courier/*.h) src/frame.h
$(COURIER_OBJS): override CPPFLAGS := -Isrc

src/courier/frame.o: src/frame.c
	$(CC) $(CFLAGS) $(CPPFLAGS) -c $< -o $@

$(COURIER): $(COURIER_OBJS)
	$(CC) $(CFLAGS) $(COURIER_OBJS) $(LDFLAGS) $(LDFLAGS_EX) -lcurl -lcrypto -o $@

.PHONY: no-courier install-courier uninstall-courier
no-courier:
	@echo "no libcurl4-openssl-dev and libssl-dev: outside calls (orchestrator-courier) are left out" >&2

install-courier: $(COURIER)
	$(MKDIR_P) '$(DESTDIR)$(pkglibdir)'
	$(INSTALL_PROGRAM) $(COURIER) '$(DESTDIR)$(pkglibdir)/$(notdir $(COURIER))'

uninstall-courier:
	rm -f '$(DESTDIR)$(pkglibdir)/$(notdir $(COURIER))'

# bash looks for completions beside the folder of PostgreSQL's own data.
completiondir = $(firstword $(subst /postgresql, ,$(datadir)))/bash-completion/completions

.PHONY: install-cli uninstall-cli
install-cli: $(CLI)
	$(MKDIR_P) '$(DESTDIR)$(bindir)' '$(DESTDIR)$(mandir)/man1' '$(DESTDIR)$(completiondir)'
	$(INSTALL_PROGRAM) $(CLI) '$(DESTDIR)$(bindir)/$(notdir $(CLI))'
	$(INSTALL_DATA) $(CLI_MAN) '$(DESTDIR)$(mandir)/man1/$(notdir $(CLI_MAN))'
	$(INSTALL_DATA) $(CLI_WORDS) '$(DESTDIR)$(completiondir)/$(notdir $(CLI))'

uninstall-cli:
	rm -f '$(DESTDIR)$(bindir)/$(notdir $(CLI))' '$(DESTDIR)$(mandir)/man1/$(notdir $(CLI_MAN))' \
		'$(DESTDIR)$(completiondir)/$(notdir $(CLI))'

$(SQL_INSTALL): $(SQL_SOURCES) $(EXTENSION).control
	cat $(SQL_SOURCES) > $@.tmp
	mv $@.tmp $@

# The tests install below the tree, not into the system's PostgreSQL.
.PHONY: private-install
private-install: all
	@test/private-install.sh $(CURDIR)/tmp_install $(PG_CONFIG) $(MAKE)

ifndef EXISTING
installcheck: private-install
endif

endif

# Variables of the command line reach the scripts through the environment.
export PGVERSION

test bench chaos ubsan:
	@test/run.sh $@

demo:
	@test/demo/start.sh

demo-stop:
	@test/demo/stop.sh

lint:
	@test/lint/run.sh

format:
	@$(or $(shell command -v clang-format-14),clang-format) -i src/*.[ch] src/cli/*.[ch] src/courier/*.[ch]

matrix:
	@test/matrix.sh

help:
	@sed -n '/^$$/q; s/^# \{0,1\}//p' Makefile
