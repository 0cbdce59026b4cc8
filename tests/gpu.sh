#!/usr/bin/env bash
# Runs every test on a machine with one or more NVIDIA GPUs, where those that need a device find one.
# The last line is `gpu: N passed, N failed, N skipped on DEVICE`.
#
#   tests/gpu.sh                       builds what is to be run, and runs it
#   tests/gpu.sh --only NAME...        only these tests (memory, session, ...)
#   tests/gpu.sh --sanitize [TOOL]     the tests of CUDA under compute-sanitizer: memcheck (or racecheck, initcheck, synccheck)
#   tests/gpu.sh --run PROGRAM ARG...  one of the programs (ropeway, a benchmark, test-matrix) instead of the tests
#   tests/gpu.sh --pack                only builds, into build-carry/
#
# A machine with a GPU may lack what ropeway is built with. Then build elsewhere with --pack, on a system that is not
# newer, bring the folder build-carry/ along, and this script runs what it holds.
set -euo pipefail
cd "$(dirname "$0")/.."
carry=build-carry

mode=test names=() sanitize=false tool=memcheck
case "${1-}" in
  --pack) mode=pack ;;
  --run) [ $# -gt 1 ] || { echo 'tests/gpu.sh: --run needs a program' >&2; exit 2; }; mode=run ;;
esac
while [ "$mode" = test ] && [ $# -gt 0 ]; do
  case "$1" in
    --sanitize)
      sanitize=true
      case "${2-}" in memcheck | racecheck | initcheck | synccheck) tool=$2; shift ;; esac ;;
    --only)
      [ $# -gt 1 ] || { echo 'tests/gpu.sh: --only needs a name' >&2; exit 2; }
      while [ $# -gt 1 ] && [[ "$2" != --* ]]; do names+=("$2"); shift; done ;;
    *) sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
  shift
done

can_build() { command -v meson && command -v ninja && command -v nvcc && [ -e /usr/include/asio.hpp ]; } >/dev/null 2>&1

# Libraries that every system has; a program built on an older system runs with newer ones.
of_the_system='^(linux-vdso|ld-linux.*|libc|libm|libdl|librt|libpthread|libstdc\+\+|libgcc_s)\.so'

pack() {
  . scripts/common.sh
  # Libraries go into the executables where that can be, so that little else has to travel.
  configure build-gpu "${CXX:-g++}" -Doptimization=2 -Ddebug=false -Dcuda=enabled -Dbenchmarks=true \
    -Ddefault_library=static -Dprefer_static=true
  ninja -C build-gpu -j "$(nproc)" >build-gpu/ninja.out 2>&1 ||
    { grep -v '^\[[0-9]*/[0-9]*\]' build-gpu/ninja.out | head -n 60 >&2; return 1; }
  rm -rf "$carry"
  mkdir -p "$carry"/{tests,bin,lib}
  local program to library
  while read -r program; do
    to=bin
    case "$program" in build-gpu/tests/*) to=tests ;; esac
    strip -o "$carry/$to/${program##*/}" "$program"
    while read -r library; do
      cp -Lu "$library" "$carry/lib/"
    done < <(ldd "$program" | awk '$3 ~ /^\// { print $1, $3 }' | grep -vE "$of_the_system" | cut -d' ' -f2)
  done < <(find build-gpu/{src,tests,samples,benchmarks} -type f -perm -u+x ! -name '*.so*' ! -name '*.p' 2>/dev/null | sort)
  git describe --always --dirty >"$carry/commit" 2>/dev/null || true
  echo "packed $(ls "$carry/tests" | wc -l) test programs and $(ls "$carry/bin" | wc -l) others," \
    "$(du -sh "$carry" | cut -f1), in $carry/"
}

if [ "$mode" = pack ]; then
  scripts/setup.sh
  pack
  exit
fi
if can_build; then
  pack
elif [ -d "$carry" ]; then
  echo "running what was built elsewhere: $(cat "$carry/commit" 2>/dev/null || echo 'an unknown commit')"
else
  echo "tests/gpu.sh: meson, ninja, nvcc or Asio is missing here and there is no $carry/;" \
    'see the first lines of this script' >&2
  exit 1
