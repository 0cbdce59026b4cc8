#!/usr/bin/env bash
# Fuzzes what reads bytes from others: builds the targets with clang 19, AddressSanitizer and
# UndefinedBehaviorSanitizer in build-fuzz, and runs each from the corpus in tests/fuzz/corpus. Prints a line a target:
# executions, the coverage of the lines under test, findings. The last line is `N passed, N failed`.
#
#   tests/fuzz/run.sh [--seconds N | --runs N] [--within N] [--seed N] [--jobs N] [--parts N] [--no-coverage] [--bare]
#                     [TARGET...]
#
#   --seconds N     each target for so long (default 60); --runs N: for so many executions
#   --within N      all of it ends within N seconds: whoever is not done by then says how far it came, and failed
#   --seed N        the same inputs each time, with --runs and one part (default: others each time)
#   --jobs N        processes at once (default: one a core)
#   --parts N       a target's executions in so many processes, whose counts add up (default 1; with --packed: --jobs)
#   --bare          without sanitizers and in build-fuzz-bare: six times as many executions, of which what a target itself
#                   promises is held: for the two machines (sender receiver), which touch no memory but their own
#   TARGET          message placement header index receiver manifest datagram sender (default: all, in this order)
#
# What is found lies in build-fuzz/TARGET.found/, new inputs in build-fuzz/TARGET.corpus/.
# tests/fuzz/run.sh --merge puts what adds coverage into tests/fuzz/corpus, as small as it can.
# tests/fuzz/run.sh --lines only prints the lines that these inputs reach.
#
# For a machine without a compiler: --pack builds, and puts the programs and what they need besides the C and C++
# libraries into build-fuzz-carry/. Bring that and the sources along, and there `tests/fuzz/run.sh --packed ...` runs them; all that it
# writes lies in build-fuzz-carry/ as well. Lines are counted where the compiler is: put its TARGET.corpus folders into
# build-fuzz/, and run --lines.
set -uo pipefail
cd "$(dirname "$0")/../.."

# The quick ones first: with --within, what is left is for those that take long.
all_targets=(message placement header index receiver manifest datagram sender)
seconds=60 runs='' within='' seed=''
jobs=$(nproc)
parts=''
coverage=true
mode=fuzz
packed=false bare=false
targets=()
while [ $# -gt 0 ]; do
  case "$1" in
    --seconds) seconds=$2; shift ;;
    --runs) runs=$2; shift ;;
    --within) within=$2; shift ;;
    --seed) seed=$2; shift ;;
    --jobs) jobs=$2; shift ;;
    --parts) parts=$2; shift ;;
    --no-coverage) coverage=false ;;
    --merge | --lines | --pack) mode=${1#--} ;;
    --packed) packed=true ;;
    --bare) bare=true ;;
    -*) sed -n '2,25s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    *) targets+=("$1") ;;
  esac
  shift
done
[ "${#targets[@]}" -gt 0 ] || targets=("${all_targets[@]}")
for target in "${targets[@]}"; do
  [[ " ${all_targets[*]} " == *" $target "* ]] || { echo "tests/fuzz/run.sh: no target $target" >&2; exit 2; }
done

# The longest input: what is interesting is short.
declare -A longest=([message]=600 [manifest]=400 [placement]=400 [header]=500 [index]=400 [datagram]=160 [sender]=160 [receiver]=160)
# The files whose lines must be reached.
declare -A under_test=(
  [message]='src/protocol/codec.cpp src/base/codec.hpp src/protocol/text.hpp'
  [manifest]='src/plan/manifest.cpp src/plan/copies.cpp src/plan/destination.cpp src/plan/boxes.cpp src/plan/strided.cpp src/base/utf8.hpp'
  [placement]='src/plan/placement.cpp'
  [header]='src/checkpoint/header.cpp src/checkpoint/header_listener.cpp src/checkpoint/json_events.cpp'
  [index]='src/checkpoint/index.cpp src/checkpoint/json_events.cpp'
  [datagram]='src/wire/socket.cpp src/wire/connection.cpp src/memory/host/region.cpp'
  [sender]='src/protocol/sender_machine.cpp src/protocol/sender src/plan/slot_ledger.cpp'
  [receiver]='src/protocol/receiver_machine.cpp src/protocol/receiver')
# What never runs, or never because of what anybody else does, and so does not count:
#  message   the hash over the spelling of all messages (schema) is worked out by the compiler, as is the least size of
#            each type, which for_each_member_type is for
#  manifest, placement  BOOST_DESCRIBE_STRUCT declares functions (boost_*_descriptor_fn) of which only the types are looked at
#  datagram  what a peer has no part in, and tests/wire and tests/memory try: connecting (make_socket, connect_now, connect,
#            passing_reason), waiting on an event loop (wait_for, send_on, connection::send, readable, only_one), making
#            memory (make_region, reserve, no_memory, reason)
declare -A excluded=(
  [message]='codec::detail::schema::|6schema3add|codec::schema_hash<|for_each_member_type'
  [manifest]='boost_[a-z_]*descriptor_fn'
  [placement]='boost_[a-z_]*descriptor_fn'
  [datagram]='wire::make_socket|wire::connect_now|wire::(\(anonymous namespace\)::)?connect\(|passing_reason|wait_for|send_on|connection::send\(|connection::readable|only_one|make_region|reserve\(|no_memory|host::(\(anonymous namespace\)::)?reason')

