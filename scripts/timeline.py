#!/usr/bin/env python3
"""Reads what `ropeway ... --trace FILE.json` or ropeway::trace_recorder has written.

    scripts/timeline.py FILE.json                       checks the format, and says how far packing and loading overlap
    scripts/timeline.py FILE.json --picture FILE.svg    draws a version: a band for each process, a line for each stage

    --version N         which version (default: the last); of several updates with that number the last
    --buckets A-B       only so much of it: from the begin of the first of these buckets' packing to the last one's load
    --title TEXT        above the picture

The overlap is computed from the intervals: of the time in which bucket k is loaded, how much is also time in which
bucket k+1 or a later one is packed.
"""
import argparse
import json
import re
import sys
from xml.sax.saxutils import escape

# Told apart by eyes that see no red and green too.
COLOURS = {"announce": "#999933", "decide": "#bbbbbb", "map": "#aa4499", "source": "#56b4e9", "pack": "#0072b2",
           "relay": "#cc79a7", "publish": "#e69f00", "wait": "#dddddd", "load": "#009e73",
           "digest": "#f0e442", "commit": "#d55e00"}
ORDER = tuple(COLOURS)
WIDTH, LEFT, RIGHT, TOP, LINE, GAP = 960, 90, 36, 56, 20, 14


def fail(text):
    sys.exit(f"timeline.py: {text}")


def read(path):
    """The stretches of time of a trace, and its processes' names; refuses what Perfetto could not read."""
    try:
        with open(path, encoding="utf-8") as file:
            events = json.load(file)
    except (OSError, ValueError) as error:
        fail(f"{path}: {error}")
    if not isinstance(events, list):
        fail(f"{path}: not an array of events")
    names, stretches, ends = {}, [], {}
    for number, event in enumerate(events):
        def need(condition, what):
            if not condition:
                fail(f"{path}: event {number}: {what}")
        need(isinstance(event, dict), "not an object")
        need(event.get("ph") in ("M", "X"), f"phase {event.get('ph')!r}")
        need(isinstance(event.get("name"), str) and event["name"], "no name")
        need(isinstance(event.get("pid"), int) and isinstance(event.get("tid"), int), "no process and line")
        need(isinstance(event.get("args"), dict), "no args")
        if event["ph"] == "M":
            if event["name"] == "process_name":
                need(isinstance(event["args"].get("name"), str), "a process without a name")
                names[event["pid"]] = event["args"]["name"]
            continue
        for key in ("ts", "dur"):
            need(isinstance(event.get(key), (int, float)) and event[key] >= 0, f"no {key}")
        need(isinstance(event.get("cat"), str), "no cat, which says what stage it is")
        need(event["cat"] != "update" or isinstance(event["args"].get("version"), int), "an update without a version")
        need(isinstance(event["args"].get("bucket", 0), int), "a bucket that is no number")
        stretches.append(event)
    # Readers nest what overlaps on one line, so nothing may.
    for event in sorted(stretches, key=lambda one: one["ts"]):
        line = (event["pid"], event["tid"])
        if event["ts"] < ends.get(line, 0) - 0.002:
            fail(f"{path}: {event['name']} begins before the stretch before it on its line has ended")
        ends[line] = event["ts"] + event["dur"]
    return stretches, names


def buckets(stretches, stage, version):
    """Begin and end by process and bucket."""
    found = {}
    for one in stretches:
        if one["cat"] == stage and one["args"].get("version") == version and "bucket" in one["args"]:
            found.setdefault(one["pid"], {})[one["args"]["bucket"]] = (one["ts"], one["ts"] + one["dur"])
    return found


def shared(stretch, others):
    """How much of a stretch is covered by the others, which do not overlap each other."""
    return sum(max(0.0, min(stretch[1], end) - max(stretch[0], begin)) for begin, end in others)


def during(stretches, version):
    """The stretches of the version's last update: of everybody whose update was running at the same time."""
    updates = [(one["ts"], one["ts"] + one["dur"], one["pid"]) for one in stretches
               if one["cat"] == "update" and one["args"]["version"] == version]
    if not updates:
        fail(f"there is no version {version}")
    last = max(updates)
    chosen = [one for one in updates if one[0] < last[1] and one[1] > last[0]]
    begin, end = min(one[0] for one in chosen), max(one[1] for one in chosen)
    # What came before the acceptance lies before a receiver's update, and in the sender's.
    return [one for one in stretches if one["args"].get("version") == version and one["pid"] in {pid for *_, pid in chosen}
            and one["ts"] < end and one["ts"] + one["dur"] > begin]


def overlaps(stretches, version):
    """(receiver, time of loading, part of it in which a later bucket is packed, buckets, those of them) for each."""
    rows, chosen = [], during(stretches, version)
    for packs in buckets(chosen, "pack", version).values():
        for pid, loads in sorted(buckets(chosen, "load", version).items()):
            total = both = count = 0
            for bucket, load in loads.items():
                covered = shared(load, [span for number, span in packs.items() if number > bucket])
                total += load[1] - load[0]
                both += covered
                count += covered > 0
            rows.append((pid, total, both, len(loads), count))
    return rows


