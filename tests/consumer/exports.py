#!/usr/bin/env python3
"""Looks at what a shared library of ropeway exports.

    tests/consumer/exports.py LIBRARY [--self-test]

- Its own names are those that the public headers mark with ROPEWAY_API, with their members: no other class, function
  or namespace of ropeway, and nothing without a namespace.
- What comes along from templates and inline functions of others is weak, so that a program which has them too shares
  them, and belongs to the standard library, Asio or Boost.System.
- Exceptions can be caught, and Asio's services and call stacks are one with the user's: what that takes is there.

One line for each complaint; the last line is `N passed, N failed`, counting symbols and what must be there.
"""
import pathlib
import re
import subprocess
import sys

MARKED = re.compile(r"^(?:class|struct) ROPEWAY_API (\w+)|^ROPEWAY_API [^;{(]*?(\w+)\(", re.MULTILINE)
# _Z, what is special about it (a vtable, a typeinfo, a thunk, a guard), Z for something in a function, N for a nested
# name, qualifiers, and then the names.
MANGLED = re.compile(r"_Z(?:T[VIST]|T[hv]n?\d+_(?:n?\d+_)?|GV|GR)?Z*(N?)([rVKRO]*)(St|S[absiod])?((?:\d+.*)?)")
FOREIGN = {"std", "__gnu_cxx", "asio", "boost::system"}
# Asio's customisation points (require, prefer, execute) and hooks lie in namespaces of their own beside `asio`. An
# optimised build inlines them all; one without optimisation exports what it instantiated.
OF_ASIO = re.compile(r"asio_\w+_(?:fn|helpers)")
# And what has no namespace: the start of Asio's threads; new and delete in place, from <new>.
WITHOUT = {"asio_detail_posix_thread_function", "_ZnwmPv", "_ZdlPvS_"}
NEEDED = {
    "_ZTIN7ropeway14transfer_errorE": "transfer_error can be caught",
    "_ZTIN7ropeway11send_failedE": "send_failed can be caught",
    r"_ZN4asio6detail10call_stackI.*E4top_E": "both sides know which thread runs the loop",
    r"_ZN4asio6detail30execution_context_service_baseINS0_9schedulerEE2idE": "both sides mean the same services",
}


def names(mangled):
    """The first two of a mangled symbol's names: ("ropeway", "sender"). None for a symbol of C."""
    found = MANGLED.match(mangled)
    if not found:
        return None
    result = ["std"] if found.group(3) else []
    rest = found.group(4)
    while len(result) < 2 and (number := re.match(r"\d+", rest)):
        begin = number.end()
        end = begin + int(number.group())
        result.append(rest[begin:end])
        if not found.group(1) and not found.group(3):
            break  # a function outside of every namespace
        rest = rest[end:]
    return tuple(result)


def check(symbols, marked):
    """`symbols` are (kind, mangled name); gives how many are right, and complaints."""
    passed, complaints = 0, []
    for kind, symbol in symbols:
        where = names(symbol)
        weak = kind in "WVuvw"
        if where and where[0] == "ropeway":
            right = len(where) > 1 and where[1] in marked
        else:
            foreign = where and ({where[0], "::".join(where)} & FOREIGN or OF_ASIO.fullmatch(where[0]))
            right = weak and bool(foreign or symbol in WITHOUT)
        if right:
            passed += 1
        else:
            complaints.append(f"exported, but not meant to be: {kind} {symbol}")
    for pattern, why in NEEDED.items():
        if any(re.fullmatch(pattern, symbol) for _, symbol in symbols):
            passed += 1
        else:
            complaints.append(f"not exported: {pattern} ({why})")
    return passed, complaints


def demangled(lines):
    done = subprocess.run(["c++filt"], input="\n".join(lines), capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def self_test(symbols, marked):
    """Each rule is broken once, and noticed."""
    bad = [("T", "ropeway_main"), ("W", "helper"), ("T", "_ZN7ropeway4wire6listen"), ("T", "_ZN7ropeway6detail4coreC1Ev"),
           ("V", "_ZTIN7ropeway8protocol5beginE"), ("T", "_ZNK7ropeway10read_state4sizeEv"), ("T", "_Z5helloi"),
           ("T", "_ZN4asio10io_context3runEv"), ("W", "_ZN5boost4json5value3getEv"), ("T", "_ZN14asio_prefer_fn4implclEv"),
           ("W", "_ZN11asio_helper4callEv")]
    failed = 0
    for symbol in bad:
        if len(check(symbols + [symbol], marked)[1]) != len(check(symbols, marked)[1]) + 1:
            print(f"self-test: not noticed: {symbol}")
            failed += 1
    for pattern in NEEDED:
        fewer = [one for one in symbols if not re.fullmatch(pattern, one[1])]
        if not any(pattern in complaint for complaint in check(fewer, marked)[1]):
            print(f"self-test: not missed: {pattern}")
            failed += 1
    print(f"{len(bad) + len(NEEDED) - failed} passed, {failed} failed")
    return 1 if failed else 0


def main(arguments):
    root = pathlib.Path(__file__).resolve().parent.parent.parent
    marked = set()
    for header in (root / "include/ropeway").glob("*.hpp"):
        for pair in MARKED.findall(header.read_text(encoding="utf-8")):
            marked |= set(pair) - {""}
    library = arguments[0]
    listed = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    # "ADDRESS KIND NAME", and NAME has no version.
    symbols = [(kind, name.split("@")[0]) for _, kind, name in (line.split() for line in listed.splitlines())]
    if arguments[1:] == ["--self-test"]:
        return self_test(symbols, marked)
    passed, complaints = check(symbols, marked)
    print(*demangled(complaints), sep="\n", end="\n" if complaints else "")
    print(f"{passed} passed, {len(complaints)} failed")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
