#!/usr/bin/env python3
"""Sums up an lcov report: `REACHED of LINES (PERCENT)`, then the lines that were missed.

    llvm-cov export -format=lcov ... | tests/fuzz/lines.py [FUNCTIONS]

FUNCTIONS is a regular expression over demangled names: only lines of functions that match count.
"""
import re
import subprocess
import sys


def demangled(names):
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return dict(zip(names, text.splitlines()))


def main():
    wanted = re.compile(sys.argv[1]) if len(sys.argv) > 1 and sys.argv[1] else None
    reached = lines = 0
    missed = []
    for record in sys.stdin.read().split("end_of_record"):
        file = re.search(r"^SF:(.*)$", record, re.MULTILINE)
        if not file:
            continue
        counts = {int(a): int(b) for a, b in re.findall(r"^DA:(\d+),(\d+)", record, re.MULTILINE)}
        if wanted:
            starts = re.findall(r"^FN:(\d+),(.*)$", record, re.MULTILINE)
            names = demangled([name for _, name in starts])
            order = sorted({int(line) for line, _ in starts}) + [1 << 30]
            inside = set()
            for line, name in starts:
                if wanted.search(names[name]):
                    after = order[order.index(int(line)) + 1]
                    inside |= {n for n in counts if int(line) <= n < after}
            counts = {n: c for n, c in counts.items() if n in inside}
        lines += len(counts)
        reached += sum(c > 0 for c in counts.values())
        missed += [f"{'/'.join(file[1].split('/')[-2:])}:{n}" for n, c in sorted(counts.items()) if c == 0]
    print(f"{reached} of {lines} ({100 * reached / max(lines, 1):.1f} %)")
    if missed:
        print("missed: " + " ".join(missed), file=sys.stderr)


main()