def draw(stretches, names, version, only, title):
    chosen = during(stretches, version)
    # What the sender tells of its receivers repeats what they tell themselves.
    own = [one for one in chosen if one["cat"] in COLOURS and "receiver" not in one["args"]]
    if only:
        first, last = only
        begin = min((one["ts"] for one in own if one["cat"] == "pack" and one["args"].get("bucket") == first), default=None)
        end = max((one["ts"] + one["dur"] for one in own
                   if one["cat"] == "load" and one["args"].get("bucket") == last), default=None)
        if begin is None or end is None or end <= begin:
            fail(f"version {version} has no packing of bucket {first} and loading of bucket {last} after it")
    else:
        begin, end = min(one["ts"] for one in own), max(one["ts"] + one["dur"] for one in own)
    own = [one for one in own if one["ts"] < end and one["ts"] + one["dur"] > begin]
    scale = (WIDTH - LEFT - RIGHT) / (end - begin)
    x = lambda time: LEFT + (min(max(time, begin), end) - begin) * scale

    body, y = [], TOP
    first = {one["pid"]: one["ts"] for one in sorted(own, key=lambda one: -one["ts"])}
    for pid in sorted(first, key=first.get):  # the sender's call is what happens first
        body.append(f'<text x="{LEFT}" y="{y - 4}" font-weight="bold">{escape(names.get(pid, str(pid)))}</text>')
        for stage in ORDER:
            lines = sorted({one["tid"] for one in own if one["pid"] == pid and one["cat"] == stage})
            for line in lines:
                body.append(f'<text x="{LEFT - 8}" y="{y + LINE - 6}" text-anchor="end">{stage}</text>')
                body.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y + LINE}" y2="{y + LINE}" stroke="#eeeeee"/>')
                for one in own:
                    if (one["pid"], one["tid"], one["cat"]) != (pid, line, stage):
                        continue
                    left, right = x(one["ts"]), x(one["ts"] + one["dur"])
                    body.append(f'<rect x="{left:.2f}" y="{y + 2}" width="{max(right - left, 0.6):.2f}" '
                                f'height="{LINE - 4}" fill="{COLOURS[stage]}" stroke="white" stroke-width="0.5">'
                                f'<title>{escape(one["name"])}: {one["dur"] / 1000:.3f} ms</title></rect>')
                    if "bucket" in one["args"] and right - left > 14:
                        body.append(f'<text x="{(left + right) / 2:.2f}" y="{y + LINE - 6}" text-anchor="middle" '
                                    f'fill="white">{one["args"]["bucket"]}</text>')
                y += LINE
        y += GAP + 14
    y -= 14
    ticks, step = [], round_step((end - begin) / 6)
    for tick in range(int((end - begin) / step) + 1):
        at = begin + tick * step
        ticks.append(f'<line x1="{x(at):.2f}" x2="{x(at):.2f}" y1="{TOP - 2}" y2="{y}" stroke="#cccccc" '
                     'stroke-dasharray="2 3"/>')
        ticks.append(f'<text x="{x(at):.2f}" y="{y + 14}" text-anchor="middle">{tick * step / 1000:g} ms</text>')
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 24}" font-family="sans-serif" '
            f'font-size="11">\n<rect width="{WIDTH}" height="{y + 24}" fill="white"/>\n'
            f'<text x="{LEFT}" y="20" font-size="14">{escape(title)}</text>\n' + "\n".join(ticks + body) + "\n</svg>\n")


def round_step(least):
    """The first of 1, 2, 5, 10, 20, ... microseconds that is no less."""
    return next(digit * 10 ** power for power in range(12) for digit in (1, 2, 5) if digit * 10 ** power >= least)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace")
    parser.add_argument("--picture")
    parser.add_argument("--version", type=int)
    parser.add_argument("--buckets")
    parser.add_argument("--title", default="")
    said = parser.parse_args()
    stretches, names = read(said.trace)
    versions = sorted({one["args"]["version"] for one in stretches if one["cat"] == "update"})
    print(f"{len(stretches)} stretches of {len(names)} processes")
    for version in versions:
        for pid, total, both, count, of_them in overlaps(stretches, version):
            print(f"version {version}, {names.get(pid, pid)}: {total / 1000:.3f} ms of loading, {both / 1000:.3f} ms "
                  f"({both / total if total else 0:.0%}) of it while a later bucket is packed; {of_them} of {count} buckets")
    if not said.picture:
        return
    if not versions:
        fail("there is no update in it")
    version = said.version if said.version is not None else versions[-1]
    only = None
    if said.buckets:
        if not re.fullmatch(r"\d+-\d+", said.buckets):
            fail(f"--buckets {said.buckets}: it takes two numbers, as in 3-7")
        only = tuple(int(part) for part in said.buckets.split("-"))
    with open(said.picture, "w", encoding="utf-8") as file:
        file.write(draw(stretches, names, version, only, said.title or f"version {version}"))


if __name__ == "__main__":
    main()
