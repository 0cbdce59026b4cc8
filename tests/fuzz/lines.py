#!/usr/bin/env python3
"""Sums up an lcov report: `REACHED of LINES (PERCENT)`, then the lines that were missed.

    llvm-cov export -format=lcov ... | tests/fuzz/lines.py [FUNCTIONS [EXCLUDED]]

Both are regular expressions over demangled names (names that c++filt can't read stay as they are). If there is one
of FUNCTIONS, only lines of functions that match it count; lines of functions that match EXCLUDED never do.
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
    wanted, excluded = (re.compile(a) if a else None for a in (sys.argv[1:] + ["", ""])[:2])
    reached = lines = 0
    missed = []
    for record in sys.stdin.read().split("end_of_record"):
        file = re.search(r"^SF:(.*)$", record, re.MULTILINE)
        if not file:
            continue
        counts = {int(a): int(b) for a, b in re.findall(r"^DA:(\d+),(\d+)", record, re.MULTILINE)}
        starts = re.findall(r"^FN:(\d+),(.*)$", record, re.MULTILINE)
        names = demangled([name for _, name in starts])
        if wanted:
            inside = lines_of(starts, names, wanted, counts)
            counts = {n: c for n, c in counts.items() if n in inside}
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
