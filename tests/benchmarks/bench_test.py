#!/usr/bin/env python3
"""ropeway-bench and the scripts beside it, as far as they can break on a machine without a GPU.

    tests/benchmarks/bench_test.py PATH/TO/ropeway-bench
"""
import importlib.util
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree

BENCHMARKS = pathlib.Path(__file__).resolve().parents[2] / "benchmarks"
TINY = ("--model", "tiny", "--bucket", "64K", "--repeats", "3", "--warm-up", "1")
PROGRAM = ""


def run(*arguments):
    # Without a driver on purpose: a machine that has one gives the same answers.
    surroundings = dict(os.environ, CUDA_VISIBLE_DEVICES="")
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, timeout=60, check=False,
                          env=surroundings)


def strict(text):
    def refuse(word):
        raise ValueError(f"{word} is no JSON")
    return json.loads(text, parse_constant=refuse)


def imported(name):
    found = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


class Bench(unittest.TestCase):
    def lines(self, *arguments):
        """The lines of JSON of a run that must go well, and what it printed."""
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder, "lines.jsonl")
            done = run(*arguments, "--json", str(file))
            self.assertEqual(done.returncode, 0, done.stderr)
            return [strict(line) for line in file.read_text(encoding="utf-8").splitlines()], done.stdout

    def check_times(self, of, repeats):
        self.assertEqual(len(of["seconds"]), repeats)
        self.assertLessEqual(of["min_s"], of["median_s"])
        self.assertLessEqual(of["median_s"], of["max_s"])
        self.assertAlmostEqual(of["min_s"], min(of["seconds"]), 9)
        # Of numbers that are rounded to the nanosecond, and far apart on a busy machine.
        spread = (of["max_s"] - of["min_s"]) / of["median_s"]
        self.assertTrue(math.isclose(of["spread"], spread, rel_tol=1e-3, abs_tol=1e-3), (of["spread"], spread))

    def check_line(self, line, repeats=3):
        self.assertEqual(line["program"], "ropeway-bench")
        self.assertEqual(line["repeats"], repeats)
        self.check_times(line["send"], repeats)
        self.assertAlmostEqual(line["send"]["GB_per_s"] * line["send"]["median_s"] * 1e9 / line["moved_bytes"], 1, 3)
        for stage in line["stages_median_us"].values():
            self.assertTrue(math.isfinite(stage))
        self.assertEqual(len(line["each"]), line["receivers"])
        self.assertEqual(sum(one["held_bytes"] for one in line["each"]), line["moved_bytes"])
        for one in line["each"]:  # no receiver reads what it does not hold
            self.assertEqual(one["read_bytes"], one["held_bytes"])
        self.assertGreater(line["sender_stages_median_us"]["announce"], 0)
        self.assertGreater(line["receiver_stages_median_us"]["load"], 0)
        for of in ("sender", "receiver"):
            for stage in line[of + "_stages_median_us"].values():
                self.assertGreater(stage, 0)
        if line["case"] != "decode":
            self.assertGreaterEqual(line["cpu_median_us"]["sender"], 0)

    def check_limit(self, line, repeats=3):
        self.check_times(line["limit"], repeats)
        self.assertAlmostEqual(line["ratio_to_limit"], line["limit"]["median_s"] / line["send"]["median_s"], 2)

    def test_a_line_for_each_route_with_the_limit_of_the_same_run(self):
        lines, told = self.lines(*TINY, "--route", "host,automatic")
        self.assertEqual([line["route_asked"] for line in lines], ["host", "automatic"])
        for line in lines:
            self.check_line(line)
            self.check_limit(line)
            self.assertEqual(line["route"], "host")
            self.assertEqual(line["bytes_checked"], "all, after each send")
        self.assertIn("two chained memcpys, one thread", told)

    def test_without_a_file_the_line_is_the_output_beside_the_table(self):
        done = run(*TINY, "--check", "last", "--no-limits", "--prepared")
        self.assertEqual(done.returncode, 0, done.stderr)
        line = strict(next(line for line in done.stdout.splitlines() if line.startswith("{")))
        self.check_line(line)
        self.assertIsNone(line["limit"])
        self.assertTrue(line["prepared"])

    def test_shards_hold_a_part_each_beside_one_that_holds_all(self):
        (shards, whole), told = self.lines(*TINY, "--shards", "4")
        for line in (shards, whole):
            self.check_line(line)
            self.check_limit(line)
        self.assertEqual((shards["receivers"], whole["receivers"]), (4, 1))
        self.assertEqual(whole["each"][0]["held_bytes"], whole["bytes"])
        for one in shards["each"]:
            # A quarter of every matrix; vectors whole.
            self.assertGreaterEqual(one["held_bytes"], whole["bytes"] // 4)
            self.assertLess(one["held_bytes"], whole["bytes"] * 0.26)
        self.assertIn("rank 3 (columns)", told)

    def test_fan_out_beside_one(self):
        (many, one), _ = self.lines(*TINY, "--fan-out", "3")
        for line in (many, one):
            self.check_line(line)
            self.check_limit(line)
        self.assertEqual(many["moved_bytes"], 3 * one["moved_bytes"])
        self.assertIn("3 times", many["limit"]["is"])

    def test_decode_steps_alone_and_beside_updates(self):
        (line,), told = self.lines("--model", "tiny", "--bucket", "64K", "--decode", "--decode-steps", "40",
                                   "--decode-reads", "3", "--decode-bytes", "64K")
        self.check_line(line, line["repeats"])
        self.assertGreaterEqual(line["repeats"], 5)
        self.assertEqual(line["step_alone"]["steps"], 60)
        self.assertGreaterEqual(line["step_beside"]["steps"], 40)
        for steps in (line["step_alone"], line["step_beside"]):
            self.assertLess(0, steps["p50_s"])
            self.assertLessEqual(steps["p50_s"], steps["p99_s"])
            self.assertLessEqual(steps["p99_s"], steps["max_s"])
        # Both are rounded to nanoseconds, and one that was kept waiting may be thousands of times the other.
        ratio = line["step_beside"]["p99_s"] / line["step_alone"]["p99_s"]
        self.assertTrue(math.isclose(line["p99_ratio"], ratio, rel_tol=1e-3, abs_tol=5e-3), (line["p99_ratio"], ratio))
        self.assertIn("unlimited", told)

    def test_cold_starts_are_told_in_parts(self):
        (line,), told = self.lines("--model", "tiny", "--bucket", "64K", "--cold", "--repeats", "1", "--warm-up", "0")
        whole = line["start_to_committed"]["median_s"]
        parts = sum(line["trainer_median_s"].values())
        self.assertAlmostEqual(parts + line["first_send"]["median_s"], whole, 6)
        self.assertEqual(list(line["receiver_median_s"]), ["process started", "device and memory", "connected"])
        self.assertEqual(line["route"], "host")
        self.assertIn("start of both processes", told)

    def test_cold_starts_from_a_checkpoint_that_is_there(self):
        with tempfile.TemporaryDirectory() as folder:
            header = json.dumps({"a": {"dtype": "F32", "shape": [5, 3], "data_offsets": [0, 60]},
                                 "b": {"dtype": "U8", "shape": [7], "data_offsets": [60, 67]}}).encode()
            file = pathlib.Path(folder, "model.safetensors")
            file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(range(67)))
            (cold,), _ = self.lines("--model", str(file), "--cold", "--repeats", "1", "--bucket", "64K")
            self.assertEqual((cold["tensors"], cold["bytes"]), (2, 67))
            (steady,), _ = self.lines("--model", str(file), "--bucket", "64K", "--repeats", "2", "--warm-up", "0")
            self.assertEqual((steady["tensors"], steady["bytes"]), (2, 67))

    def test_an_adapter_has_percentiles(self):
        (line,), told = self.lines("--adapter", "--layers", "1", "--bucket", "1M", "--repeats", "120")
        self.check_line(line, 120)
        # The smallest that so many of a hundred do not exceed.
        inorder = sorted(line["send"]["seconds"])
        self.assertEqual(line["send"]["p90_s"], inorder[107])
        self.assertEqual(line["send"]["p99_s"], inorder[118])
        self.assertIn("p99", told)

    def test_what_can_not_be_done_is_said_at_once(self):
        for arguments, status, words in (
                (("--route", "cable"), 105, "a route is automatic"),
                (("--pace", "fast"), 105, "a pace is unlimited"),
                (("--shards", "2", "--fan-out", "2"), 105, "for one run each"),
                (("--memory", "segments"), 2, "memory of kind segments is not for host"),
                (("--route", "staged", "--device", "host"), 4, "asked for the staged route, took host"),
                (("--device", "cuda:0"), 5, "no such device"),
                # The receiver's process finds that out, and the one that waits for it hears of it.
                (("--receiver-device", "cuda:0"), 3, "a process gave up")):
            done = run(*TINY, *arguments)
            self.assertEqual(done.returncode, status, (arguments, done.stderr))
            self.assertIn(words, done.stderr)
            self.assertEqual(done.stdout, "")