carry=build-fuzz-carry
place=build-fuzz # where what a run writes lies
programs=build-fuzz/tests/fuzz
. scripts/common.sh
if $packed; then
  [ "$mode" = fuzz ] || { echo "tests/fuzz/run.sh: --$mode needs the compiler" >&2; exit 2; }
  [ -d "$carry/bin" ] || { echo "tests/fuzz/run.sh: there is no $carry/; make it with --pack" >&2; exit 2; }
  place=$carry programs=$carry/bin coverage=false
  parts=${parts:-$jobs}
  export LD_LIBRARY_PATH=$PWD/$carry/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  echo "running what was built elsewhere: $(cat "$carry/commit" 2>/dev/null || echo 'an unknown commit')"
else
  command -v clang++-19 >/dev/null || { echo 'tests/fuzz/run.sh: clang 19 is missing (clang-19)' >&2; exit 2; }
  common=(-Dfuzzing=true -Dcuda=disabled -Dsamples=false -Doptimization=2 -Ddebug=true -Db_lundef=false)
  made() { printf 'tests/fuzz/fuzz-%s\n' "${targets[@]}"; }
fi
sanitizers=address,undefined
if $bare; then
  [ "$mode" = fuzz ] && ! $packed || { echo 'tests/fuzz/run.sh: --bare is for fuzzing here' >&2; exit 2; }
  place=build-fuzz-bare programs=build-fuzz-bare/tests/fuzz coverage=false sanitizers=none
fi
if ! $packed && [ "$mode" != lines ]; then
  # Libraries go into the programs, so that these can travel.
  configure "$place" clang++-19 "${common[@]}" -Db_sanitize="$sanitizers" -Dprefer_static=true \
    "-Dcpp_args=-g1 -D_GLIBCXX_ASSERTIONS -fsanitize=fuzzer-no-link -fno-sanitize-recover=all" || exit 1
  built=$(ninja -C "$place" -j "$jobs" $(made) 2>&1) || { printf '%s\n' "$built" | tail -n 40; exit 1; }
fi
parts=${parts:-1}

if [ "$mode" = pack ]; then
  rm -rf "$carry"
  mkdir -p "$carry"/{bin,lib}
  # Libraries that every system has; a program built on an older system runs with newer ones.
  of_the_system='^(linux-vdso|ld-linux.*|libc|libm|libdl|librt|libpthread|libresolv|libstdc\+\+|libgcc_s)\.so'
  for target in "${targets[@]}"; do
    strip --strip-debug -o "$carry/bin/fuzz-$target" "build-fuzz/tests/fuzz/fuzz-$target"
    while read -r library; do
      cp -Lu "$library" "$carry/lib/"
    done < <(ldd "$carry/bin/fuzz-$target" | awk '$3 ~ /^\// { print $1, $3 }' | grep -vE "$of_the_system" | cut -d' ' -f2)
  done
  git describe --always --dirty >"$carry/commit" 2>/dev/null || true
  echo "packed ${#targets[@]} programs, $(du -sh "$carry" | cut -f1), in $carry/"
  exit 0
fi

# Short memories: what a finding allocated long ago, and from where, its replay says. The fuzzer's own look for leaks,
# after inputs, counts every allocation; the sanitizer's, at the end of the process, sees the same ones, but only those
# whose caller it knows: with a malloc_context_size below 2 there are no leaks.
quick=detect_stack_use_after_return=0:malloc_context_size=3:quarantine_size_mb=16:max_allocation_size_mb=3000
export ASAN_OPTIONS=$ASAN_OPTIONS:$quick
ended_by() { [ -z "$within" ] || echo $((within - SECONDS)); }

