#!/usr/bin/env bash
# Lets train_probe take steps with nobody to send them to: its loss must fall with each.
#
#   tests/inference_server/losses.sh TRAIN_PROBE VOCABULARY CHECKPOINT HEADS STEPS
set -euo pipefail

folder=$(mktemp -d) # only for us: the socket must lie in such a place
trap 'rm -rf "$folder"' EXIT
"$1" "$folder/s" "$5" 0 "$4" "$2" "$3" | tee "$folder/said"
sed -n 's/^version [0-9]*: loss \([0-9.e-]*\),.*/\1/p' "$folder/said" |
  awk -v steps="$5" 'NR > 1 && $1 >= before { rose = 1 } { before = $1 } END { exit rose || NR != steps }' ||
  { echo "losses: not $5 of them, each less than the one before"; exit 1; }
