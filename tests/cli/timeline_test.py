#!/usr/bin/env python3
"""scripts/timeline.py on what `ropeway send` and `ropeway receive` trace, on intervals whose overlap is known, and on
files that are no trace.

    tests/cli/timeline_test.py ROPEWAY CHECKPOINT
"""
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import xml.dom.minidom

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "scripts/timeline.py"
LINE = re.compile(r"^version (\d+), ropeway receive, .*: [\d.]+ ms of loading, [\d.]+ ms \(\d+%\) of it while a later "
                  r"bucket is packed; (\d+) of (\d+) buckets$", re.MULTILINE)
VERSIONS = 3


def check(good, words):
    if not good:
        sys.exit(f"timeline_test: {words}")


def timeline(*words):
    return subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True, check=False)


def traced(folder, program, checkpoint):
    trace, socket, picture = folder / "trace.json", str(folder / "s"), folder / "picture.svg"
    receiver = subprocess.Popen([program, "receive", "--socket", socket, "--quiet", "--trace", trace],
                                stdout=subprocess.DEVNULL)
    sent = subprocess.run([program, "send", checkpoint, "--socket", socket, "--versions", str(VERSIONS), "--bucket", "8K",
                           "--json", "--quiet", "--trace", trace], stdout=subprocess.PIPE, text=True, check=False)
    check(receiver.wait() == 0 and sent.returncode == 0, "the versions were not sent")
    buckets = {one["version"]: one["buckets"] for one in json.loads(sent.stdout)["versions"]}
    check(buckets[1] > 2, "there is only one bucket, or two")

    said = timeline(trace, "--picture", picture)
    check(said.returncode == 0, f"the program's own trace is refused: {said.stderr}")
    check(re.match(r"\d+ stretches of 2 processes\n", said.stdout), f"other processes: {said.stdout}")
    told = {int(version): int(count) for version, _, count in LINE.findall(said.stdout)}
    check(told == buckets, f"the sender's report has the buckets {buckets}: {said.stdout}")
    xml.dom.minidom.parse(str(picture))
    drawn = picture.read_text(encoding="utf-8")
    check(f"version {VERSIONS}" in drawn and ">pack</text>" in drawn and ">load</text>" in drawn, "not all of it is drawn")


def stretch(pid, tid, stage, begin, end, **args):
    return {"ph": "X", "name": stage, "cat": stage, "pid": pid, "tid": tid, "ts": begin, "dur": end - begin,
            "args": {"version": 1, **args}}


def written(folder, events):
    file = folder / "events.json"
    file.write_text(json.dumps(events), encoding="utf-8")
    return file


def known(folder):
    """Bucket 0 is loaded in 20 us, in 15 of which the next one is packed; bucket 1 while nothing is."""
    events = [stretch(1, 1, "update", 0, 100), stretch(2, 1, "update", 0, 100),
              stretch(1, 2, "pack", 0, 10, bucket=0), stretch(1, 2, "pack", 15, 40, bucket=1),
              stretch(2, 2, "load", 10, 30, bucket=0), stretch(2, 2, "load", 40, 70, bucket=1)]
    said = timeline(written(folder, events))
    wanted = "version 1, 2: 0.050 ms of loading, 0.015 ms (30%) of it while a later bucket is packed; 1 of 2 buckets"
    check(wanted in said.stdout.splitlines(), f"expected '{wanted}', not {said.stdout}{said.stderr}")
    for buckets, words in (("1", "takes two numbers"), ("0-7", "bucket 7"), ("0-1", "")):
        refused(timeline(written(folder, events), "--picture", folder / "known.svg", "--buckets", buckets), words)
    return events


def refused(said, words):
    check(said.returncode == (1 if words else 0) and words in said.stderr and "Traceback" not in said.stderr,
          f"expected '{words}', not {said.stderr}")


def broken(folder, events):
    for place, key, words in ((None, "cat", "event 0: no cat"), (None, "ts", "event 0: no ts"),
                              ("args", "version", "event 0: an update without a version"),
                              (None, "args", "event 0: no args"), (None, "pid", "event 0: no process")):
        events_now = json.loads(json.dumps(events))
        (events_now[0][place] if place else events_now[0]).pop(key)
        refused(timeline(written(folder, events_now)), words)
    refused(timeline(written(folder, {"traceEvents": []})), "not an array of events")
    refused(timeline(written(folder, events + [stretch(2, 2, "load", 50, 80, bucket=2)])), "before it on its line has ended")
    nameless = {"ph": "M", "name": "process_name", "pid": 1, "tid": 0, "args": {}}
    refused(timeline(written(folder, [nameless])), "a process without a name")


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        traced(folder, sys.argv[1], sys.argv[2])
        broken(folder, known(folder))


if __name__ == "__main__":
    main()
