#!/usr/bin/env bash
# Installs the Python package into a virtual environment of its own, as `pip install ./python` does, and runs its tests
# and the examples that need no GPU. The last line is `N passed, N failed[, N skipped]`.
#
#   python/run.sh                  everything; the environment and the build are kept in build-python/
#   python/run.sh --torch          with torch, which is several GB where it comes with CUDA
#   python/run.sh --only FILE...   only these files of tests (test_content.py, ...), and no examples
#
# Without a package index in reach nothing can be installed: then all of it is skipped.
set -euo pipefail
cd "$(dirname "$0")/.."

with_torch=false only=()
while [ $# -gt 0 ]; do
  case "$1" in
    --torch) with_torch=true ;;
    --only)
      [ $# -gt 1 ] || { echo 'python/run.sh: --only needs a file' >&2; exit 2; }
      while [ $# -gt 1 ] && [[ "$2" != --* ]]; do only+=("python/tests/$2"); shift; done ;;
    *) sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
  shift
done

scripts/setup.sh
. scripts/common.sh
folder=$PWD/build-python
mkdir -p "$folder"
[ -x "$folder/venv/bin/python" ] || python3 -m venv "$folder/venv"
python=$folder/venv/bin/python

# What the build and the tests need comes first, so that a missing index can be told from a broken build.
packages=(meson-python nanobind numpy pytest uvloop ml_dtypes mypy)
if $with_torch; then packages+=(torch transformers); fi
if ! "$python" -m pip install -q --disable-pip-version-check "${packages[@]}" >"$folder/packages.log" 2>&1; then
  tail -n 5 "$folder/packages.log"
  echo "SKIPPED: the Python package, for ${packages[*]} can't be installed here"
  echo '0 passed, 0 failed, 1 skipped'
  exit 0
fi

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

# As little is compiled as the tests need: CUDA's part is what tests/gpu.sh and python/gpu.sh are for.
install() {
  CXX="${cached[*]} ${CXX:-g++}" PATH=$folder/venv/bin:$PATH "$python" -m pip install -q --disable-pip-version-check \
    --no-build-isolation --force-reinstall --no-deps -Cbuild-dir="$folder/build" -Csetup-args=-Dropeway:cuda=disabled ./python
}
started=$SECONDS
check 'pip install ./python' install
[ "$failed" -eq 0 ] || finish
echo "installed in $((SECONDS - started)) s"

# A source distribution holds the library: what git knows of it lies where the build looks for it.
sdist() {
  rm -rf "$folder/sdist"
  mkdir "$folder/sdist"
  (cd python && PATH=$folder/venv/bin:$PATH "$python" -c \
    'import mesonpy, sys; print(mesonpy.build_sdist(sys.argv[1]))' "$folder/sdist")
  local held
  held=$(tar tzf "$folder"/sdist/*.tar.gz)
  local wanted
  for wanted in subprojects/ropeway/src/api/sender.cpp subprojects/ropeway/include/ropeway/ropeway.hpp \
    subprojects/ropeway/meson.build src/module.cpp ropeway/_core.pyi LICENSE; do
    grep -q "^[^/]*/$wanted\$" <<<"$held" || { echo "the sdist lacks $wanted"; return 1; }
  done
}
if git rev-parse --git-dir >/dev/null 2>&1; then check 'the sdist holds the library' sdist; fi

started=$SECONDS
status=0
[ "${#only[@]}" -gt 0 ] && tests=("${only[@]}") || tests=(python/tests)
rm -f "$folder/tests.xml"
timeout 900 "$python" -X faulthandler -m pytest -c python/pyproject.toml -q --junitxml "$folder/tests.xml" "${tests[@]}" ||
  status=$?
read -r good bad left <<<"$("$python" python/count.py "$folder/tests.xml" || echo 0 1 0)"
passed=$((passed + good)) failed=$((failed + bad)) skipped=$((skipped + left))
[ "$status" -eq 0 ] || [ "$bad" -gt 0 ] || { failed=$((failed + 1)); echo "FAILED: pytest ended with $status"; }
echo "tested in $((SECONDS - started)) s"

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
if [ "${#only[@]}" -eq 0 ]; then
  sockets=$(mktemp -d)
  trap 'rm -rf "$sockets"' EXIT
  check 'samples/python: numpy' example "$sockets/n.sock" 'version 3: sin(1)' server.py trainer.py --versions 3
  if "$python" -c 'import torch, transformers' 2>/dev/null; then
    check 'samples/python: transformers' example "$sockets/t.sock" 'serves version 3' transformers_server.py \
      torch_trainer.py --versions 3
  else
    skipped=$((skipped + 1))
    echo 'SKIPPED: samples/python: transformers, for torch is not installed (python/run.sh --torch)'
  fi
  check 'python -m ropeway doctor' doctor
fi
finish
