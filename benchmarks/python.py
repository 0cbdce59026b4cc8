#!/usr/bin/env python3
"""Times updates from one Python process to another: the trainer's clock around `send_weights(...).wait()`, and a plain copy
of the same bytes on the same device after each repeat.

    benchmarks/python.py --model qwen3-8b [--layers N] [--way into] [--prepared] [--repeats 10] [--device cuda:0]
                         [--route automatic] [--json LINES.jsonl]

    into        the server has destinations of the trainer's names
    captured    an engine's loader, with fused tensors, that was recorded once (CapturedLoader)
    loader      the same loader, run on the tensors of each bucket (load_with)
    torch-ipc   no ropeway: a CUDA IPC handle for every tensor, each time, and the same loader (as tensor-handles in peers.py)

Needs torch. `added` is the trainer's clock less what the library says the update took: what Python costs.
"""
import argparse
import datetime
import json
import multiprocessing
import os
import statistics
import tempfile
import time

from peers import FAMILIES, shapes

import ropeway

WAYS = ("into", "captured", "loader", "torch-ipc")


def trainers_tensors(options):
    import torch

    words = torch.Generator(device=options.device).manual_seed(1)
    made = {}
    for name, shape in shapes(options.model, options.layers):
        made[name] = torch.empty(shape, dtype=torch.bfloat16, device=options.device).uniform_(-1, 1, generator=words)
    return made


class Engine:
    """A model as an inference engine has it (q, k and v in one tensor, and the experts of a layer), and its loader."""

    def __init__(self, options):
        import torch

        self.weights, self._places = {}, {}
        experts = FAMILIES[options.model][-1]
        rows = {}
        for name, shape in shapes(options.model, options.layers):
            layer, _, rest = name.partition("self_attn.")
            if rest in ("q_proj.weight", "k_proj.weight", "v_proj.weight"):
                fused = layer + "qkv"
                self._places[name] = (fused, None, rows.get(fused, 0), shape[0])
                rows[fused] = rows.get(fused, 0) + shape[0]
                self.weights[fused] = (rows[fused], shape[1])
            elif "mlp." in name and not name.endswith("mlp.gate.weight"):
                layer, _, rest = name.partition("mlp.")
                expert = int(rest.split(".")[1]) if experts else 0
                inner = shape[1] if "down" in rest else shape[0]
                if "down" in rest:
                    fused, start = layer + "w2", 0
                    self.weights[fused] = (experts or 1, *shape)
                else:
                    fused, start = layer + "w13", inner if "up_proj" in rest else 0
                    self.weights[fused] = (experts or 1, 2 * inner, shape[1])
                self._places[name] = (fused, expert, start, shape[0])
            else:
                self.weights[name] = shape
                self._places[name] = (name, None, 0, shape[0])
        self.weights = {name: torch.zeros(shape, dtype=torch.bfloat16, device=options.device)
                        for name, shape in self.weights.items()}

    def load_weights(self, tensors):
        for name, tensor in tensors:
            fused, expert, start, size = self._places[name]
            target = self.weights[fused] if expert is None else self.weights[fused][expert]
            target.narrow(0, start, size).copy_(tensor)

    def same(self, tensors):
        import torch

        for name, tensor in tensors.items():
            fused, expert, start, size = self._places[name]
            target = self.weights[fused] if expert is None else self.weights[fused][expert]
            if not torch.equal(target.narrow(0, start, size), tensor):
                return False
        return True


