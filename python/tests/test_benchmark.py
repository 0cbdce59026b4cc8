"""benchmarks/python.py on host memory, with a tiny model: that it runs, and that it checks what arrived. Nobody looks at the
numbers."""
from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("torch", reason="torch is not installed")

PROGRAM = pathlib.Path(__file__).parents[2] / "benchmarks" / "python.py"


def run(*arguments):
    return subprocess.run([sys.executable, str(PROGRAM), "--device", "cpu", "--model", "tiny", "--repeats", "2", *arguments],
                          capture_output=True, text=True, timeout=140, env=dict(os.environ, CUDA_VISIBLE_DEVICES=""))


def check(tmp_path, ways, *arguments):
    lines = tmp_path / "lines.jsonl"
    done = run(*(word for way in ways for word in ("--way", way)), "--json", str(lines), *arguments)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [one["way"] + ("-prepared" if one["prepared"] else "") for one in found] == list(ways)
    assert all(one["steady_ms"] > 0 and one["tensors"] == 24 for one in found)
    return found, done.stdout


def test_ways_take_turns(tmp_path):
    found, said = check(tmp_path, ["into", "into-prepared", "captured-prepared", "loader", "torch-ipc"])
    assert [one["route"] for one in found] == ["host"] * 4 + ["torch"] and "Python adds" in said
    assert all("added_us" in one for one in found[:4])


def test_the_peers_own_files(tmp_path):
    folder = os.environ.get("ROPEWAY_PEERS")
    if not folder:
        pytest.skip("ROPEWAY_PEERS names no folder with the peers' published files")
    pytest.importorskip("zmq") if not pathlib.Path(folder, "zmq").is_dir() else None
    found, said = check(tmp_path, ["into-prepared", "vllm-ipc", "vllm-packed", "verl-bucketed"], "--peers", folder,
                        "--bucket-mib", "1")
    assert [one["ran"]["package"] for one in found[1:]] == ["vllm", "vllm", "verl"]
    assert all(one["ran"]["files"] and one["ran"]["version"] in said for one in found[1:])


def test_files_that_are_not_there(tmp_path):
    done = run("--way", "vllm-ipc", "--peers", str(tmp_path))
    assert done.returncode != 0 and "ipc_engine.py is not there" in done.stderr and "Traceback" not in done.stderr
