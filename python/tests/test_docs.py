"""The blocks of the pages are run: docs/python.md and the adapters' pages define functions, and those of docs/python.md are
called here, the adapters' in test_adapters.py, beside what stands in for their engines."""
from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

import ropeway

from pages import blocks_of, text_of


@pytest.fixture(scope="module")
def guide():
    return blocks_of("python.md")


@pytest.mark.parametrize("page", ["vllm", "verl", "sglang"])
def test_each_adapter_has_a_page_that_says_the_same_things(page):
    assert [line[3:] for line in text_of(f"{page}.md").splitlines() if line.startswith("## ")] == [
        "What to change", "Options", "What is different", "How it fails", "What was tested"]
    assert blocks_of(f"{page}.md")


def weights():
    return {"a.weight": np.zeros((6, 4), np.float32), "b.weight": np.zeros(3, np.float32)}


def step(model):
    for tensor in model.values():
        tensor += 1


def test_a_trainer_and_a_server(guide, address, run):
    trained, served = weights(), weights()

    async def main():
        await asyncio.gather(guide["serve"](address, served), guide["train"](address, trained, step, 3))

    run(main())
    assert all((tensor == 3).all() for tensor in served.values())


def test_without_a_loop(guide, address):
    trained, served = weights(), weights()
    server = threading.Thread(target=guide["serve_blocking"], args=(address, served))
    server.start()
    guide["train_blocking"](address, trained, step, 3)
    server.join(60)
    assert all((tensor == 3).all() for tensor in served.values())


def test_updates_that_are_loaded_as_they_come(guide, address, run):
    sets = [weights(), weights()]
    shadow = ropeway.ShadowDestinations(*map(ropeway.Destinations, sets))
    trained = weights()

    async def send(sender):
        for version in range(1, 4):
            step(trained)
            assert (await sender.send_weights(version, trained)).count("committed") == 1

    with_a_server(address, run, send, lambda receiver: guide["serve_next"](receiver, shadow))
    with shadow.lease() as lease:
        assert lease.version == 3 and all((tensor == 3).all() for tensor in sets[lease.set].values())


def with_a_server(address, run, send, take=None):
    """Runs `send(sender)` beside a server, and gives what that holds."""
    served = weights()

    async def serve(receiver):
        async for update in receiver:
            await update.load_into(served)

    async def main():
        async with ropeway.Sender(address) as sender, ropeway.Receiver() as receiver:
            await receiver.connect(address)
            server = asyncio.ensure_future((take or serve)(receiver))
            await send(sender)
            await sender.close()
            await server

    run(main())
    return served


def test_prepared_and_going_on(guide, address, run):
    trained = weights()

    async def send(sender):
        await guide["train_prepared"](sender, trained, step, 2)
        report = await guide["train_on"](sender, 3, trained, lambda: step(trained))
        assert report.count("committed") == 1

    served = with_a_server(address, run, send)
    assert all((tensor == 2).all() for tensor in served.values())
    assert all((tensor == 3).all() for tensor in trained.values())


def test_sources(guide, address, run):
    trained = weights()

    async def send(sender):
        step(trained)
        await guide["send_gathered"](sender, 1, trained)
        await guide["send_gathered"](None, 1, trained)
        await sender.send_weights(2, guide["merged"]({"b.weight": np.full(3, 5, np.float32)}, trained))

    served = with_a_server(address, run, send)
    assert (served["a.weight"] == 1).all() and (served["b.weight"] == 6).all()


def test_places(guide, address, run):
    qkv, out = np.zeros((6, 4), np.float32), np.zeros((4, 2), np.float32)
    places = guide["rank_places"](qkv, out, 1, 2)
    source = {f"{one}_proj.weight": np.full((4, 4), at, np.float32) for at, one in enumerate("qkvo")}

    async def take(receiver):
        async for update in receiver:
            await update.load_into(places)

    async def send(sender):
        await sender.send_weights(1, {**source, "other": np.zeros(1)})

    with_a_server(address, run, send, take)
    assert [list(rows) for rows in qkv] == [[at] * 4 for at in (0, 0, 1, 1, 2, 2)] and (out == 3).all()


def test_a_lease(guide, address, run):
    sets = [weights(), weights()]
    shadow = ropeway.ShadowDestinations(*map(ropeway.Destinations, sets))
    assert guide["answer"](sets, shadow, len) is None

    async def take(receiver):
        async for update in receiver:
            await update.load_into(shadow)

    async def send(sender):
        trained = weights()
        step(trained)
        await sender.send_weights(1, trained)

    with_a_server(address, run, send, take)
    assert guide["answer"](sets, shadow, lambda one: one["a.weight"][0, 0]) == 1


def test_loaders(guide, address, run):
    held = {}

    def load_weights(tensors):
        held.update((name, tensor.clone() if hasattr(tensor, "clone") else tensor.copy()) for name, tensor in tensors)

    async def send(sender):
        trained = weights()
        step(trained)
        await sender.send_weights(1, trained)

    with_a_server(address, run, send, lambda receiver: guide["serve_through_loader"](receiver, load_weights))
    assert all((tensor == 1).all() for tensor in held.values()) and set(held) == set(weights())


def test_a_captured_loader(guide, address, run):
    torch = pytest.importorskip("torch", reason="torch is not installed")

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Parameter(torch.zeros(6, 4))
            self.b = torch.nn.Parameter(torch.zeros(3))

        def load_weights(self, tensors):
            for name, tensor in tensors:
                getattr(self, name[0]).data.copy_(tensor)

    model = Model()

    async def send(sender):
        trained = weights()
        step(trained)
        await sender.send_weights(1, trained)

    with_a_server(address, run, send, lambda receiver: guide["serve_captured"](receiver, model))
    assert (model.a == 1).all() and (model.b == 1).all()