def serve(options, path, pipe):
    import torch

    device = "host" if options.device == "cpu" else options.device
    if options.way == "into":
        into = {name: torch.zeros(shape, dtype=torch.bfloat16, device=options.device)
                for name, shape in shapes(options.model, options.layers)}
        places = ropeway.Destinations(into)
        load = lambda update: update.load_into(places).wait()  # noqa: E731
        sums = lambda: [float(tensor.float().sum()) for tensor in into.values()]  # noqa: E731
    else:
        engine = Engine(options)
        if options.way == "captured":
            loader = ropeway.CapturedLoader(engine.load_weights, engine.weights)
            load = lambda update: loader.load(update).wait()  # noqa: E731
        else:
            load = lambda update: update.load_with(engine.load_weights, tensors="torch").wait()  # noqa: E731
        sums = lambda: [float(tensor.float().sum()) for tensor in engine.weights.values()]  # noqa: E731
    if options.way == "torch-ipc":
        pipe.send("ready")
        while (handles := pipe.recv()) is not None:
            engine.load_weights([(name, rebuild(*arguments)) for name, (rebuild, arguments) in handles])
            torch.cuda.synchronize()
            pipe.send("loaded")
        pipe.send(sum(sums()))
        return
    with ropeway.Receiver(name="server", device=device) as receiver:
        receiver.connect(path).wait()
        for update in receiver:
            load(update)
    pipe.send(sum(sums()))


def send_handles(pipe, tensors):
    import torch
    from torch.multiprocessing.reductions import reduce_tensor

    torch.cuda.synchronize()
    pipe.send([(name, reduce_tensor(tensor)) for name, tensor in tensors.items()])
    pipe.recv()


def plain_copy(options, size):
    """Seconds that torch needs to copy so many bytes on the device."""
    import torch

    part = min(size, 1 << 30)
    a, b = (torch.zeros(part, dtype=torch.uint8, device=options.device) for _ in range(2))

    def wait():
        if options.device != "cpu":
            torch.cuda.synchronize()

    b.copy_(a)
    wait()
    began = time.perf_counter()
    for at in range(0, size, part):
        rest = min(part, size - at)
        b[:rest].copy_(a[:rest])
    wait()
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(FAMILIES), default="qwen3-8b")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--way", choices=WAYS, default="into")
    parser.add_argument("--prepared", action="store_true")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--route", default="automatic")
    parser.add_argument("--json")
    options = parser.parse_args()
    tensors = trainers_tensors(options)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    times, added, plain = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o700)
        path = os.path.join(folder, "w.sock")
        server = context.Process(target=serve, args=(options, path, theirs))
        server.start()
        if options.way == "torch-ipc":
            ours.recv()
            for _ in range(options.repeats + 1):
                began = time.perf_counter()
                send_handles(ours, tensors)
                times.append(time.perf_counter() - began)
                plain.append(plain_copy(options, size))
            route = "torch"
            ours.send(None)
        else:
            with ropeway.Sender(path, route=options.route) as sender:
                sender.wait_for_receivers(1, limit=120).wait()
                what = sender.prepare(tensors) if options.prepared else tensors
                for version in range(options.repeats + 1):
                    began = time.perf_counter()
                    report = sender.send_weights(version, what).wait()
                    times.append(time.perf_counter() - began)
                    added.append(times[-1] - report.total)
                    plain.append(plain_copy(options, size))
                route = report.receivers[0].route
        server_sum = ours.recv()
        server.join()
    own_sum = sum(float(tensor.float().sum()) for tensor in tensors.values())
    if abs(server_sum - own_sum) > 1e-3 * max(abs(own_sum), 1):
        raise SystemExit(f"the server holds other weights: {server_sum} and not {own_sum}")
    import torch

    steady, copy = statistics.median(times[1:]), statistics.median(plain[1:])
    line = {
        "date": datetime.date.today().isoformat(), "torch": torch.__version__, "model": options.model,
        "device": torch.cuda.get_device_name() if options.device != "cpu" else "cpu", "tensors": len(tensors),
        "bytes": size, "way": options.way, "prepared": options.prepared, "route": route, "repeats": options.repeats,
        "first_ms": round(times[0] * 1e3, 3), "steady_ms": round(steady * 1e3, 3),
        "added_us": round(statistics.median(added[1:]) * 1e6, 1) if added else None,
        "plain_copy_ms": round(copy * 1e3, 3), "of_plain_copy": round(copy / steady, 3),
    }
    print(json.dumps(line))
    if options.json:
        with open(options.json, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
