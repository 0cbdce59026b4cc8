"""The other process of the tests with a device: `python device.py SOCKET` does what it is told through that socket, call by
call, and answers with what each call gave. `Other` is the test's end of it."""
from __future__ import annotations

import contextlib
import multiprocessing.connection
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import torch

import ropeway
from roles import state

DEVICE = os.environ.get("ROPEWAY_TEST_DEVICE") or ("cuda:0" if torch.cuda.is_available() else "")
"""Where the tests' tensors lie; nothing, without a device. ROPEWAY_TEST_DEVICE=cpu tries the tests themselves."""
RECEIVER_DEVICE = os.environ.get("ROPEWAY_TEST_RECEIVER_DEVICE") or DEVICE
"""Where those of the other process lie: cuda:1 tries the same from one GPU to another."""
CUDA = DEVICE.startswith("cuda")
ROUTE = "mapped" if CUDA else "host"
"""How torch's tensors travel from process to process."""


def synchronize():
    if CUDA:
        torch.cuda.synchronize()


def slow(cycles=100_000_000):
    """Keeps the current stream busy: 100 million cycles are about 60 ms."""
    if CUDA:
        torch.cuda._sleep(cycles)


@contextlib.contextmanager
def segments(expandable):
    """Memory that is allocated meanwhile lies in segments of this kind."""
    if not (CUDA and expandable):
        yield
        return
    setting = getattr(torch._C, "_accelerator_setAllocatorSettings", None) or torch.cuda.memory._set_allocator_settings
    torch.cuda.empty_cache()  # so that nothing is found in segments of the other kind
    setting("expandable_segments:True")
    try:
        yield
    finally:
        setting("expandable_segments:False")


def is_expandable(tensor):
    for segment in torch.cuda.memory_snapshot():
        if segment["address"] <= tensor.data_ptr() < segment["address"] + segment["total_size"]:
            return segment["is_expandable"]
    raise AssertionError("no segment has this tensor")


def content(tensors):
    """Bytes of each, for comparing across processes."""
    return {name: tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy().tobytes() if tensor.numel() else b""
            for name, tensor in tensors.items()}


def growth():
    """What must not grow, on the device as well."""
    found = state()
    if CUDA:
        torch.cuda.synchronize()
        found.update(allocated=torch.cuda.memory_allocated(), reserved=torch.cuda.memory_reserved())
    return found


def used():
    """Bytes of the whole device that anybody uses."""
    free, total = torch.cuda.mem_get_info()
    return total - free


class Failed(Exception):
    """What a call in the other process raised."""

    def __init__(self, kind, words, code):
        super().__init__(f"{kind}: {words}")
        self.kind, self.code = kind, code


