#!/usr/bin/env python3
"""Sums up an lcov report: `REACHED of LINES (PERCENT)`, then the lines that were missed.

    llvm-cov export -format=lcov ... | tests/fuzz/lines.py [EXCLUDED]

EXCLUDED is a regular expression over demangled names (names that c++filt can't read stay as they are): lines of
functions that match it don't count. Whatever else is in the report does, a function that is new there too.
"""
import re
import subprocess
import sys


def demangled(names):
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return dict(zip(names, text.splitlines()))


def lines_of(starts, names, chosen, counts):
    """The lines from the start of a function whose every instance is chosen up to the next function."""
    at = {}
    for line, name in starts:
        at.setdefault(int(line), []).append(names[name])
    order = sorted(at) + [1 << 30]
    inside = set()
    for i, line in enumerate(order[:-1]):
        if all(chosen.search(name) for name in at[line]):
            inside |= {n for n in counts if line <= n < order[i + 1]}
    return inside


def main():
    excluded = re.compile(sys.argv[1]) if sys.argv[1:] and sys.argv[1] else None
    reached = lines = 0
    missed = []
    for record in sys.stdin.read().split("end_of_record"):
        file = re.search(r"^SF:(.*)$", record, re.MULTILINE)
        if not file:
            continue
        counts = {int(a): int(b) for a, b in re.findall(r"^DA:(\d+),(\d+)", record, re.MULTILINE)}
        starts = re.findall(r"^FN:(\d+),(.*)$", record, re.MULTILINE)
        names = demangled([name for _, name in starts])
        if excluded:
            outside = lines_of(starts, names, excluded, counts)
            counts = {n: c for n, c in counts.items() if n not in outside}
        lines += len(counts)
        reached += sum(c > 0 for c in counts.values())
        missed += [f"{'/'.join(file[1].split('/')[-2:])}:{n}" for n, c in sorted(counts.items()) if c == 0]
    print(f"{reached} of {lines} ({100 * reached / max(lines, 1):.1f} %)")
    if missed:
        print("missed: " + " ".join(missed), file=sys.stderr)


main()
