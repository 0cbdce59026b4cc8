#!/usr/bin/env bash
# Types `pip install ./python` in a clean virtual environment, and runs the examples that need no GPU and the tests on what
# that gave. The last line is `N passed, N failed[, N skipped]`.
#
#   python/run.sh                  everything
#   python/run.sh --torch          with torch, which is several GB where it comes with CUDA
#   python/run.sh --only FILE...   only these files of tests (test_content.py, ...), and no examples, with a build and an
#                                  environment that are kept in build-python/: for work on the package
#   python/run.sh --asan           the extension and the library with AddressSanitizer instead, and the tests that need no
#                                  torch; --only works with it
#
# Without a package index in reach nothing can be installed: then an environment that was kept is used, and without one all
# of it is skipped.
set -euo pipefail
cd "$(dirname "$0")/.."

with_torch=false with_asan=false only=()
while [ $# -gt 0 ]; do
  case "$1" in
    --torch) with_torch=true ;;
    --asan) with_asan=true ;;
    --only)
      [ $# -gt 1 ] || { echo 'python/run.sh: --only needs a file' >&2; exit 2; }
      while [ $# -gt 1 ] && [[ "$2" != --* ]]; do only+=("python/tests/$2"); shift; done ;;
    *) sed -n '2,14s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
  shift
done

scripts/setup.sh
. scripts/common.sh
folder=$PWD/build-python
mkdir -p "$folder"

passed=0 failed=0 skipped=0
# check NAME COMMAND...: one check, whose output is shown only if it fails.
check() {
  local name=$1
  shift
  if "$@" >"$folder/check.log" 2>&1; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    tail -n 60 "$folder/check.log"
    echo "FAILED: $name"
  fi
}
finish() {
  echo "$passed passed, $failed failed$([ "$skipped" -eq 0 ] || echo ", $skipped skipped")"
  [ "$failed" -eq 0 ]
  exit
}

# What the tests need, and with it what building without isolation needs.
packages=(meson-python nanobind numpy pytest uvloop ml_dtypes mypy)
if $with_torch; then packages+=(torch transformers); fi
add() { "$python" -m pip install -q --disable-pip-version-check "$@"; }

# Two programs, each in a process of its own.
example() {
  local socket=$1 wanted=$2 server=$3 trainer=$4 status=0
  shift 4
  timeout 120 "$python" "samples/python/$server" --socket "$socket" >"$folder/server.log" 2>&1 &
  local process=$!
  timeout 120 "$python" "samples/python/$trainer" --socket "$socket" "$@" || status=1
  wait "$process" || status=1
  cat "$folder/server.log"
  grep -q "$wanted" "$folder/server.log" || status=1
  return "$status"
}
doctor() {
  timeout 60 "$python" -m ropeway doctor || return
  timeout 60 "$python" -m ropeway doctor --json | "$python" -c 'import json, sys; assert json.load(sys.stdin)["findings"]'
}
sockets=$(mktemp -d)
trap 'rm -rf "$sockets"' EXIT

# What users type, in an environment with nothing in it: pip gets what builds the package by itself, and then nothing more
# is needed. The compiler is the only thing that is not theirs.
as_users_do() {
  CXX="${cached[*]} ${CXX:-g++}" "$python" -m pip install --disable-pip-version-check ./python
}
# The same build, kept from one run to the next. CUDA's part is what python/gpu.sh is for.
kept() {
  CXX="${cached[*]} ${CXX:-g++}" PATH=${python%/*}:$PATH "$python" -m pip install -q --disable-pip-version-check \
    --no-build-isolation --force-reinstall --no-deps -Cbuild-dir="$folder/build" -Csetup-args=-Dropeway:cuda=disabled ./python
}
# A build of its own, in a folder of its own that is only pointed at.
sanitized() {
  local path=${python%/*}:$PATH
  [ -e "$folder/asan/build.ninja" ] || CXX="${cached[*]} ${CXX:-g++}" PATH=$path meson setup "$folder/asan" python \
    --buildtype=plain -Dropeway:buildtype=plain -Dropeway:optimization=0 -Doptimization=0 -Dcpp_args=-g1 -Dropeway:cpp_args=-g1 \
    -Db_sanitize=address -Db_lundef=false -Dropeway:cuda=disabled || return
  local extension
  extension=$(PATH=$path ninja -C "$folder/asan" -t targets all | sed -n 's,^\(src/_core[^:/]*\.so\): .*,\1,p')
  PATH=$path ninja -C "$folder/asan" "$extension" || return
  rm -rf "$folder/asan-package"
  mkdir "$folder/asan-package"
  cp -r python/ropeway "$folder/asan-package/"
  cp "$folder/asan/$extension" "$folder/asan-package/ropeway/"
  # Where it is installed, it would take minutes.
  echo 'raise ModuleNotFoundError("torch is left out", name="torch")' >"$folder/asan-package/torch.py"
}

started=$SECONDS
in_reach=false
if [ "${#only[@]}" -eq 0 ] && ! $with_asan; then
  python=$folder/clean/bin/python
  rm -rf "$folder/clean" "$folder/reach"
  python3 -m venv "$folder/clean"
  if "$python" -m pip download -q --disable-pip-version-check --no-deps -d "$folder/reach" meson-python nanobind \
    >"$folder/packages.log" 2>&1; then
    in_reach=true
  else
    tail -n 5 "$folder/packages.log"
    echo 'SKIPPED: `pip install ./python` AS USERS TYPE IT WAS NOT TRIED, for it needs a package index, and none can be reached'
    skipped=$((skipped + 1))
  fi
fi
if $in_reach; then
  check 'pip install ./python' as_users_do
  [ "$failed" -eq 0 ] || finish
  echo "pip install ./python took $((SECONDS - started)) s"
  check 'python -m ropeway doctor' doctor
  check 'pip install numpy' add numpy
  check 'samples/python: numpy' example "$sockets/n.sock" 'version 3: sin(1)' server.py trainer.py --versions 3
  check "pip install ${packages[*]}" add "${packages[@]}"
  [ "$failed" -eq 0 ] || finish
else
  python=$folder/venv/bin/python
  # What a run without options has left will do for this.
  if $with_asan && [ -x "$folder/clean/bin/pytest" ]; then python=$folder/clean/bin/python; fi
  [ -x "$python" ] || python3 -m venv "$folder/venv"
  # First, so that a missing index can be told from a broken build.
  if ! add "${packages[@]}" >"$folder/packages.log" 2>&1; then
    tail -n 5 "$folder/packages.log"
    echo "SKIPPED: the Python package, for ${packages[*]} can't be installed here"
    skipped=$((skipped + 1))
    finish
  fi
  if $with_asan; then
    check 'the extension with AddressSanitizer' sanitized
  else
    check 'pip install ./python, without isolation' kept
  fi
  [ "$failed" -eq 0 ] || finish
  echo "built in $((SECONDS - started)) s"
fi

# A source distribution holds the library: what git knows of it lies where the build looks for it.
sdist() {
  rm -rf "$folder/sdist"
  mkdir "$folder/sdist"
  (cd python && PATH=${python%/*}:$PATH "$python" -c \
    'import mesonpy, sys; print(mesonpy.build_sdist(sys.argv[1]))' "$folder/sdist")
  local held
  held=$(tar tzf "$folder"/sdist/*.tar.gz)
  local wanted
  for wanted in subprojects/ropeway/src/api/sender.cpp subprojects/ropeway/include/ropeway/ropeway.hpp \
    subprojects/ropeway/meson.build src/module.cpp ropeway/_core.pyi LICENSE; do
    grep -q "^[^/]*/$wanted\$" <<<"$held" || { echo "the sdist lacks $wanted"; return 1; }
  done
}
if ! $with_asan && git rev-parse --git-dir >/dev/null 2>&1; then check 'the sdist holds the library' sdist; fi

started=$SECONDS
status=0
tests=(python/tests)
if $with_asan; then tests+=(--ignore python/tests/test_typing.py); fi # which runs nothing of it
if [ "${#only[@]}" -gt 0 ]; then tests=("${only[@]}"); fi
rm -f "$folder/tests.xml"
environment=()
if $with_asan; then
  # Python itself is not instrumented, so what the extension needs is loaded before it, the C++ runtime included: its
  # exceptions are watched. Python's own small blocks come from malloc, so that they are watched as well.
  runtime() { "${CXX:-g++}" -print-file-name="$1"; }
  rm -rf "$folder/asan-reports"
  mkdir "$folder/asan-reports"
  environment=(LD_PRELOAD="$(runtime libasan.so) $(runtime libstdc++.so)" PYTHONPATH="$folder/asan-package"
    PYTHONMALLOC=malloc LSAN_OPTIONS=exitcode=0
    ASAN_OPTIONS="$ASAN_OPTIONS:log_path=$folder/asan-reports/of:stack_trace_format='    #%n %p %F %L (%m)'")
fi
env "${environment[@]}" timeout 1800 "$python" -X faulthandler -m pytest -c python/pyproject.toml -q --junitxml "$folder/tests.xml" "${tests[@]}" ||
  status=$?
read -r good bad left <<<"$("$python" python/count.py "$folder/tests.xml" || echo 0 1 0)"
passed=$((passed + good)) failed=$((failed + bad)) skipped=$((skipped + left))
if $with_asan; then check 'AddressSanitizer finds nothing in the extension' python3 python/sanitized.py "$folder/asan-reports"; fi
[ "$status" -eq 0 ] || [ "$bad" -gt 0 ] || { failed=$((failed + 1)); echo "FAILED: pytest ended with $status"; }
echo "tested in $((SECONDS - started)) s"

if [ "${#only[@]}" -eq 0 ] && ! $with_asan; then
  if ! $in_reach; then
    check 'python -m ropeway doctor' doctor
    check 'samples/python: numpy' example "$sockets/n.sock" 'version 3: sin(1)' server.py trainer.py --versions 3
  fi
  if "$python" -c 'import torch, transformers' 2>/dev/null; then
    check 'samples/python: transformers' example "$sockets/t.sock" 'serves version 3' transformers_server.py \
      torch_trainer.py --versions 3
  else
    skipped=$((skipped + 1))
    echo 'SKIPPED: samples/python: transformers, for torch is not installed (python/run.sh --torch)'
  fi
fi
finish
