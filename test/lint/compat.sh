#!/bin/sh
# Differences between PostgreSQL versions are hidden in one header.
! grep -n PG_VERSION_NUM $(ls src/*.[ch] src/cli/*.[ch] 2>/dev/null | grep -vx src/compat.h) /dev/null
