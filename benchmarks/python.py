#!/usr/bin/env python3
"""Times updates from one Python process to another: the trainer's clock, from the start of a version until the server has
it and has said so, and one plain copy of the same bytes on the same device after each.

    benchmarks/python.py --model qwen3-8b [--layers N] [--way WAY]... [--peers FOLDER] [--repeats 10] [--device cuda:0]
                         [--route automatic] [--json LINES.jsonl]

    into           the server has destinations of the trainer's names (load_next)
    captured       an engine's loader, with fused tensors, that was recorded once (CapturedLoader)
    loader         the same loader, run on the tensors of each bucket (load_with)
    torch-ipc      no ropeway: a CUDA IPC handle for every tensor, each time, and the same loader
    vllm-ipc       vLLM's own published files (IPCTrainerWeightTransferEngine), as they are by default, and the same loader
    vllm-packed    the same with packed=True, and buckets of --bucket-mib
    verl-bucketed  verl's own published file (BucketedWeightSender), with buckets of --bucket-mib, and the same loader

With -prepared after the name of one of ropeway's (or --prepared for all of them), what is sent was looked at once. Ways
take turns, version by version, and the server's bytes are compared after each version. vLLM's and verl's files come from
the installed packages, or from the folder --peers (see published.py), and every line says which ran; they serve in a process
of their own, so that neither finds what the other has mapped.

Needs torch. `added` is the trainer's clock less what the library says the update took: what Python costs. On one GPU the
trainer's model, one for ropeway's server, one for the peers' and the copy's two halves must find room: four times the model.
"""
import argparse
import asyncio
import datetime
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import types

import published
from peers import FAMILIES, shapes

OURS = ("into", "captured", "loader")
PEERS = ("torch-ipc", "vllm-ipc", "vllm-packed", "verl-bucketed")
WAYS = OURS + tuple(f"{way}-prepared" for way in OURS) + PEERS


def base(way):
    return way.removesuffix("-prepared")


def torch_kind(options):
    return options.device.partition(":")[0]


def synchronize(options):
    if options.device != "cpu":
        import torch

        torch.cuda.synchronize(options.device)


def trainers_tensors(options):
    import torch

    words = torch.Generator(device=options.device).manual_seed(1)
    made = {}
    for name, shape in shapes(options.model, options.layers):
        made[name] = torch.empty(shape, dtype=torch.bfloat16, device=options.device)
        made[name].view(torch.int16).random_(generator=words)
        if options.device == "cpu":
            made[name].share_memory_()  # for the peers, and it moves
    return made


def sums_of(tensors):
    """Of the bits of each tensor."""
    import torch

    return torch.stack([tensor.view(torch.int16).sum(dtype=torch.int64) for tensor in tensors]).tolist()


