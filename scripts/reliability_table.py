#!/usr/bin/env python3
"""Turns what test-matrix --json wrote into the table of docs/reliability.md, or of docs/reliability-cuda.md.

    scripts/reliability_table.py [--page FILE] [--command TEXT] [--run-on TEXT] JSON...

The lines of all files together are one table: shards of one run, say, or what was played on several days. Of a cell that was
played more than once the last line counts. Where the lines name several commits, a letter after each entry says of which its
cells are. The table replaces what stands in the page between the markers, or is printed without --page. Machine and date are of
here and now, unless --run-on says where and when it was. The exit status is 1 if a cell failed.
"""
import argparse
import collections
import datetime
import json
import os
import pathlib
import platform
import re
import sys

BEGIN, END = "<!-- matrix: begin -->", "<!-- matrix: end -->"
VICTIMS = ("sender", "sender with a child", "one of three", "one of a group", "all")
SIGNALS = ("KILL", "STOP")
VERBS = ("heard", "say", "said", "event", "do", "did")


def read(files):
    cells = {}
    for name in files:
        with open(name, encoding="utf-8") as lines:
            for line in lines:
                if line.strip():
                    cell = json.loads(line)
                    place = tuple(cell[key] for key in ("transition", "passing", "signal", "victim", "scenario", "route"))
                    cells[place] = cell
    return list(cells.values())


def letters(cells):
    """One for each commit, those with the fewest cells last; none if all are of one."""
    commits = [commit for commit, _ in collections.Counter(cell["commit"] for cell in cells).most_common()]
    return {commit: chr(ord("a") + number) if len(commits) > 1 else "" for number, commit in enumerate(commits)}


def of_commits(cells, letter):
    counts = collections.Counter(cell["commit"] for cell in cells)
    if len(counts) == 1:
        return f"Commit {next(iter(counts))}"
    return "Commits " + ", ".join(f"{commit} (*{letter[commit]}*, {count})" for commit, count in counts.most_common())


def routes(cells):
    """How many cells took which."""
    taken = collections.Counter(cell["route"] for cell in cells)
    if len(taken) == 1:
        return f"route {next(iter(taken))}"
    return "routes " + ", ".join(f"{route} ({count})" for route, count in taken.most_common())


def order(transition):
    side, verb, rest = re.match(r"(\w+): (\w+) (.*)", transition).groups()
    return side == "receiver", VERBS.index(verb), rest


def entry(cells, letter):
    """One place of the table: the cells of one transition, victim and signal, which differ in route and passing."""
    if not cells:
        return ""
    if any(cell["result"] != "ok" for cell in cells):
        return "**FAIL**"
    slowest = {}
    for cell in cells:
        for survivor, took in cell["ms"].items():
            slowest[survivor] = max(took, slowest.get(survivor, 0))
    ordered = sorted(slowest, key=lambda name: (name != "sender", name))
    of = "".join(sorted({letter[cell["commit"]] for cell in cells}))
    return " ".join([*(f"{slowest[name]:.0f}" for name in ordered), "ok", *([f"*{of}*"] if of else [])])


def table(cells, letter):
    places = {}
    for cell in cells:
        places.setdefault((cell["transition"], cell["victim"], cell["signal"]), []).append(cell)
    columns = [(victim, signal) for victim in VICTIMS for signal in SIGNALS]
    rows = ["| transition | routes | " + " | ".join(f"{victim}, {signal}" for victim, signal in columns) + " |",
            "|---|---|" + "---|" * len(columns)]
    for transition in sorted({cell["transition"] for cell in cells}, key=order):
        taken = ", ".join(sorted({cell["route"] for cell in cells if cell["transition"] == transition}))
        shown = (entry(places.get((transition, *column), []), letter) for column in columns)
        rows.append(f"| {transition} | {taken} | " + " | ".join(shown) + " |")
    return rows


def text(cells, command, run_on):
    failed = sum(cell["result"] != "ok" for cell in cells)
    letter = letters(cells)
    head = (f"{of_commits(cells, letter)}, {run_on}, {routes(cells)}, `{command}`: "
            f"{len(cells)} cells, {failed} failed.")
    return "\n".join([BEGIN, head, "", *table(cells, letter), END])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("files", nargs="+", metavar="JSON")
    parser.add_argument("--page", type=pathlib.Path)
    parser.add_argument("--command", default="test-matrix")
    parser.add_argument("--run-on", default=f"{datetime.date.today().isoformat()}, {os.cpu_count()} cores, "
                                            f"Linux {platform.release()}")
    options = parser.parse_args()
    cells = read(options.files)
    if not cells:
        sys.exit("reliability_table.py: there are no lines")
    made = text(cells, options.command, options.run_on)
    if options.page:
        page = options.page.read_text(encoding="utf-8")
        if page.count(BEGIN) != 1 or page.count(END) != 1:
            sys.exit(f"reliability_table.py: {options.page} has not one pair of markers")
        before, rest = page.split(BEGIN)
        options.page.write_text(before + made + rest.split(END)[1], encoding="utf-8")
    else:
        print(made)
    return 1 if any(cell["result"] != "ok" for cell in cells) else 0


if __name__ == "__main__":
    sys.exit(main())
