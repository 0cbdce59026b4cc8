#!/usr/bin/env bash
# Swaps the weights of a serving inference server a hundred times, between three checkpoints in turn, while clients ask for
# embeddings and check every answer. Says how long answers took with swaps and without. Builds what it needs.
#
#   samples/inference_server/swaps.sh                                    all-MiniLM-L6-v2, which it fetches
#   samples/inference_server/swaps.sh CHECKPOINT VOCABULARY HEADS        another BERT
#
# SWAPS=100 CONNECTIONS=4 WORKERS=1 in the environment say how many of each, STEP_MS=0 how many milliseconds lie between
# swaps at least; BUILD names a build folder that is ready.
# Ends with `swaps: no failed request, no mixed answer` and status 0, or with another line and status 1.
set -euo pipefail

swaps=${SWAPS:-100} connections=${CONNECTIONS:-4} workers=${WORKERS:-1}
die() { echo "swaps: $*" >&2; exit 1; }
cd "$(dirname "$0")/../.."

work=$(mktemp -d)   # only for us (0700): ropeway's sockets must lie in such a place
children=()
cleanup() {
  local child
  for child in "${children[@]}"; do kill "$child" 2>/dev/null || true; done
  for child in "${children[@]}"; do wait "$child" 2>/dev/null || true; done
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

case $# in
  0)
    fetched=$(samples/fetch_model.sh)
    { read -r checkpoint; read -r vocabulary; } <<<"$fetched"
    heads=12 ;;
  3) checkpoint=$1 vocabulary=$2 heads=$3 ;;
  *) sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac

build=${BUILD:-}
if [ -z "$build" ]; then
  build=build-demo
  scripts/setup.sh
  . scripts/common.sh
  configure "$build" "${CXX:-g++}" -Dbuildtype=release -Dtests=false -Dsamples=true
  ninja -C "$build" samples/trainer samples/inference_server/inference_server samples/inference_server/inference_load \
    >"$work/ninja.out" 2>&1 || { tail -n 40 "$work/ninja.out" >&2; die "the build failed"; }
fi

# until_line FILE START: waits for a line that starts so.
until_line() {
  local deadline=$((SECONDS + 120))
  until grep -q "^$2" "$1" 2>/dev/null; do
    [ "$SECONDS" -lt "$deadline" ] || { tail -n 20 "$work"/*.err >&2; die "nothing said '$2' in time"; }
    sleep 0.05
  done
}

checkpoints=("$checkpoint" "$work/second.safetensors" "$work/third.safetensors")
for other in 1 2; do
  "$build/samples/inference_server/inference_load" variant "$checkpoint" "${checkpoints[other]}" "$other"
done
"$build/samples/inference_server/inference_server" --vocab "$vocabulary" --heads "$heads" --workers "$workers" --port 0 \
  --socket-dir "$work" --socket weights.sock >"$work/server.out" 2>"$work/server.err" &
server=$!
children+=("$server")
until_line "$work/server.out" 'listening on'
port=$(sed -n 's/^listening on .*:\([0-9]*\)$/\1/p' "$work/server.out")

# The first version, and then one for each swap.
versions=$((swaps + 1))
"$build/samples/inference_server/inference_load" check "$port" "$connections" "$versions" "$heads" "$vocabulary" \
  "${checkpoints[@]}" >"$work/load.out" 2>"$work/load.err" &
load=$!
children+=("$load")
until_line "$work/load.out" ready
"$build/samples/trainer" "$work/weights.sock" "$versions" 1 "${checkpoints[@]}" >"$work/trainer.out" 2>"$work/trainer.err" &
trainer=$!
children+=("$trainer")

wait "$trainer" || { cat "$work/trainer.err" >&2; die "the trainer failed"; }
status=0
wait "$load" || status=$?
cat "$work/load.err" >&2
grep -v '^ready$' "$work/load.out" || true
kill "$server"
wait "$server" || die "the server failed: $(tail -n 3 "$work/server.err")"
children=()
echo "swaps: $(grep -c 'serves version' "$work/server.err") versions of $(du -Lh "$checkpoint" | cut -f1) went live;" \
  "$(sed -n 's/.*serves version .* after \([0-9.]*\) ms$/\1/p' "$work/server.err" | sort -n |
     awk '{ took[NR] = $1 } END { printf "from acceptance to commit %.0f ms in the middle, %.0f ms at most", took[int((NR + 1) / 2)], took[NR] }')"
[ "$status" = 0 ] || die "requests failed, or answers were mixed"
echo "swaps: no failed request, no mixed answer"