# fuzz TARGET PART: what libFuzzer prints at its end has the counts. Neither -max_total_time nor -runs is an error.
fuzz() {
  local target=$1 part=$2 log=$place/$1.$2.log limits=() left
  [ ! -e "tests/fuzz/$target.dict" ] || limits+=(-dict="tests/fuzz/$target.dict")
  left=$(ended_by)
  if [ -n "$runs" ]; then
    # The first ones do what can't be split.
    limits+=(-runs=$((runs / parts + (part <= runs % parts))))
    [ -z "$left" ] || limits+=(-max_total_time="$left")
  else
    [ -n "$left" ] && [ "$left" -lt "$seconds" ] || left=$seconds
    limits+=(-max_total_time="$left")
  fi
  if [ -n "$left" ] && [ "$left" -le 0 ]; then echo 0 >"$place/$target.$part.status"; return; fi
  # With a seed all is as it was the last time, so nobody looks at what others find meanwhile.
  if [ -n "$seed" ]; then limits+=(-seed=$((seed + part - 1)) -reload=0); fi
  local began=${EPOCHREALTIME/[.,]/}
  ${left:+timeout -k 5 $((left + 15))} "$programs/fuzz-$target" "${limits[@]}" \
    -max_len="${longest[$target]}" -entropic=0 -timeout=20 -rss_limit_mb=3000 -detect_leaks=0 -print_final_stats=1 \
    -artifact_prefix="$place/$target.found/" "$place/$target.corpus" "tests/fuzz/corpus/$target" >"$log" 2>&1
  echo $? >"$place/$target.$part.status"
  echo $((${EPOCHREALTIME/[.,]/} - began)) >"$place/$target.$part.took"
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
if [ "$mode" = merge ]; then
  for target in "${targets[@]}"; do merge_corpus "$target" || exit 1; done
  exit 0
fi

# Where the sanitizer may not look at its own process, it fails each run for that.
if [ "$mode" = fuzz ] && "$programs/fuzz-${targets[0]}" -runs=1 2>&1 | grep -q 'LeakSanitizer has encountered a fatal error'; then
  echo 'leaks: not looked for, LeakSanitizer does not run here'
  export ASAN_OPTIONS=$ASAN_OPTIONS:detect_leaks=0
fi

if [ "$mode" = fuzz ]; then
  touch "$place/began" # what was found earlier is older
  for target in "${targets[@]}"; do
    mkdir -p "$place/$target.corpus" "$place/$target.found"
    rm -f "$place/$target".*.{log,status,took}
    for ((part = 1; part <= parts; ++part)); do
      while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n; done
      fuzz "$target" "$part" &
    done
  done
  wait
fi

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
  built=$(ninja -C build-fuzz-coverage -j "$jobs" $(made) 2>&1) || { printf '%s\n' "$built" | tail -n 40; exit 1; }
fi
lines_reached() {
  local target=$1 program=build-fuzz-coverage/tests/fuzz/fuzz-$1 profile=build-fuzz-coverage/$1.prof
  mkdir -p "build-fuzz/$target.corpus"
  LLVM_PROFILE_FILE=$profile.raw "$program" -runs=0 "tests/fuzz/corpus/$target" "build-fuzz/$target.corpus" \
    >/dev/null 2>&1 || return 1
  llvm-profdata-19 merge -o "$profile" "$profile.raw" &&
    llvm-cov-19 export -format=lcov -instr-profile="$profile" "$program" ${under_test[$target]} 2>/dev/null |
    python3 tests/fuzz/lines.py "${excluded[$target]:-}"
}

# What all parts of a target say together: `EXECUTIONS A_SECOND`. One that was killed says how far it was at last.
counts() {
  local log sum=0 rate=0 number
  for log in "$place/$1".*.log; do
    [ -e "$log" ] || continue
    number=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    [ -n "$number" ] || number=$(sed -nE 's/^#([0-9]+)[^0-9].*/\1/p' "$log" | tail -n 1)
    sum=$((sum + ${number:-0}))
    rate=$((rate + ${number:-0} * 1000000 / $(cat "${log%.log}.took")))
  done
  echo "$sum $rate"
}

passed=0 failed=0
for target in "${targets[@]}"; do
  reached=''
  if $can_cover; then reached=", lines $(lines_reached "$target" || echo unknown)"; fi
  if [ "$mode" = lines ]; then
    echo "$target$reached"
    passed=$((passed + 1))
    continue
  fi
  read -r executions speed <<<"$(counts "$target")"
  found=$(find "$place/$target.found" -type f -newer "$place/began" | wc -l)
  older=$(find "$place/$target.found" -type f ! -newer "$place/began" | wc -l)
  status=$(cat "$place/$target".*.status | sort -n | tail -n 1)
  echo "$target: $executions executions, $speed a second$([ "$parts" -eq 1 ] || echo " in $parts processes")$reached," \
    "$found findings$([ "$older" -eq 0 ] || echo " ($older of earlier runs in $place/$target.found)")"
  if [ "$status" -eq 0 ] && [ "$found" -eq 0 ] && [ "$executions" -ge "${runs:-1}" ]; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    if [ "$status" -eq 0 ] && [ "$found" -eq 0 ]; then
      echo "$target: the time was up"
    else
      for log in "$place/$target".*.log; do
        # Those that ended well have nothing to tell.
        [ "$(cat "${log%.log}.status")" -eq 0 ] || { echo "-- $log"; tail -n 60 "$log"; }
      done
    fi
  fi
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
