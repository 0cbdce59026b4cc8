#!/usr/bin/env python3
"""Adds up what `meson test` ran: doctest cases where a test prints them, else one for the test itself. A case that says
SKIPPED counts as skipped, be it that doctest knows passed and failed only.

    scripts/summarise_tests.py LABEL LOG [LABEL LOG]...      LOG: BUILD/meson-logs/testlog.json

Prints what failed and what was skipped, with the reason, then `N passed, N failed[, N skipped]`.
Exits 1 if anything failed, or if nothing ran.
"""
import json
import re
import sys

CASES = re.compile(r"\[doctest\] test cases:\s*(\d+)\s*\|\s*(\d+) passed\s*\|\s*(\d+) failed\s*\|")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def count(test):
    """(passed, failed, skipped, what to say about it)"""
    said = COLOUR.sub("", test.get("stdout") or "")
    result = test["result"]
    if result == "SKIP":
        lines = [line for line in said.splitlines() if line.strip()]
        return 0, 0, 1, "SKIPPED: " + (lines[-1].strip().removeprefix("SKIPPED: ") if lines else "no reason given")
    cases = [tuple(map(int, found)) for found in CASES.findall(said)]
    passed, failed = sum(c[1] for c in cases), sum(c[2] for c in cases)
    if result in ("OK", "EXPECTEDFAIL"):
        if not cases:
            return 1, 0, 0, ""
        if passed == 0:
            return 0, 1, 0, "FAILED: it holds no test case"
        # One that is run several times, by subcases, says it several times.
        reasons = sorted(set(re.findall(r"SKIPPED: .*", said)))
        skipped = min(len(reasons), passed)
        return passed - skipped, 0, skipped, "; ".join(reasons)
    # A crash, a leak or a timeout fails the test whatever its cases said.
    return passed, max(failed, 1), 0, f"FAILED: {result.lower()}, exit status {test.get('returncode')}"


def main(arguments):
    total = [0, 0, 0]
    for label, log in zip(arguments[::2], arguments[1::2]):
        try:
            with open(log, encoding="utf-8") as lines:
                tests = [json.loads(line) for line in lines if line.strip()]
        except OSError as problem:
            print(f"{label}: no test ran: {problem}")
            total[1] += 1
            continue
        sums = [0, 0, 0]
        for test in tests:
            *numbers, words = count(test)
            sums = [a + b for a, b in zip(sums, numbers)]
            if words:
                print(f"{label}: {test['name'].split('/')[-1].strip()}: {words}")
        print(f"{label}: {sums[0]} passed, {sums[1]} failed, {sums[2]} skipped")
        total = [a + b for a, b in zip(total, sums)]
    passed, failed, skipped = total
    if passed + failed == 0:
        print("no test ran")
        failed = 1
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