class Plot(unittest.TestCase):
    """Of lines as the benchmark writes them, and as it would on a GPU."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.file = pathlib.Path(cls.folder.name, "lines.jsonl")
        for arguments in (TINY, (*TINY, "--shards", "2"),
                          ("--model", "tiny", "--cold", "--repeats", "1", "--bucket", "64K"),
                          ("--model", "tiny", "--bucket", "64K", "--decode", "--decode-steps", "20",
                           "--decode-reads", "2", "--decode-bytes", "4K")):
            done = run(*arguments, "--json", str(cls.file))
            assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in cls.file.read_text(encoding="utf-8").splitlines()]
        for to, limit in (("cuda:0", 1300.0), ("cuda:1", 390.0)):
            base = dict(lines[0], **{"from": "cuda:0", "to": to, "device": 'GPU <"&">', "model": "qwen3-8b"})
            for program, name, route, rate in (("ropeway-bench", "one receiver", "mapped", limit * 0.9),
                                               ("ropeway-bench", "one receiver", "staged", limit * 0.4),
                                               ("peers.py", "flat-buckets", "peer", 88.0)):
                lines.append(dict(base, program=program, name=name, route=route,
                                  send=dict(base["send"], GB_per_s=rate),
                                  limit=dict(base["limit"], GB_per_s=limit)))
        decode = next(line for line in lines if line["case"] == "decode")
        for more, rate, ratio in (({"route": "mapped", "pace": "blocks:8"}, 200.0, 1.2),
                                  ({"route": "mapped", "pace": "blocks:64"}, 900.0, 2.5),
                                  ({"route": "staged", "bucket_bytes": 64 << 20}, 700.0, 3.0)):
            lines.append(dict(decode, p50_ratio=ratio, p99_ratio=ratio * 1.1,
                              send=dict(decode["send"], GB_per_s=rate), **more))
        cls.file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def plot(self, *arguments):
        return subprocess.run([sys.executable, str(BENCHMARKS / "plot.py"), *arguments], capture_output=True, text=True,
                              timeout=60, check=False)

    def picture(self, what, *more):
        made = pathlib.Path(self.folder.name, f"{what}.svg")
        done = self.plot(what, str(self.file), str(made), *more)
        self.assertEqual(done.returncode, 0, done.stderr)
        return xml.etree.ElementTree.parse(made)

    def test_a_table_has_every_case(self):
        done = self.plot("table", str(self.file))
        self.assertEqual(done.returncode, 0, done.stderr)
        rows = done.stdout.splitlines()
        self.assertEqual(len(rows), 1 + 1 + 2 + 1 + 4 + 6)
        for words in ("cold", "ropeway, mapped", "flat-buckets", "2 shards", "blocks:64", "cuda:0 to cuda:1"):
            self.assertIn(words, done.stdout)

    def titles(self, tree):
        return [one.text for one in tree.iter("{http://www.w3.org/2000/svg}title")]

    def test_models_has_a_bar_for_everyone_and_the_limit(self):
        bars = self.titles(self.picture("models"))[1:]
        # Of the host a limit and a route, of each pair of GPUs a limit and three.
        self.assertEqual(len(bars), 2 + 2 * 4)
        self.assertIn("ropeway, mapped: 1170.0 GB/s", bars)
        self.assertIn("flat-buckets: 88.0 GB/s", bars)
        only = self.titles(self.picture("models", "--only", "cuda:0-cuda:1"))[1:]
        self.assertEqual(len(only), 4)

    def test_decode_has_a_point_for_each_pace_and_ring_in_both_curves_of_its_route(self):
        points = self.titles(self.picture("decode"))[1:]
        self.assertEqual(len(points), 2 * 4)
        self.assertIn("p99 of a step, mapped, blocks:64: 2.75 at 900 GB/s", points)
        self.assertIn("p50 of a step, staged, 2 x 64 MiB: 3.00 at 700 GB/s", points)

    def test_what_is_no_result_is_refused_with_its_line(self):
        broken = pathlib.Path(self.folder.name, "broken.jsonl")
        broken.write_text(self.file.read_text(encoding="utf-8").splitlines()[0] + '\n{"case": 1}\n', encoding="utf-8")
        done = self.plot("table", str(broken))
        self.assertEqual(done.returncode, 1)
        self.assertIn("line 2", done.stderr)


class Peers(unittest.TestCase):
    """peers.py, without torch or with something that stands in for it."""

    def peers(self, breaks=""):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder, "lines.jsonl")
            stand_in = pathlib.Path(__file__).resolve().parent / "stand_in"
            surroundings = dict(os.environ, PYTHONPATH=str(stand_in), STAND_IN_FOLDER=folder, STAND_IN_BREAKS=breaks,
                                PYTHONDONTWRITEBYTECODE="1")
            done = subprocess.run([sys.executable, str(BENCHMARKS / "peers.py"), "--model", "tiny", "--layers", "12",
                                   "--bucket-mib", "1", "--repeats", "2", "--warm-up", "1", "--json", str(file)],
                                  capture_output=True, text=True, timeout=60, check=False, env=surroundings)
            lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
            return done, [strict(line) for line in lines]

    def test_each_method_moves_all_and_writes_a_line(self):
        done, lines = self.peers()
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertEqual([line["name"] for line in lines], ["tensor-handles", "flat-buckets", "double-buffer"])
        for line in lines:
            self.assertGreater(line["buckets"], 1)
            self.assertEqual(len(line["send"]["seconds"]), 2)
            self.assertEqual(len(line["limit"]["seconds"]), 2)
            self.assertLess(0, line["ratio_to_limit"])

    def test_a_method_that_fails_leaves_the_others(self):
        done, lines = self.peers("export")
        self.assertEqual(done.returncode, 1)
        self.assertIn("FAILED: tensor-handles", done.stdout)
        self.assertEqual([line["name"] for line in lines], ["flat-buckets", "double-buffer"])

    def test_bytes_that_are_lost_are_seen(self):
        done, lines = self.peers("copy")
        self.assertEqual(done.returncode, 1)
        self.assertEqual(done.stdout.count("WRONG BYTES"), 3)
        self.assertEqual(lines, [])

    def test_it_has_the_models_of_the_benchmark(self):
        peers = imported("peers")
        done = run("--model", "tiny", "--repeats", "1", "--warm-up", "0", "--no-limits")
        line = strict(next(line for line in done.stdout.splitlines() if line.startswith("{")))
        sizes = [peers.bytes_of(shape) for _, shape in peers.shapes("tiny", 0)]
        self.assertEqual((len(sizes), sum(sizes)), (line["tensors"], line["bytes"]))
        slice_of_experts = list(peers.shapes("qwen3-30b-a3b", 12))
        self.assertGreaterEqual(len(slice_of_experts), 4700)

    def test_buckets_hold_every_byte_once_and_in_order(self):
        peers = imported("peers")
        for limit in (4096, 65536, 512 << 20):
            sizes = [(name, peers.bytes_of(shape)) for name, shape in peers.shapes("tiny", 0)]
            seen = {}
            for bucket in peers.buckets_of(sizes, limit):
                used = 0
                for name, first, place, size in bucket:
                    self.assertGreaterEqual(place, used)
                    self.assertLessEqual(place + size, limit)
                    self.assertEqual(seen.get(name, 0), first)
                    seen[name] = first + size
                    used = place + size
            self.assertEqual(seen, dict(sizes))


if __name__ == "__main__":
    PROGRAM = sys.argv.pop(1)
    unittest.main(verbosity=1)
