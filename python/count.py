#!/usr/bin/env python3
"""Prints how many tests passed, failed and were skipped, from the XML file that pytest wrote."""
import sys
import xml.etree.ElementTree

suite = next(xml.etree.ElementTree.parse(sys.argv[1]).getroot().iter("testsuite"))
failed = int(suite.get("failures")) + int(suite.get("errors"))
skipped = int(suite.get("skipped"))
print(int(suite.get("tests")) - failed - skipped, failed, skipped)
