#!/usr/bin/env bash
# Runs the tests of the Python package on a machine with an NVIDIA GPU and torch with CUDA, and the example with a
# transformers model. The last line is `gpu: N passed, N failed, N skipped on DEVICE`.
#
#   python/gpu.sh --pack [PYTHON]  makes the wheel, with CUDA, for PYTHON (python3.12), into build-python-carry/
#   python/gpu.sh                  installs that wheel for this machine's python3, and runs everything: what has to do
#                                  with the device first, then the rest, and how long each file took
#   python/gpu.sh --two            only what has to do with the device, from one GPU to another
#   python/gpu.sh --only FILE...   only these files of tests (test_cuda.py, ...)
#   python/gpu.sh --run FILE ARG.. a program of Python's instead, a benchmark say
#
# The machine needs python3 of the version that the wheel was made for, torch, numpy and pytest, and nothing else: bring
# the repository and build-python-carry/ along.
set -euo pipefail
cd "$(dirname "$0")/.."
carry=$PWD/build-python-carry

mode=test only=() interpreter=python3.12
case "${1-}" in
  '') ;;
  --pack) mode=pack interpreter=${2-$interpreter} ;;
  --run) [ $# -gt 1 ] || { echo 'python/gpu.sh: --run needs a file' >&2; exit 2; }; mode=run ;;
  --two) mode=two ;;
  --only)
    [ $# -gt 1 ] || { echo 'python/gpu.sh: --only needs a file' >&2; exit 2; }
    shift
    only=("${@/#/python/tests/}") ;;
  *) sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac

if [ "$mode" = pack ]; then
  scripts/setup.sh
  . scripts/common.sh
  folder=$PWD/build-python
  version=$("$interpreter" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  [ -x "$folder/venv-$version/bin/python" ] || "$interpreter" -m venv "$folder/venv-$version"
  python=$folder/venv-$version/bin/python
  "$python" -m pip install -q --disable-pip-version-check meson-python nanobind
  rm -rf "$carry"
  CXX="${cached[*]} ${CXX:-g++}" PATH=$folder/venv-$version/bin:$PATH "$python" -m pip wheel -q \
    --disable-pip-version-check --no-build-isolation --no-deps -Cbuild-dir="$folder/build-$version" \
    -Csetup-args=-Dropeway:cuda=enabled -w "$carry" ./python
  git describe --always --dirty >"$carry/commit" 2>/dev/null || true
  echo "packed $(ls "$carry"/*.whl | xargs -n1 basename), $(du -sh "$carry" | cut -f1), in ${carry#"$PWD"/}/"
  exit
fi

wheel=$(ls "$carry"/*.whl 2>/dev/null | head -n 1) || true
[ -n "$wheel" ] || { echo 'python/gpu.sh: there is no build-python-carry/ with a wheel; make it with --pack' >&2; exit 1; }
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
python3 -m pip install -q --disable-pip-version-check --no-index --no-deps --target "$site" "$wheel"
export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH} PATH=$site/bin:$PATH PYTHONUNBUFFERED=1 CUDA_MODULE_LOADING=LAZY
if [ "$mode" = run ]; then
  shift
  python3 "$@"
  exit
fi
echo "running what was built elsewhere: $(cat "$carry/commit" 2>/dev/null || echo 'an unknown commit')"

device=$(python3 -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "no device")')
passed=0 failed=0 skipped=0 status=0
has() { python3 -c "import $1" 2>/dev/null; }
# tested NAME LIMIT ARGUMENT...: one run of pytest, whose numbers are added.
tested() {
  local report=$site/$1.xml limit=$2 status=0 good bad left
  shift 2
  if has pytest_timeout; then set -- --timeout=150 "$@"; fi
  timeout "$limit" python3 -X faulthandler -m pytest -c python/pyproject.toml -q -o cache_dir="$site/cache" \
    --junitxml "$report" "$@" || status=$?
  read -r good bad left <<<"$(python3 python/count.py "$report" || echo 0 1 0)"
  passed=$((passed + good)) failed=$((failed + bad)) skipped=$((skipped + left))
  [ "$status" -eq 0 ] || [ "$bad" -gt 0 ] || { failed=$((failed + 1)); echo "FAILED: pytest ended with $status"; }
  python3 python/count.py --files "$report" || true
}
started=$SECONDS
on_device=(test_cuda.py test_logits.py test_torch.py test_capture.py)
if [ "$mode" = two ]; then
  gpus=$(python3 -c 'import torch; print(torch.cuda.device_count())')
  [ "$gpus" -gt 1 ] || { echo "python/gpu.sh: --two needs two GPUs, there are $gpus" >&2; exit 77; }
  export ROPEWAY_TEST_RECEIVER_DEVICE=cuda:1
  tested two 500 python/tests/test_cuda.py python/tests/test_logits.py
  device="$device, two of them"
elif [ "${#only[@]}" -gt 0 ]; then
  tested only 500 "${only[@]}"
else
  tested device 300 "${on_device[@]/#/python/tests/}"
  echo "the device's tests: $((SECONDS - started)) s"
  started=$SECONDS rest=()
  for file in "${on_device[@]}"; do rest+=("--ignore=python/tests/$file"); done
  if has xdist; then rest+=(-n 6); fi # each test has an address of its own
  tested rest 240 "${rest[@]}" python/tests
  echo "the other tests: $((SECONDS - started)) s"
fi

# example NAME ENVIRONMENT...: both programs, with the logits of both compared after each version.
example() {
  local name=$1 socket=$site/socket/w.sock good=true started=$SECONDS
  shift
  rm -rf "$site/socket"
  env "$@" timeout 60 python3 samples/python/transformers_server.py --socket "$socket" >"$site/server.log" 2>&1 &
  local server=$!
  env "$@" timeout 60 python3 samples/python/torch_trainer.py --socket "$socket" --versions 5 || good=false
  wait "$server" || good=false
  cat "$site/server.log"
  echo "samples/python: $name: $((SECONDS - started)) s"
  if $good; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAILED: samples/python: $name"; fi
}
if [ "$mode" = test ] && [ "${#only[@]}" -eq 0 ] && python3 -c 'import transformers' 2>/dev/null; then
  example 'transformers'
  example 'transformers, expandable segments' PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True PYTORCH_ALLOC_CONF=expandable_segments:True
fi
python3 -m ropeway doctor || true
echo "gpu: $passed passed, $failed failed, $skipped skipped on $device"
[ "$failed" -eq 0 ]