fi
export LD_LIBRARY_PATH=$PWD/$carry/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export ROPEWAY_PROGRAM=$PWD/$carry/bin/ropeway # for the tests of the program
ROPEWAY_COMMIT=$(cat "$carry/commit" 2>/dev/null || echo unknown) # for test-matrix, whose lines name it
export ROPEWAY_COMMIT
export ROPEWAY_REFERENCE=$PWD/tests/inference_server ROPEWAY_FUZZ_CORPUS=$PWD/tests/fuzz/corpus
if [ "$mode" = run ]; then
  shift
  program=$1
  shift
  for folder in bin tests; do
    [ ! -x "$carry/$folder/$program" ] || exec "$carry/$folder/$program" "$@"
  done
  echo "tests/gpu.sh: there is no $program in $carry/" >&2
  exit 1
fi

devices=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | sort | uniq -c |
  sed -E 's/^ *1 //; s/^ *([0-9]+) /\1 x /' | paste -sd, || true)
[ -n "$devices" ] || devices='no device'
export CUDA_MODULE_LOADING=LAZY
passed=0 failed=0 skipped=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
under=()
if $sanitize; then
  under=(compute-sanitizer --tool "$tool" --target-processes all --error-exitcode 66 --print-limit 20)
  command -v compute-sanitizer >/dev/null || { echo 'tests/gpu.sh: no compute-sanitizer here' >&2; exit 1; }
fi

# soak NAME ARG...: updates between processes, with everything going wrong that may; counts as one test.
soak() {
  local name=$1 started=$SECONDS status=0
  shift
  timeout 300 "$carry/tests/ropeway-soak" "$@" >"$log" 2>&1 || status=$?
  case "$status" in
    0) passed=$((passed + 1)); cat "$log" ;;
    77) skipped=$((skipped + 1)); echo "SKIPPED $name: $(sed -n 's/^SKIPPED: //p' "$log" | head -n 1)" ;;
    *) failed=$((failed + 1)); tail -n 60 "$log"; echo "FAILED $name: exit status $status" ;;
  esac
  echo "$name: $((SECONDS - started)) s"
}

for program in "$carry"/tests/test-*; do
  name=${program##*/test-}
  if [ "${#names[@]}" -gt 0 ]; then
    [[ " ${names[*]} " == *" $name "* ]] || continue
  elif $sanitize; then
    # The rest never reaches a device.
    case "$name" in base | plan | protocol | wire | checkpoint) continue ;; esac
  fi
  started=$SECONDS
  status=0
  timeout "$($sanitize && echo 560 || echo 300)" "${under[@]}" "$program" >"$log" 2>&1 || status=$?
  cases=$(sed 's/\x1b\[[0-9;]*m//g' "$log" |
    sed -nE 's/.*test cases: *([0-9]+) *\| *([0-9]+) passed *\| *([0-9]+) failed.*/\2 \3/p' | tail -n 1)
  read -r good bad <<<"${cases:-0 0}"
  case "$status" in
    0) [ -n "$cases" ] || good=1 ;;
    77) skipped=$((skipped + 1)); good=0 bad=0; echo "SKIPPED $name: $(tail -n 1 "$log")" ;;
    *)
      [ "$bad" -gt 0 ] || bad=1
      tail -n 60 "$log"
      echo "FAILED $name: exit status $status" ;;
  esac
  # A test case may say for itself that this machine lacks what it needs.
  [ "$status" = 77 ] || { grep -h '^SKIPPED' "$log" && skipped=$((skipped + $(grep -c '^SKIPPED' "$log"))); } || true
  passed=$((passed + good)) failed=$((failed + bad))
  echo "$name: $good passed, $bad failed in $((SECONDS - started)) s"
done
if ! $sanitize && { [ "${#names[@]}" -eq 0 ] || [[ " ${names[*]} " == *' soak '* ]]; }; then
  soak 'soak' --updates 150 --device cuda:0 --receiver-device cuda:0 --receiver-device host
fi
[ $((passed + failed)) -gt 0 ] || { echo 'no test ran'; failed=1; }
! $sanitize || echo "under compute-sanitizer, $tool"
echo "gpu: $passed passed, $failed failed, $skipped skipped on $devices"
[ "$failed" -eq 0 ]
