#!/usr/bin/env python3
"""Prints how many tests passed, failed and were skipped, from the XML files that pytest wrote: three numbers.

    python/count.py TESTS.xml...           the numbers
    python/count.py --files TESTS.xml...   a table of files and how long each took, instead
"""
import sys
import xml.etree.ElementTree

arguments = sys.argv[1:]
files = arguments[:1] == ["--files"]
suites = [suite for name in arguments[files:] for suite in xml.etree.ElementTree.parse(name).getroot().iter("testsuite")]
if files:
    took = {}
    for suite in suites:
        for case in suite.iter("testcase"):
            name = (case.get("classname") or "").rpartition("tests.")[2] or case.get("name") or "interrupted"
            tests, skipped, seconds = took.get(name, (0, 0, 0.0))
            took[name] = (tests + 1, skipped + (case.find("skipped") is not None), seconds + float(case.get("time")))
    for name, (tests, skipped, seconds) in sorted(took.items(), key=lambda one: -one[1][2]):
        print(f"{seconds:7.1f} s  {name}.py: {tests} tests{f', {skipped} skipped' if skipped else ''}")
else:
    failed = sum(int(suite.get("failures")) + int(suite.get("errors")) for suite in suites)
    skipped = sum(int(suite.get("skipped")) for suite in suites)
    print(sum(int(suite.get("tests")) for suite in suites) - failed - skipped, failed, skipped)
