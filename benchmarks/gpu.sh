#!/usr/bin/env bash
# Everything that docs/performance.md shows of a GPU, in about four minutes: ropeway's routes, what others do, and the
# limits, each in turn with what it limits.
#
#   benchmarks/gpu.sh LINES.jsonl [PART...]
#
# Adds lines of JSON to the file (benchmarks/plot.py draws them), and prints a table of them last. Parts, by default all
# that the machine has GPUs for: routes adapter shards fan-out decode cold host peers two peers-two. Runs what is in
# build-carry/ (tests/gpu.sh --pack makes it), so that the machine need not have what ropeway is built with. A part that
# fails is named, and the others run all the same.
set -euo pipefail
[ $# -gt 0 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
case "$1" in /*) lines=$1 ;; *) lines=$PWD/$1 ;; esac
shift
cd "$(dirname "$0")/.."
[ -x build-carry/bin/ropeway-bench ] || tests/gpu.sh --pack
export LD_LIBRARY_PATH=$PWD/build-carry/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export CUDA_MODULE_LOADING=LAZY
gpus=$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null | wc -l || true)
[ "$gpus" -gt 0 ] || { echo 'benchmarks/gpu.sh: no GPU here' >&2; exit 77; }

parts=("$@")
if [ "${#parts[@]}" -eq 0 ]; then
  parts=(routes adapter shards fan-out decode cold host peers)
  [ "$gpus" -lt 2 ] || parts+=(two peers-two)
fi
failed=()
touch "$lines"

# bench SECONDS ARG...: one run, which may take so long.
bench() {
  local limit=$1 began=$SECONDS
  shift
  echo "== ropeway-bench $*"
  timeout -k 5 "$limit" build-carry/bin/ropeway-bench "$@" --json "$lines" 2>/tmp/bench-$$.err ||
    { tail -n 5 /tmp/bench-$$.err; failed+=("$*"); echo 'FAILED'; }
  echo "   ($((SECONDS - began)) s)"
}
others() {
  local began=$SECONDS
  echo "== peers.py $*"
  timeout -k 5 120 python3 benchmarks/peers.py --json "$lines" "$@" || failed+=("peers.py $*")
  echo "   ($((SECONDS - began)) s)"
}

# A build without the mapped route measures the others.
mapped=mapped both=mapped,staged
if ! timeout 20 build-carry/bin/ropeway-bench --model tiny --route mapped --device cuda:0 --repeats 1 --no-limits \
  --json /dev/null >/dev/null 2>/tmp/bench-$$.err; then
  echo "without the mapped route: $(tail -n 1 /tmp/bench-$$.err)"
  mapped=staged both=staged
fi
one=(--device cuda:0)
slice=(--model qwen3-30b-a3b --layers 12) # 4,719 tensors

# Each route by itself, in turn with its limit: what the other one leaves in caches and on the GPU is no part of it.
routes() {
  local way
  for way in ${both//,/ }; do
    bench 60 "${one[@]}" --route "$way" --model qwen3-0.6b
    bench 60 "${one[@]}" --route "$way" --model qwen3-8b
    bench 60 "${one[@]}" --route "$way" "${slice[@]}"
  done
  bench 60 "${one[@]}" --route staged --model qwen3-8b --bucket 1GiB
  bench 60 "${one[@]}" --route "$mapped" --model qwen3-8b --memory segments
  [ "$mapped" = staged ] || bench 60 "${one[@]}" --route mapped --model qwen3-8b --prepared
  [ "$mapped" = staged ] || bench 60 "${one[@]}" --route mapped "${slice[@]}" --prepared
}
adapter() {
  local way
  for way in ${both//,/ }; do bench 30 "${one[@]}" --route "$way" --adapter; done
  bench 30 "${one[@]}" --route "$mapped" --adapter --prepared
}
shards() { bench 60 "${one[@]}" --route "$mapped" --model qwen3-8b --shards 4; }
fan-out() {
  bench 60 "${one[@]}" --route "$mapped" --model qwen3-8b --layers 12 --fan-out 4
  bench 60 "${one[@]}" --route staged --model qwen3-8b --layers 12 --fan-out 4
}
decode() {
  local paces=unlimited
  [ "$mapped" = staged ] || paces=unlimited,blocks:32,blocks:16,blocks:8,rate:300,rate:250,rate:200,rate:100
  bench 90 "${one[@]}" --route "$mapped" --model qwen3-8b --decode --pace "$paces"
  [ "$mapped" = staged ] || for ring in 16MiB 64MiB 256MiB; do # which has no pace, but rings of any size
    bench 60 "${one[@]}" --route staged --model qwen3-8b --decode --bucket "$ring"
  done
}
cold() { bench 60 "${one[@]}" --route "$mapped" --model qwen3-0.6b --cold --repeats 3; }
host() {
  local way=host
  [ "$mapped" = staged ] || way=mapped,host
  bench 60 --device host --route "$way" --model qwen3-0.6b --check last
}
peers() {
  others --model qwen3-8b
  others "${slice[@]}"
}
two() {
  local far=(--device cuda:0 --receiver-device cuda:1) way
  for way in ${both//,/ }; do
    bench 60 "${far[@]}" --route "$way" --model qwen3-0.6b
    bench 60 "${far[@]}" --route "$way" --model qwen3-8b
    bench 60 "${far[@]}" --route "$way" "${slice[@]}"
  done
  bench 60 "${far[@]}" --route staged --model qwen3-8b --bucket 64MiB
  bench 30 "${far[@]}" --route "$both" --adapter
}
peers-two() {
  others --to 1 --model qwen3-8b
  others --to 1 "${slice[@]}"
}

for part in "${parts[@]}"; do
  case "$part" in
    routes | adapter | shards | fan-out | decode | cold | host | peers | two | peers-two) "$part" ;;
    *) echo "benchmarks/gpu.sh: no part $part" >&2; exit 2 ;;
  esac
done
rm -f /tmp/bench-$$.err
python3 benchmarks/plot.py table "$lines"
[ "${#failed[@]}" -eq 0 ] || printf 'failed: %s\n' "${failed[@]}"
echo "all of it took $SECONDS s on $(nvidia-smi --query-gpu=name --format=csv,noheader | sort | uniq -c | xargs), commit $(cat build-carry/commit 2>/dev/null || echo unknown)"
[ "${#failed[@]}" -eq 0 ]