class Other:
    """Another process, which has the members of `Server`."""

    def __init__(self, folder):
        path = os.path.join(folder, "calls")
        listener = multiprocessing.connection.Listener(path, "AF_UNIX")
        self.process = subprocess.Popen([sys.executable, "-X", "faulthandler", __file__, path],
                                        env=dict(os.environ, ROPEWAY_TEST_DEVICE=RECEIVER_DEVICE))
        self._watch = threading.Timer(400, self.process.kill)
        self._watch.daemon = True
        self._watch.start()
        listener._listener._socket.settimeout(100)
        self._calls, self._number = listener.accept(), 0
        listener.close()

    def start(self, call, *arguments, **knobs):
        self._number += 1
        self._calls.send((self._number, call, arguments, knobs))

    def result(self, limit=60):
        number = 0
        while number != self._number:  # what an earlier call gave, nobody asked for: a test that failed
            if not self._calls.poll(limit):
                raise TimeoutError("the other process says nothing")
            number, said, *what = self._calls.recv()
        if said == "failed":
            raise Failed(*what)
        return what[0]

    def __call__(self, call, *arguments, **knobs):
        self.start(call, *arguments, **knobs)
        return self.result()

    def heard(self, limit=60):
        """What it says while a call runs."""
        return self.result(limit)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def close(self):
        self._watch.cancel()
        self._calls.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Server:
    """What the other process can do. Its destinations, receiver and model stay from call to call."""

    def __init__(self, calls):
        self._calls, self.number = calls, 0
        self.receiver, self.into, self.places, self.model = None, {}, None, None

    def say(self, what):
        self._calls.send((self.number, "done", what))

    # ---- destinations ----

    def make(self, stated, expandable=False):
        """Destinations of (name, dtype, shape)."""
        with segments(expandable):
            self.into = {name: torch.zeros(shape, dtype=getattr(torch, dtype), device=DEVICE) for name, dtype, shape in stated}
        self.places = ropeway.Destinations(self.into)
        if expandable and CUDA:
            return is_expandable(next(iter(self.into.values())))
        return False

    def content(self):
        return content(self.into)

    def torn(self):
        return self.places.torn

    def forget(self):
        """Everything that it holds, and what torch has kept of it."""
        self.into, self.places, self.model = {}, None, None
        if CUDA:
            torch.cuda.empty_cache()

    # ---- updates ----

    def connect(self, address, **knobs):
        self.close()
        self.receiver = ropeway.Receiver(name="server", device=DEVICE, **knobs)
        self.receiver.connect(address).wait(30)

    def close(self):
        if self.receiver is not None:
            self.receiver.close().wait(30)
        self.receiver = None

    def load(self):
        report = self.receiver.next_update().wait(30).load_into(self.places).wait(30)
        return {"version": report.version, "route": report.route, "digest": report.digest}

    def load_on_a_loop(self):
        import asyncio

        async def load():
            update = await self.receiver.next_update()
            return await update.load_into(self.places)

        report = asyncio.run(load())
        return {"version": report.version, "route": report.route}

    def load_while_reading(self):
        """What a slow kernel read, that was queued on the serving stream before the load, and what one reads after it."""
        side = torch.cuda.Stream() if CUDA else None
        with torch.cuda.stream(side) if CUDA else contextlib.nullcontext():
            slow()
            before = {name: tensor.clone() for name, tensor in self.into.items()}
            self.load()
            after = {name: tensor.clone() for name, tensor in self.into.items()}
            return content(before), content(after)

    def load_and_free(self):
        """Gives the destinations' memory to others the moment that the load has ended; says what they hold later."""
        self.load()
        held = self.content()
        sizes = [(tensor.shape, tensor.dtype) for tensor in self.into.values()]
        self.into, self.places = {}, None
        others = [torch.full(shape, 7, dtype=dtype, device=DEVICE) for shape, dtype in sizes]
        time.sleep(0.05)  # a copy that came late would have come
        synchronize()
        return held, all(bool((other == 7).all()) for other in others)

    def load_with(self, raises_at=0, keeps=None):
        """A loader that copies; it raises at a call, or keeps a tensor."""
        calls, kept = 0, []

        def load_weights(tensors):
            nonlocal calls
            calls += 1
            if calls == raises_at:
                raise KeyError("no layer of that name")
            for name, tensor in tensors:
                self.into[name].copy_(tensor)
                if name == keeps:
                    kept.append(tensor)

        try:
            self.receiver.next_update().wait(30).load_with(load_weights, tensors="torch").wait(30)
        finally:
            kept.clear()  # and its slot is free
        return calls

    def load_captured(self, versions):
        """Through a loader that fuses: `fused` is a on b, `turned` is c's transpose."""
        a, b, c = (self.into[name] for name in ("a", "b", "c"))
        fused = torch.zeros(a.shape[0] + b.shape[0], a.shape[1], device=DEVICE)
        turned, calls = torch.zeros(c.shape[1], c.shape[0], device=DEVICE), 0

        def load_weights(tensors):
            nonlocal calls
            calls += 1
            for name, tensor in tensors:
                if name == "c":
                    turned.copy_(tensor.t())
                else:
                    fused.narrow(0, 0 if name == "a" else a.shape[0], tensor.shape[0]).copy_(tensor)

        loader = ropeway.CapturedLoader(load_weights, {"fused": fused, "turned": turned})
        held = []
        for _ in range(versions):
            loader.load(self.receiver.next_update().wait(30)).wait(30)
            held.append(content({"fused": fused, "turned": turned}))
        return held, calls, dict(loader.plan.by_tensor)

    def follow(self, versions, way):
        """Loads so many; what it has grown by after a quarter, and at the end."""
        found = []
        load_weights = lambda tensors: [self.into[name].copy_(tensor) for name, tensor in tensors]  # noqa: E731
        loader = ropeway.CapturedLoader(load_weights, self.into)
        for number in range(1, versions + 1):
            update = self.receiver.next_update().wait(30)
            if way == "into":
                update.load_into(self.places).wait(30)
            elif way == "with":
                update.load_with(load_weights, tensors="torch").wait(30)
            else:
                loader.load(update).wait(30)
            if number in (versions // 4, versions):
                found.append(growth())
        return found

    def wait_to_be_interrupted(self):
        """Says where it is, and raises KeyboardInterrupt."""
        waiting = self.receiver.next_update()
        self.say("waiting")
        waiting.wait(30)

    def hang_in_a_loader(self):
        def load_weights(tensors):
            self.say("loading")
            time.sleep(3600)

        self.receiver.next_update().wait(30).load_with(load_weights, tensors="torch").wait(3600)

    def hang_as_a_trainer(self, address, stated):
        """Sends a version, and a second one whose iterator stops after the first tensor."""
        tensors = {name: torch.ones(shape, dtype=getattr(torch, dtype), device=DEVICE) for name, dtype, shape in stated}

        def some():
            yield next(iter(tensors.items()))
            self.say("stuck")
            time.sleep(3600)

        sender = ropeway.Sender(address)
        sender.wait_for_receivers(1, limit=30).wait(30)
        sender.send_weights(1, tensors).wait(30)
        self.say("sent")
        sender.send_weights(2, ropeway.Source([(name, one.dtype, one.shape) for name, one in tensors.items()], some,
                                              DEVICE)).wait(3600)

    # ---- graphs and models ----

    def load_under_a_graph(self, versions):
        """What a graph that reads the destinations gives after each version."""
        synchronize()
        (name, tensor), = self.into.items()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            doubled = tensor * 2
        held = []
        for _ in range(versions):
            self.load()
            graph.replay()
            held.append(content({name: doubled}))
        return held

    def load_while_capturing(self):
        """A graph is captured on this thread while another one loads an update, beginning to end."""
        (name, tensor), = self.into.items()
        loaded, failures = threading.Event(), []

        def load():
            try:
                self.load()
            except Exception as error:
                failures.append(error)
            loaded.set()

        graph, x = torch.cuda.CUDAGraph(), torch.ones(1000, device=DEVICE)
        with torch.cuda.graph(graph):
            y = x + 1
            thread = threading.Thread(target=load)
            thread.start()
            self.say("capturing")
            while not loaded.wait(0.001):
                pass
            y = y * 2
        thread.join()
        if failures:
            raise failures[0]
        graph.replay()
        return bool((y == 4).all()), self.content()

    def make_model(self, kind, expandable, graph):
        import models

        with segments(expandable):
            self.model = models.make(kind, 2, DEVICE)
            prompt = models.tokens(DEVICE)
        self.places = ropeway.Destinations(self.model)
        self.forward = lambda: models.logits_of(self.model, prompt)
        if graph:
            replayed, found = models.graph_of(self.model, prompt)

            def forward():
                replayed.replay()
                return found

            self.forward = forward
        return is_expandable(next(self.model.parameters())) if CUDA else expandable

    def logits(self):
        """After the next version."""
        said = self.load()
        return said["route"], content({"logits": self.forward()})["logits"]


def main(path):
    if CUDA:
        torch.cuda.set_device(DEVICE)
    calls = multiprocessing.connection.Client(path, "AF_UNIX")
    server = Server(calls)
    while True:
        try:
            server.number, call, arguments, knobs = calls.recv()
        except EOFError:
            break
        except KeyboardInterrupt:
            continue
        try:
            calls.send((server.number, "done", getattr(server, call)(*arguments, **knobs)))
        except BaseException as error:
            calls.send((server.number, "failed", type(error).__name__, str(error), getattr(error, "code", None)))
    server.close()


if __name__ == "__main__":
    main(sys.argv[1])
