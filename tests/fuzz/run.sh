#!/usr/bin/env bash
# Fuzzes what reads bytes from others: builds the targets with clang 19, AddressSanitizer and
# UndefinedBehaviorSanitizer in build-fuzz, and runs each from the corpus in tests/fuzz/corpus. Prints a line a target:
# executions, the coverage of the lines under test, findings. The last line is `N passed, N failed`.
#
#   tests/fuzz/run.sh [--seconds N | --runs N] [--seed N] [--jobs N] [--no-coverage] [TARGET...]
#
#   --seconds N     each target for so long (default 60); --runs N: for so many executions
#   --seed N        the same inputs each time, with --runs (default: others each time)
#   --jobs N        processes at once (default: one a core)
#   TARGET          message manifest placement header index datagram sender receiver (default: all)
#
# What is found lies in build-fuzz/TARGET.found/, new inputs in build-fuzz/TARGET.corpus/.
# tests/fuzz/run.sh --merge puts what adds coverage into tests/fuzz/corpus, as small as it can.
set -uo pipefail
cd "$(dirname "$0")/../.."

all_targets=(message manifest placement header index datagram sender receiver)
limit=(-max_total_time=60)
jobs=$(nproc)
coverage=true
merge=false
targets=()
while [ $# -gt 0 ]; do
  case "$1" in
    --seconds) limit[0]=-max_total_time=$2; shift ;;
    --runs) limit[0]=-runs=$2; shift ;;
    --seed) limit+=(-seed="$2"); shift ;;
    --jobs) jobs=$2; shift ;;
    --no-coverage) coverage=false ;;
    --merge) merge=true ;;
    -*) sed -n '2,14s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    *) targets+=("$1") ;;
  esac
  shift
done
[ "${#targets[@]}" -gt 0 ] || targets=("${all_targets[@]}")

# The longest input: what is interesting is short.
declare -A longest=([message]=600 [manifest]=400 [placement]=400 [header]=500 [index]=400 [datagram]=160 [sender]=160 [receiver]=160)
# The files whose lines must be reached, and, where a file does other things too, the functions in it.
declare -A under_test=(
  [message]='src/protocol/codec.cpp src/base/codec.hpp src/protocol/text.hpp'
  [manifest]='src/plan/manifest.cpp src/plan/copies.cpp src/plan/destination.cpp src/plan/boxes.cpp src/plan/strided.cpp src/base/utf8.hpp'
  [placement]='src/plan/placement.cpp'
  [header]='src/checkpoint/header.cpp src/checkpoint/header_listener.cpp src/checkpoint/json_events.cpp'
  [index]='src/checkpoint/index.cpp src/checkpoint/json_events.cpp'
  [datagram]='src/wire/socket.cpp src/wire/connection.cpp src/memory/host/region.cpp'
  [sender]='src/protocol/sender_machine.cpp src/protocol/sender src/plan/slot_ledger.cpp'
  [receiver]='src/protocol/receiver_machine.cpp src/protocol/receiver')
declare -A functions=([datagram]='receive_now|send_now|try_receive|try_send|state::receive|state::send|state::check|state::gone|state::broke|import_region|connection::close|state::close')
# What never runs, or never because of what anybody else does, and so does not count:
#  message   the hash over the spelling of all messages (schema) is worked out by the compiler, as is the least size of
#            each type, which for_each_member_type is for
#  manifest, placement  BOOST_DESCRIBE_STRUCT declares functions (boost_*_descriptor_fn) of which only the types are looked at
# What is left out by naming functions above, for datagram: connecting, and sends that wait, which need a loop and
# have tests of their own in tests/wire; making regions, which takes nothing from anybody.
declare -A excluded=(
  [message]='codec::detail::schema::|6schema3add|codec::schema_hash<|for_each_member_type'
  [manifest]='boost_[a-z_]*descriptor_fn'
  [placement]='boost_[a-z_]*descriptor_fn')

command -v clang++-19 >/dev/null || { echo 'tests/fuzz/run.sh: clang 19 is missing (clang-19)' >&2; exit 2; }
. scripts/common.sh
common=(-Dfuzzing=true -Dcuda=disabled -Dsamples=false -Doptimization=2 -Ddebug=true -Db_lundef=false)
configure build-fuzz clang++-19 "${common[@]}" -Db_sanitize=address,undefined \
  "-Dcpp_args=-g1 -D_GLIBCXX_ASSERTIONS -fsanitize=fuzzer-no-link -fno-sanitize-recover=all" || exit 1
programs() { printf 'tests/fuzz/fuzz-%s\n' "${targets[@]}"; }
built=$(ninja -C build-fuzz -j "$jobs" $(programs) 2>&1) || { printf '%s\n' "$built" | tail -n 40; exit 1; }

