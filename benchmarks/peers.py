#!/usr/bin/env python3
"""Times the ways in which other systems hand a model's weights to a server on the same host, in the same terms as
ropeway-bench: two processes, the sender's clock, from the start of a version until the server has it and has said so.

    benchmarks/peers.py --model qwen3-8b [--to 1] [--json LINES.jsonl]

Needs torch with CUDA and nothing else. These are the code paths, not the systems: no engine, no RPC framework, no
gathering of shards, a dictionary for load_weights. Each is therefore faster here than where it comes from. A plain copy
of the same bytes is timed after each repeat.

    tensor-handles   a CUDA IPC handle for every tensor, every time (vLLM's unpacked IPC engine, OpenRLHF)
    flat-buckets     tensors concatenated into a bucket that is new each time, with its handle (SGLang, slime, SkyRL)
    double-buffer    two buffers exported once; one is packed while the other is loaded, with an answer for each
                     (checkpoint-engine, NeMo-RL, verl)
"""
import argparse
import datetime
import json
import multiprocessing
import platform
import statistics
import sys
import time

METHODS = ("tensor-handles", "flat-buckets", "double-buffer")

# hidden, layers, heads, heads of keys and values, head, inner, words, tied, experts: as in models.cpp
FAMILIES = {
    "qwen3-0.6b": (1024, 28, 16, 8, 128, 3072, 151936, True, 0),
    "qwen3-8b": (4096, 36, 32, 8, 128, 12288, 151936, False, 0),
    "qwen3-30b-a3b": (2048, 48, 32, 4, 128, 768, 151936, False, 128),
    "tiny": (64, 2, 4, 2, 16, 192, 512, True, 0),
}


def shapes(model, layers):
    """Names and shapes, all bf16."""
    hidden, depth, heads, kv_heads, head, inner, words, tied, experts = FAMILIES[model]
    yield "embed_tokens.weight", (words, hidden)
    for layer in range(layers or depth):
        at = f"layers.{layer}."
        yield at + "self_attn.q_proj.weight", (heads * head, hidden)
        yield at + "self_attn.k_proj.weight", (kv_heads * head, hidden)
        yield at + "self_attn.v_proj.weight", (kv_heads * head, hidden)
        yield at + "self_attn.o_proj.weight", (hidden, heads * head)
        yield at + "self_attn.q_norm.weight", (head,)
        yield at + "self_attn.k_norm.weight", (head,)
        if experts:
            yield at + "mlp.gate.weight", (experts, hidden)
        for expert in range(experts or 1):
            mlp = f"{at}mlp.experts.{expert}." if experts else at + "mlp."
            yield mlp + "gate_proj.weight", (inner, hidden)
            yield mlp + "up_proj.weight", (inner, hidden)
            yield mlp + "down_proj.weight", (hidden, inner)
        yield at + "input_layernorm.weight", (hidden,)
        yield at + "post_attention_layernorm.weight", (hidden,)
    yield "norm.weight", (hidden,)
    if not tied:
        yield "lm_head.weight", (words, hidden)


def bytes_of(shape):
    count = 2
    for extent in shape:
        count *= extent
    return count


def buckets_of(sizes, limit):
    """Lists of (name, first byte, place in the bucket, bytes). Tensors larger than a bucket are cut, which is kinder
    than what the systems do with them: a handle or a buffer of their own, or an error."""
    bucket, used = [], 0
    for name, size in sizes:
        at = 0
        while at < size:
            if used == limit or (used and size <= limit < used + size):
                yield bucket
                bucket, used = [], 0
            part = min(size - at, limit - used)
            bucket.append((name, at, used, part))
            at += part
            used += (part + 255) // 256 * 256
            used = min(used, limit)
    if bucket:
        yield bucket


