#!/usr/bin/env python3
"""Prints what AddressSanitizer has found in the extension: python/sanitized.py FOLDER, where it has left a file for each
process. Fails if it has found anything.

Leaks count whose memory the extension or the library in it has asked for. Python leaves some of its own to the end of the
process, numpy as well, and what they ask for on the extension's behalf can't be told from that: objects of the extension's types
are counted by nanobind itself, which says so at the end of a process.
"""
import pathlib
import re
import sys


RUNTIME = re.compile(r"/lib(asan|stdc\+\+|gcc_s|c)\.so")


def is_ours(leak: str) -> bool:
    """Whether the extension has asked for the memory, by itself or through the runtime of C++."""
    frames = [line for line in leak.splitlines() if line.lstrip().startswith("#") and not RUNTIME.search(line)]
    return bool(frames) and "/_core." in frames[0]


def found(report: str) -> "list[str]":
    """Its parts that are about the extension."""
    if "LeakSanitizer" not in report:
        return [report]
    # A child of a fork has none of its parent's threads any more, and what only they know of is said to be leaked.
    if "False leaks are possible" in report:
        return []
    return [part for part in report.split("\n\n") if re.match(r"(Direct|Indirect) leak of", part) and is_ours(part)]


bad = [part for file in sorted(pathlib.Path(sys.argv[1]).iterdir()) for part in found(file.read_text(errors="replace"))]
print("\n\n".join(bad))
sys.exit(bool(bad))