def samples_of(tensors):
    """A few elements of each tensor, as they are: where a sum can't tell."""
    import torch

    flat = [tensor.view(torch.int16).view(-1) for tensor in tensors]
    return torch.stack([torch.stack((bits[0], bits[bits.numel() // 3], bits[-1])) for bits in flat]).tolist()


class Engine:
    """A model as an inference engine has it (q, k and v in one tensor, and the experts of a layer), and its loader."""

    def __init__(self, options):
        import torch

        shapes_, self._places = {}, {}
        experts = FAMILIES[options.model][-1]
        rows = {}
        for name, shape in shapes(options.model, options.layers):
            layer, _, rest = name.partition("self_attn.")
            if rest in ("q_proj.weight", "k_proj.weight", "v_proj.weight"):
                fused = layer + "qkv"
                self._places[name] = (fused, None, rows.get(fused, 0), shape[0])
                rows[fused] = rows.get(fused, 0) + shape[0]
                shapes_[fused] = (rows[fused], shape[1])
            elif "mlp." in name and not name.endswith("mlp.gate.weight"):
                layer, _, rest = name.partition("mlp.")
                expert = int(rest.split(".")[1]) if experts else 0
                inner = shape[1] if "down" in rest else shape[0]
                if "down" in rest:
                    fused, start = layer + "w2", 0
                    shapes_[fused] = (experts or 1, *shape)
                else:
                    fused, start = layer + "w13", inner if "up_proj" in rest else 0
                    shapes_[fused] = (experts or 1, 2 * inner, shape[1])
                self._places[name] = (fused, expert, start, shape[0])
            else:
                shapes_[name] = shape
                self._places[name] = (name, None, 0, shape[0])
        self.weights = {name: torch.zeros(shape, dtype=torch.bfloat16, device=options.device)
                        for name, shape in shapes_.items()}

    def place(self, name):
        fused, expert, start, size = self._places[name]
        target = self.weights[fused] if expert is None else self.weights[fused][expert]
        return target.narrow(0, start, size)

    def load_weights(self, tensors):
        for name, tensor in tensors:
            self.place(name).copy_(tensor)


# ---- the server ----


class Ropeway:
    """Takes the next update in one of ropeway's ways."""

    def __init__(self, options, way, path, engine, views):
        import ropeway

        self.receiver = ropeway.Receiver(name=way, device="host" if options.device == "cpu" else options.device,
                                         connect_limit=300)
        self.receiver.connect(path).wait()
        self.places = ropeway.Destinations(views) if way == "into" else None
        if way == "captured":
            loader = ropeway.CapturedLoader(engine.load_weights, engine.weights)
            self.load = loader.load
        elif way == "loader":
            self.load = lambda update: update.load_with(engine.load_weights, tensors="torch")

    def begin(self):
        if self.places is not None:
            self.waiting = self.receiver.load_next(self.places)
        else:
            self.waiting = self.receiver.next_update()

    def take(self, _):
        taken = self.waiting.wait()
        if self.places is None:
            self.load(taken).wait()

    def close(self):
        self.receiver.close().wait()


class TorchIpc:
    def __init__(self, options, way, path, engine, views):
        self.options, self.engine = options, engine

    def begin(self):
        pass

    def take(self, calls):
        self.engine.load_weights([(name, rebuild(*arguments)) for name, (rebuild, arguments) in calls.recv()])
        synchronize(self.options)
        calls.send("loaded")

    def close(self):
        pass


class Vllm(TorchIpc):
    def __init__(self, options, way, path, engine, views):
        import torch

        module, self.said = published.vllm(options.peers)
        device = torch.device("cuda", 0) if options.device == "cpu" else torch.device(options.device)
        self.engine = module.IPCWeightTransferEngine(
            None, types.SimpleNamespace(parallel_config=None, model_config=None), device, engine)
        self.engine.init_transfer_engine(self.engine.parse_init_info({"packed": way == "vllm-packed"}))

    def take(self, calls):
        while True:
            call, arguments = calls.recv()
            getattr(self.engine, call)(*arguments)
            calls.send("done")
            if call == "finish_weight_update":
                return


class Verl(TorchIpc):
    def __init__(self, options, way, path, engine, views):
        import torch

        self.module, self.said = published.verl(options.peers, torch_kind(options))
        self.options, self.engine, self.path = options, engine, path
        self.device = torch.device(options.device)

    def take(self, calls):
        while not os.path.exists(self.path):  # zmq would try again in a tenth of a second only
            time.sleep(0.0001)
        receiver = self.module.BucketedWeightReceiver(f"ipc://{self.path}", self.device, self.options.device == "cpu")
        receiver.receive_weights(lambda weights, is_last=False: self.engine.load_weights(weights))


TAKERS = {"into": Ropeway, "captured": Ropeway, "loader": Ropeway, "torch-ipc": TorchIpc, "vllm-ipc": Vllm,
          "vllm-packed": Vllm, "verl-bucketed": Verl}


def heard(pipe):
    """What the trainer wants, or None: nothing any more."""
    try:
        return pipe.recv()
    except EOFError:
        return None


def serve(options, paths, pipe, calls):
    """A server's process: takes versions in the ways that it is told, one after the other."""
    import torch

    if options.device != "cpu":
        torch.cuda.set_device(options.device)
    else:
        published.ipc_on_the_host()
    engine = Engine(options)
    views = {name: engine.place(name) for name, _ in shapes(options.model, options.layers)}
    takers, said = {}, {}
    for way, path in paths.items():
        takers[way] = TAKERS[way](options, way, path, engine, views)
        said[way] = getattr(takers[way], "said", None)
    synchronize(options)
    pipe.send(said)
    while (wanted := heard(pipe)) is not None:
        if wanted == "sums":
            pipe.send(sums_of(views.values()))
        elif wanted == "samples":
            pipe.send(samples_of(views.values()))
        elif wanted == "forget":  # so that what one way has left is not taken for what another brought
            for tensor in engine.weights.values():
                tensor.zero_()
            synchronize(options)
            pipe.send("done")
        else:
            takers[wanted].begin()
            pipe.send("ready")
            takers[wanted].take(calls)
    for taker in takers.values():
        taker.close()


# ---- the trainer ----


class Server:
    """The trainer's end of a server's process."""

    def __init__(self, options, paths):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.calls, their_calls = context.Pipe()
        self.process = context.Process(target=serve, args=(options, paths, theirs, their_calls), daemon=True)
        self.process.start()
        theirs.close()  # so that its end is noticed
        their_calls.close()

    def ask(self, what):
        self.pipe.send(what)
        return self.hear()

    def hear(self):
        try:
            return self.pipe.recv()
        except EOFError:
            raise SystemExit(f"a server's process has ended, with {self.process.exitcode}: see above") from None

    def end(self):
        self.pipe.send(None)
        self.process.join(60)


class SendRopeway:
    def __init__(self, options, sender, what):
        self.sender, self.what, self.version = sender, what, 0
        self.reports, self.called = [], []

    def __call__(self):
        self.version += 1
        began = time.perf_counter()
        sending = self.sender.send_weights(self.version, self.what)
        self.called.append(time.perf_counter() - began)
        self.reports.append(sending.wait())


class SendTorchIpc:
    def __init__(self, options, server, tensors):
        self.options, self.calls, self.tensors = options, server.calls, tensors

    def __call__(self):
        from torch.multiprocessing.reductions import reduce_tensor

        synchronize(self.options)
        self.calls.send([(name, reduce_tensor(tensor)) for name, tensor in self.tensors.items()])
        self.calls.recv()


class Calls:
    """vLLM's VLLMWeightSyncClient over a pipe: the fastest transport that there can be for it."""

    def __init__(self, connection):
        self.connection = connection

    def _call(self, name, *arguments):
        self.connection.send((name, arguments))
        self.connection.recv()

    def init_weight_transfer_engine(self, init_info):
        pass  # the server was told already

    def start_weight_update(self):
        self._call("start_weight_update")

    def update_weights(self, update_info):
        self._call("update_weights", update_info)

    def finish_weight_update(self, weight_version=None):
        self._call("finish_weight_update")


class SendVllm:
    def __init__(self, options, server, tensors, packed):
        module, _ = published.vllm(options.peers)
        weight_transfer = sys.modules[module.__name__.rpartition(".")[0] + ".base"]

        class Source(weight_transfer.ModuleSource):
            """Of a dict and not of a module: so no module has to be walked through."""

            def __init__(self):
                super().__init__(types.SimpleNamespace(named_parameters=lambda: tensors.items()))

        said = module.IPCTrainerInitInfo(rank=0, packed=packed, packed_buffer_size_bytes=options.bucket_mib << 20)
        self.engine = module.IPCTrainerWeightTransferEngine.trainer_init(said, client=Calls(server.calls), source=Source())

    def __call__(self):
        self.engine.send_weights()


class SendVerl:
    def __init__(self, options, path, tensors):
        self.module, _ = published.verl(options.peers, torch_kind(options))
        self.options, self.path, self.tensors = options, path, tensors
        self.loop = asyncio.new_event_loop()

    def __call__(self):
        sender = self.module.BucketedWeightSender(f"ipc://{self.path}", self.options.bucket_mib, self.options.device == "cpu")
        self.loop.run_until_complete(sender.async_send_weights(iter(self.tensors.items())))


class PlainCopy:
    """So many bytes, copied on the device: two halves, one after the other, so that it takes the memory of one model."""

    def __init__(self, options, size):
        import torch

        self.options, self.size = options, size
        half = (size + 15) // 16 * 8
        self.source = torch.empty(half // 8, dtype=torch.int64, device=options.device).random_()
        self.target = torch.empty_like(self.source)

    def seconds(self):
        synchronize(self.options)
        began = time.perf_counter()
        self.target.copy_(self.source, non_blocking=True)
        self.target.copy_(self.source, non_blocking=True)
        synchronize(self.options)
        return time.perf_counter() - began


def milliseconds(seconds):
    return round(seconds * 1e3, 3)


def line_of(options, way, times, copies, send, tensors, size, ran):
    import torch

    steady, copy = statistics.median(times[options.warm_up:]), statistics.median(copies[options.warm_up:])
    line = {
        "program": "python.py", "date": datetime.date.today().isoformat(), "torch": torch.__version__,
        "model": options.model, "layers": options.layers, "tensors": len(tensors), "bytes": size, "way": base(way),
        "prepared": way != base(way), "repeats": options.repeats, "warm_up": options.warm_up,
        "device": torch.cuda.get_device_name(options.device) if options.device != "cpu" else "cpu",
        "first_ms": milliseconds(times[0]), "steady_ms": milliseconds(steady),
        "min_ms": milliseconds(min(times[options.warm_up:])), "max_ms": milliseconds(max(times[options.warm_up:])),
        "GB_per_s": round(size / steady / 1e9, 1), "plain_copy_ms": milliseconds(copy),
        "of_plain_copy": round(copy / steady, 3), "ran": ran, "route": "torch",
        "bytes_checked": "sums of all tensors after each version, samples after the last",
    }
    if isinstance(send, SendRopeway):
        reports = send.reports[options.warm_up:]
        added = [took - report.total for took, report in zip(times[options.warm_up:], reports)]
        stages = {stage: round(statistics.median(report.stages.get(stage, 0) for report in reports) * 1e6, 1)
                  for stage in reports[-1].stages}
        line.update(route=reports[-1].receivers[0].route, added_us=round(statistics.median(added) * 1e6, 1),
                    called_us=round(statistics.median(send.called[options.warm_up:]) * 1e6, 1), stages_us=stages)
    elif way in ("vllm-packed", "verl-bucketed"):
        line["bucket_mib"] = options.bucket_mib
    return line


def report(lines):
    """A table for people; ratios to the fastest of ropeway's ways."""
    ours = min((line["steady_ms"] for line in lines if line["way"] in OURS), default=None)
    first = lines[0]
    print(f"{first['model']}: {first['tensors']} tensors, {first['bytes'] / 1e9:.1f} GB, {first['device']}, torch "
          f"{first['torch']}, {first['repeats']} repeats after {first['warm_up']}; one plain copy takes "
          f"{statistics.median(line['plain_copy_ms'] for line in lines):.2f} ms")
    print(f"{'way':20} {'route':>7} {'first':>10} {'median':>10} {'min':>9} {'max':>9} {'of a copy':>9} {'to ours':>8}  Python adds")
    for line in lines:
        name = line["way"] + ("-prepared" if line["prepared"] else "")
        times = f"{line['steady_ms'] / ours:.2f} x" if ours else ""
        added = f"{line['added_us']:.0f} us" if "added_us" in line else ""
        print(f"{name:20} {line['route']:>7} {line['first_ms']:7.1f} ms {line['steady_ms']:7.2f} ms {line['min_ms']:9.2f} "
              f"{line['max_ms']:9.2f} {line['of_plain_copy']:9.3f} {times:>8}  {added}")
    for line in lines:
        if line["ran"]:
            print(f"  {line['way']}: {line['ran']['package']} {line['ran']['version']}"
                  f"{', its files under a shim' if line['ran']['shim'] else ''}: {', '.join(line['ran']['files'])}")
        if "stages_us" in line:
            print(f"  {line['way']}{'-prepared' if line['prepared'] else ''}: called {line['called_us']:.0f} us; "
                  + ", ".join(f"{stage} {time:.0f}" for stage, time in line["stages_us"].items()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(FAMILIES), default="qwen3-8b")
    parser.add_argument("--layers", type=int, help="of the model (default: all)")
    parser.add_argument("--way", choices=WAYS, action="append", help="more than once for more; they take turns")
    parser.add_argument("--prepared", action="store_true", help="of ropeway's ways")
    parser.add_argument("--peers", metavar="FOLDER", help="has the peers' files in their places")
    parser.add_argument("--bucket-mib", type=int, default=2048, help="of the peers' buckets (2048, as verl configures)")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--route", default="automatic")
    parser.add_argument("--json", help="adds a line of JSON for each way to this file")
    options = parser.parse_args()
    options.warm_up = max(options.warm_up, 1)
    ways = list(dict.fromkeys(options.way or ["into"]))
    if options.prepared:
        ways = list(dict.fromkeys(f"{way}-prepared" if way in OURS else way for way in ways))

    import torch

    if options.device != "cpu":
        torch.cuda.set_device(options.device)
    else:
        published.ipc_on_the_host()
    try:  # before any process is started
        if any(way.startswith("vllm") for way in ways):
            published.vllm(options.peers)
        if "verl-bucketed" in ways:
            published.verl(options.peers, torch_kind(options))
    except (published.Missing, ImportError) as error:
        raise SystemExit(f"benchmarks/python.py: {error}") from None
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o700)
        paths = {base(way): os.path.join(folder, base(way)) for way in ways}
        groups = [{way: path for way, path in paths.items() if (way in OURS) == ours} for ours in (True, False)]
        servers = {way: server for group in groups if group for server in [Server(options, group)] for way in group}
        run(options, ways, paths, servers)


def run(options, ways, paths, servers):
    import torch

    tensors = trainers_tensors(options)
    bits = [tensor.view(torch.int16) for tensor in tensors.values()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    plain = PlainCopy(options, size)
    senders, send = {}, {}
    for way in ways:
        if base(way) in OURS and base(way) not in senders:
            import ropeway

            senders[base(way)] = ropeway.Sender(paths[base(way)], route=options.route, decide_limit=120)
    ran = {}
    for server in dict.fromkeys(servers.values()):
        ran.update(server.hear())
    for way in ways:
        if base(way) in OURS:
            sender = senders[base(way)]
            sender.wait_for_receivers(1, limit=120).wait()
            send[way] = SendRopeway(options, sender, tensors if way == base(way) else sender.prepare(tensors))
        elif way == "torch-ipc":
            send[way] = SendTorchIpc(options, servers[way], tensors)
        elif way == "verl-bucketed":
            send[way] = SendVerl(options, paths[way], tensors)
        else:
            send[way] = SendVllm(options, servers[way], tensors, way == "vllm-packed")
    times, copies = ({way: [] for way in ways} for _ in range(2))
    least = None
    for repeat in range(options.warm_up + options.repeats):
        for way in ways:
            server = servers[base(way)]
            torch._foreach_add_(bits, 1)  # a new version
            synchronize(options)
            if server.ask(base(way)) != "ready":
                raise SystemExit(f"{way}: the server is not ready")
            began = time.perf_counter()
            send[way]()
            times[way].append(time.perf_counter() - began)
            copies[way].append(plain.seconds())
            last = repeat == options.warm_up + options.repeats - 1
            if server.ask("sums") != sums_of(tensors.values()) or (
                    last and server.ask("samples") != samples_of(tensors.values())):
                raise SystemExit(f"{way}: the server holds other weights than were sent")
            if last:
                server.ask("forget")
            if options.device != "cpu":
                free = torch.cuda.mem_get_info(options.device)[0]
                least = free if least is None else min(least, free)
    for server in dict.fromkeys(servers.values()):
        server.end()
    for sender in senders.values():
        sender.close().wait()
    lines = [line_of(options, way, times[way], copies[way], send[way], tensors, size, ran.get(base(way))) for way in ways]
    report(lines)
    if least is not None:
        print(f"  at least {least / 1e9:.1f} GB of the device were free after each version")
    if options.json:
        with open(options.json, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)


if __name__ == "__main__":
    main()