class Side:
    """What trainer and server have alike."""

    def __init__(self, said, link, device, random):
        import torch
        self.torch, self.said, self.link = torch, said, link
        self.device = torch.device("cuda", device)
        torch.cuda.set_device(self.device)
        self.tensors = {}
        for name, shape in shapes(said.model, said.layers):
            tensor = torch.empty(shape, dtype=torch.bfloat16, device=self.device)
            bits = tensor.view(torch.int16)
            if random:
                bits.random_()
            else:
                bits.zero_()
            self.tensors[name] = tensor
        # Looked at once: no system does it for every version.
        self.flat = {name: tensor.view(-1).view(torch.uint8) for name, tensor in self.tensors.items()}
        sizes = [(name, flat.numel()) for name, flat in self.flat.items()]
        self.bytes = sum(size for _, size in sizes)
        self.buckets = list(buckets_of(sizes, said.bucket))
        self.synchronize()

    def synchronize(self):
        self.torch.cuda.synchronize(self.device)

    def sums(self):
        """Of all bytes of every tensor, and some of its elements as they are."""
        torch = self.torch
        all_bits = [tensor.view(torch.int16).view(-1) for tensor in self.tensors.values()]
        sums = torch.stack([bits.sum(dtype=torch.int64) for bits in all_bits])
        ends = torch.stack([torch.stack((bits[0], bits[bits.numel() // 3], bits[-1])) for bits in all_bits])
        return sums.tolist(), ends.tolist()

    def reduce(self, tensor):
        from torch.multiprocessing.reductions import reduce_tensor
        return reduce_tensor(tensor)

    def load(self, memory, bucket):
        for name, first, place, size in bucket:
            self.flat[name][first:first + size].copy_(memory[place:place + size], non_blocking=True)


def rebuilt(handle):
    function, arguments = handle
    return function(*arguments)


class TensorHandles:
    @staticmethod
    def send(my, _):
        my.link.send([(name, my.reduce(tensor)) for name, tensor in my.tensors.items()])
        my.link.recv()
        my.torch.cuda.ipc_collect()

    @staticmethod
    def receive(my, _):
        for name, handle in my.link.recv():
            my.tensors[name].copy_(rebuilt(handle), non_blocking=True)
        my.synchronize()
        my.link.send("loaded")


class FlatBuckets:
    @staticmethod
    def send(my, _):
        for bucket in my.buckets:
            # The last bytes of a part are padded up to where the next begins.
            parts, used = [], 0
            for name, first, place, size in bucket:
                if place != used:
                    parts.append(my.flat[name].new_empty(place - used))
                parts.append(my.flat[name][first:first + size])
                used = place + size
            flat = my.torch.cat(parts)
            my.synchronize()
            my.link.send((my.reduce(flat), bucket))
            my.link.recv()
            del flat, parts
            my.torch.cuda.ipc_collect()

    @staticmethod
    def receive(my, _):
        for _ in my.buckets:
            handle, bucket = my.link.recv()
            flat = rebuilt(handle)
            my.load(flat, bucket)
            my.synchronize()
            del flat, handle
            my.link.send("loaded")


class DoubleBuffer:
    @staticmethod
    def send(my, kept):
        if not kept:
            kept["memory"] = my.torch.empty(2 * my.said.bucket, dtype=my.torch.uint8, device=my.device)
            my.link.send(my.reduce(kept["memory"]))
        loading = False
        for number, bucket in enumerate(my.buckets):
            half = kept["memory"][number % 2 * my.said.bucket:]
            for name, first, place, size in bucket:
                half[place:place + size].copy_(my.flat[name][first:first + size], non_blocking=True)
            my.torch.cuda.current_stream().synchronize()
            if loading:
                my.link.recv()
            my.link.send((number % 2, bucket))
            loading = True
        my.link.recv()

    @staticmethod
    def receive(my, kept):
        if not kept:
            kept["memory"] = rebuilt(my.link.recv())
        for _ in my.buckets:
            half, bucket = my.link.recv()
            my.load(kept["memory"][half * my.said.bucket:], bucket)
            my.synchronize()
            my.link.send("loaded")


WAYS = dict(zip(METHODS, (TensorHandles, FlatBuckets, DoubleBuffer)))


class PlainCopy:
    """One copy of as many bytes, to the server's GPU; done by the trainer."""

    def __init__(self, my, to):
        torch = my.torch
        self.my, self.to = my, torch.device("cuda", to)
        self.source = torch.empty(my.bytes // 8, dtype=torch.int64, device=my.device).random_()
        self.target = torch.empty(my.bytes // 8, dtype=torch.int64, device=self.to)

    def seconds(self):
        began = time.perf_counter()
        self.target.copy_(self.source)
        self.my.synchronize()
        self.my.torch.cuda.synchronize(self.to)
        return time.perf_counter() - began


def trainer(said, methods, link, results):
    my = Side(said, link, said.source, random=True)
    torch = my.torch
    plain = PlainCopy(my, said.to)
    bits = [tensor.view(torch.int16) for tensor in my.tensors.values()]
    for method in methods:
        link.send(method)
        kept, taken, copies = {}, [], []
        for repeat in range(said.warm_up + said.repeats):
            torch._foreach_add_(bits, 1)  # a new version
            my.synchronize()
            link.send("begin")
            link.recv()
            began = time.perf_counter()
            WAYS[method].send(my, kept)
            link.recv()  # committed
            took = time.perf_counter() - began
            copy = plain.seconds()
            if repeat >= said.warm_up:
                taken.append(took)
                copies.append(copy)
        link.send(my.sums())
        right = link.recv()
        del kept
        torch.cuda.ipc_collect()
        results.send(dict(method=method, seconds=taken, copies=copies, right=right, bytes=my.bytes,
                          tensors=len(my.tensors), buckets=len(my.buckets), torch=torch.__version__,
                          device=torch.cuda.get_device_name(said.source),
                          receiver_device=torch.cuda.get_device_name(said.to)))
    link.send(None)
    results.send(None)


def server(said, link):
    my = Side(said, link, said.to, random=False)
    while (method := link.recv()) is not None:
        kept = {}
        for _ in range(said.warm_up + said.repeats):
            link.recv()
            link.send("ready")
            WAYS[method].receive(my, kept)
            link.send("committed")
        link.send(my.sums() == link.recv())
        del kept


def summary(seconds, size):
    middle = statistics.median(seconds)
    return {"median_s": round(middle, 9), "min_s": round(min(seconds), 9), "max_s": round(max(seconds), 9),
            "spread": (max(seconds) - min(seconds)) / middle, "GB_per_s": size / middle / 1e9,
            "seconds": [round(one, 9) for one in seconds]}


def line_of(said, result):
    size = result["bytes"]
    line = {"program": "peers.py", "case": "steady", "name": result["method"], "route": "peer", "model": said.model,
            "layers": said.layers, "from": f"cuda:{said.source}", "to": f"cuda:{said.to}", "device": result["device"],
            "receiver_device": result["receiver_device"], "kernel": platform.release(),
            "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "command": "peers.py " + " ".join(sys.argv[1:]), "torch": result["torch"], "receivers": 1,
            "tensors": result["tensors"], "bytes": size, "moved_bytes": size, "bucket_bytes": said.bucket,
            "buckets": result["buckets"], "slots": 2 if result["method"] == "double-buffer" else 1,
            "warm_up": said.warm_up, "repeats": len(result["seconds"]),
            "bytes_checked": "sums of all tensors, after the last send", "send": summary(result["seconds"], size),
            "limit": summary(result["copies"], size)}
    line["limit"]["is"] = "one copy of the same bytes"
    line["ratio_to_limit"] = line["limit"]["median_s"] / line["send"]["median_s"]
    return line


def write(said, line):
    if said.json:
        with open(said.json, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    else:
        print(json.dumps(line), flush=True)


def pair(said, methods):
    """Runs methods in turn in one pair of processes; gives those that are left when something went wrong."""
    spawn = multiprocessing.get_context("spawn")
    trainers_end, servers_end = spawn.Pipe()
    results, says = spawn.Pipe(duplex=False)
    both = [spawn.Process(target=server, args=(said, servers_end), daemon=True),
            spawn.Process(target=trainer, args=(said, methods, trainers_end, says), daemon=True)]
    for one in both:
        one.start()
    # With their ends closed here, each notices when the other is gone.
    for end in (trainers_end, servers_end, says):
        end.close()
    left = list(methods)
    until = time.monotonic() + said.start_limit + said.limit
    try:
        while left:
            if not results.poll(max(0.0, until - time.monotonic())):
                print(f"{left[0]}: not done in time", flush=True)
                break
            result = results.recv()
            until = time.monotonic() + said.limit
            if not result["right"]:
                print(f"{result['method']}: WRONG BYTES", flush=True)
                said.failed.append(left.pop(0))
                continue
            line = line_of(said, result)
            write(said, line)
            print(f"{left.pop(0):16} {line['send']['median_s'] * 1e3:9.2f} ms {line['send']['GB_per_s']:8.1f} GB/s"
                  f"  {line['ratio_to_limit']:.3f} of one copy ({line['limit']['GB_per_s']:.1f} GB/s)", flush=True)
    except EOFError:
        print(f"{left[0]}: a process ended (see above)", flush=True)
    if left:
        said.failed.append(left.pop(0))
    for one in both:
        if not left:
            one.join(20)
        if one.is_alive():
            one.kill()
            one.join()
    return left


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=FAMILIES, default="qwen3-8b")
    parser.add_argument("--layers", type=int, default=0, help="of the model (default: all)")
    parser.add_argument("--from", dest="source", type=int, default=0, help="the trainer's GPU")
    parser.add_argument("--to", type=int, default=0, help="the server's GPU")
    parser.add_argument("--method", choices=METHODS, action="append", help="only this one; more than once for more")
    parser.add_argument("--bucket-mib", type=int, default=512)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--limit", type=float, default=30, help="seconds that a method may take")
    parser.add_argument("--start-limit", type=float, default=60, help="seconds that the processes may take to start")
    parser.add_argument("--json", help="adds lines of JSON to this file instead of printing them")
    said = parser.parse_args()
    said.bucket = said.bucket_mib << 20
    said.failed = []
    left = list(said.method or METHODS)
    while left:
        left = pair(said, left)
    for method in said.failed:
        print(f"FAILED: {method}")
    sys.exit(bool(said.failed))


if __name__ == "__main__":
    main()
