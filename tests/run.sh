#!/usr/bin/env bash
# Builds ropeway and runs every test, plainly and once more under AddressSanitizer and LeakSanitizer (but for the kill
# matrix, of which `.ci/run --stage matrix` plays a part there).
# Installs what it needs first (scripts/setup.sh). The last line is `N passed, N failed`.
#
#   tests/run.sh                  everything
#   tests/run.sh --plain          only the plain build; --asan: only the one with the sanitizers
#   tests/run.sh --only NAME...   only these tests (base, plan, protocol, ...)
#   tests/run.sh --werror         a compiler warning is an error
set -euo pipefail
cd "$(dirname "$0")/.."

kinds=(plain asan)
names=()
werror=false
while [ $# -gt 0 ]; do
  case "$1" in
    --plain) kinds=(plain) ;;
    --asan) kinds=(asan) ;;
    --werror) werror=true ;;
    --only)
      [ $# -gt 1 ] || { echo "tests/run.sh: --only needs a name" >&2; exit 2; }
      while [ $# -gt 1 ] && [[ "$2" != --* ]]; do names+=("$2"); shift; done ;;
    *) sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
  shift
done

scripts/setup.sh
. scripts/common.sh
jobs=$(nproc)

# Compiling takes most of the time, so little is optimised; instrumented code not at all.
plain=(-Doptimization=1 -Ddebug=false -Ddefault_library=both)
asan=(-Doptimization=0 -Ddebug=false "-Dcpp_args=-g1 -D_GLIBCXX_ASSERTIONS" -Dsamples=false
      -Db_sanitize=address -Db_lundef=false)
logs=()
status=0
for kind in "${kinds[@]}"; do
  dir=build-test-$kind
  started=$SECONDS
  kind_werror=$werror
  # Instrumented code draws false warnings from GCC's flow analysis.
  [ "$kind" = plain ] || kind_werror=false
  declare -n options=$kind
  configure "$dir" "${CXX:-g++}" "${options[@]}" -Dwerror="$kind_werror"
  targets=(all)
  [ "${#names[@]}" -eq 0 ] || mapfile -t targets < <(printf 'test-%s\n' "${names[@]}")
  targets_known=()
  for target in "${targets[@]}"; do
    # Ninja knows an executable by its path.
    [ "$target" = all ] && targets_known+=(all) && continue
    [ "$target" = test-benchmarks ] && targets_known+=(benchmarks/ropeway-bench) && continue
    path=$(ninja -C "$dir" -t targets all | sed -n "s|^\(tests/.*/$target\): .*|\1|p" | head -n 1)
    [ -n "$path" ] && targets_known+=("$path") || targets_known=(all)
    [ "${targets_known[0]}" = all ] && break
    case $target in # what it runs
      test-cli) targets_known+=(src/cli/ropeway) ;;
      test-memory | test-memory-cuda) targets_known+=(tests/memory/import-peer) ;;
    esac
  done
  ninja -C "$dir" -j "$jobs" "${targets_known[@]}" >"$dir/ninja.out" 2>&1 ||
    { grep -v '^\[[0-9]*/[0-9]*\]' "$dir/ninja.out" | head -n 60 >&2; echo "tests/run.sh: the $kind build failed" >&2; exit 1; }
  grep -E 'warning:' "$dir/ninja.out" >&2 || true
  # No test there, but a program that .ci/run runs.
  if [ "$kind ${names[*]}" = 'asan matrix' ]; then echo "asan: built $dir/tests/matrix/test-matrix"; continue; fi
  built=$((SECONDS - started))
  started=$SECONDS
  rm -f "$dir/meson-logs/testlog.json"
  meson test -C "$dir" --no-rebuild --num-processes "$jobs" --timeout-multiplier 4 --print-errorlogs \
    "${names[@]}" || status=1
  echo "$kind: built in $built s, tested in $((SECONDS - started)) s"
  logs+=("$kind" "$dir/meson-logs/testlog.json")
done

[ "${#logs[@]}" -gt 0 ] || exit "$status"
python3 scripts/summarise_tests.py "${logs[@]}" || status=1
exit "$status"