# -max_total_time and -runs both end a run without an error; what libFuzzer prints at the end has the counts.
fuzz() {
  local target=$1 work=build-fuzz/$1.corpus dictionary=()
  mkdir -p "$work" "build-fuzz/$target.found"
  [ ! -e "tests/fuzz/$target.dict" ] || dictionary=(-dict="tests/fuzz/$target.dict")
  # Short memories: what a finding allocated long ago, and from where, its replay says.
  local fast=detect_stack_use_after_return=0:malloc_context_size=3:quarantine_size_mb=16
  ASAN_OPTIONS=$ASAN_OPTIONS:$fast "build-fuzz/tests/fuzz/fuzz-$target" "${limit[@]}" \
    -max_len="${longest[$target]}" -entropic=0 -timeout=20 -rss_limit_mb=3000 -print_final_stats=1 "${dictionary[@]}" \
    -artifact_prefix="build-fuzz/$target.found/" "$work" "tests/fuzz/corpus/$target" >"build-fuzz/$target.log" 2>&1
  echo $? >"build-fuzz/$target.status"
}

# The fewest inputs that reach all that is reached, each line as often (in libFuzzer's steps: 1, 2, 3, 4 to 7, ...) or,
# where that takes more than 400, each line at all. Inputs named found-* were findings, and stay.
merge_corpus() {
  local target=$1 corpus=tests/fuzz/corpus/$1 kept how
  kept=$(mktemp -d)
  mkdir "$kept/all" && cp -r "$corpus" "build-fuzz/$target.corpus" "$kept/all/" 2>/dev/null # a run that goes on takes files away
  for how in 1 0; do
    rm -rf "$kept/few" && mkdir "$kept/few"
    # Leaks are looked for while fuzzing; after each of thousands of inputs that takes minutes.
    ASAN_OPTIONS=$ASAN_OPTIONS:detect_leaks=0 "build-fuzz/tests/fuzz/fuzz-$target" -merge=1 -set_cover_merge=1 \
      -use_counters="$how" -max_len="${longest[$target]}" "$kept/few" "$kept/all" >"build-fuzz/$target.merge.log" 2>&1 ||
      { echo "$target: the merge failed, see build-fuzz/$target.merge.log" >&2; return 1; }
    [ "$(ls "$kept/few" | wc -l)" -gt 400 ] || break
  done
  find "$corpus" -type f ! -name 'found-*' -delete
  cp "$kept"/few/* "$corpus/"
  rm -rf "$kept"
  echo "$target: $(ls "$corpus" | wc -l) inputs, $(cat "$corpus"/* | wc -c) bytes"
}
if $merge; then
  for target in "${targets[@]}"; do merge_corpus "$target" || exit 1; done
  exit 0
fi

export -f fuzz
for target in "${targets[@]}"; do
  while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n; done
  fuzz "$target" &
done
wait

# The lines that the corpora reach, old and new inputs together.
can_cover=$coverage
if $coverage && ! command -v llvm-cov-19 >/dev/null; then
  echo 'no coverage: llvm-cov-19 and llvm-profdata-19 are missing (package llvm-19)'
  can_cover=false
fi
if $can_cover; then
  export LLVM_PROFILE_FILE=/dev/null # what programs leave behind that run while this is set up and built
  configure build-fuzz-coverage clang++-19 "${common[@]}" -Doptimization=1 \
    '-Dcpp_args=-fprofile-instr-generate -fcoverage-mapping' -Dcpp_link_args=-fprofile-instr-generate || exit 1
  built=$(ninja -C build-fuzz-coverage -j "$jobs" $(programs) 2>&1) || { printf '%s\n' "$built" | tail -n 40; exit 1; }
fi
lines_reached() {
  local target=$1 program=build-fuzz-coverage/tests/fuzz/fuzz-$1 profile=build-fuzz-coverage/$1.prof
  LLVM_PROFILE_FILE=$profile.raw "$program" -runs=0 "tests/fuzz/corpus/$target" "build-fuzz/$target.corpus" \
    >/dev/null 2>&1 || return 1
  llvm-profdata-19 merge -o "$profile" "$profile.raw" &&
    llvm-cov-19 export -format=lcov -instr-profile="$profile" "$program" ${under_test[$target]} 2>/dev/null |
    python3 tests/fuzz/lines.py "${functions[$target]:-}" "${excluded[$target]:-}"
}

passed=0 failed=0
for target in "${targets[@]}"; do
  log=build-fuzz/$target.log
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  speed=$(sed -n 's/^stat::average_exec_per_sec: *//p' "$log")
  found=$(find "build-fuzz/$target.found" -type f | wc -l)
  reached=''
  if $can_cover; then reached=", lines $(lines_reached "$target" || echo unknown)"; fi
  echo "$target: ${runs:-?} executions, ${speed:-?} a second$reached, $found findings"
  if [ "$(cat "build-fuzz/$target.status")" -eq 0 ] && [ "$found" -eq 0 ]; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    tail -n 60 "$log"
  fi
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
