#!/usr/bin/env bash
# clang-tidy with .clang-tidy over these sources of the pure layers (src/base, src/plan, src/protocol): files with
# Asio's coroutines take it minutes each.
#
#   scripts/tidy.sh FILE.cpp...
set -euo pipefail
cd "$(dirname "$0")/.."
command -v clang-tidy-19 >/dev/null || { echo 'scripts/tidy.sh: no clang-tidy-19 here; scripts/setup.sh --ci installs it' >&2; exit 1; }
. scripts/common.sh
# Its own folder, without tests and sanitizers: clang-tidy needs the commands, and what the build generates.
configure build-ci-tidy clang++-19 -Dtests=false -Db_pch=false
exec clang-tidy-19 --quiet -p build-ci-tidy "$@"
