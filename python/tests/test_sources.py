"""Tensors that are made while they are sent."""
from __future__ import annotations

import asyncio
import gc
import weakref

import numpy as np
import pytest

import ropeway

STATED = [(f"layer.{at}", "F32", (1000,)) for at in range(10)]


def layer(at, version=1):
    return np.full(1000, version * 100 + at, np.float32)


def places():
    return {name: np.zeros(shape, np.float32) for name, _, shape in STATED}


@pytest.fixture
def pair(address):
    with ropeway.Sender(address, bucket_bytes=8192) as sender, ropeway.Receiver() as receiver:
        receiver.connect(address).wait()
        yield sender, receiver


def load(follow, receiver, into):
    return follow(receiver, lambda update: update.load_into(into).wait())


def test_an_iterator_is_asked_when_its_turn_comes(pair, follow):
    sender, receiver = pair
    into = ropeway.Destinations(memory := places())
    server = load(follow, receiver, into)
    alive = weakref.WeakSet()
    most = 0

    def tensors():
        nonlocal most
        for at, (name, _, _) in enumerate(STATED):
            tensor = Layer(layer(at))
            alive.add(tensor)
            most = max(most, len(alive))
            yield name, tensor
            del tensor

    source = ropeway.Source(STATED, tensors)
    for version in (1, 2):
        assert sender.send_weights(version, source).wait().count("committed") == 1
    sender.close().wait()
    server.join()
    assert not server.errors
    assert all((memory[name] == 100 + at).all() for at, (name, _, _) in enumerate(STATED))
    # Two fit into a bucket, and there are two slots: what is being packed is alive, and never the whole model.
    assert most <= 6
    gc.collect()
    assert not alive


class Layer:
    """A tensor that can be watched; numpy's arrays are seen through the buffer."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **how):
        return self._array.__dlpack__(**how)

    def __dlpack_device__(self):
        return (1, 0)


def test_an_async_iterator(address, run):
    async def main():
        async def tensors():
            for at, (name, _, _) in enumerate(STATED):
                await asyncio.sleep(0)
                yield name, layer(at)

        async with ropeway.Sender(address, bucket_bytes=4096) as sender, ropeway.Receiver() as receiver:
            await receiver.connect(address)
            for what in (ropeway.Source(STATED, tensors), tensors()):
                memory = places()
                sending = asyncio.ensure_future(awaited(sender.send_weights(1, what)))
                update = await receiver.next_update()
                await update.load_into(memory)
                assert (await sending).count("committed") == 1
                assert all((memory[name] == 100 + at).all() for at, (name, _, _) in enumerate(STATED))

    run(main())


async def awaited(operation):
    return await operation


def test_an_async_iterator_needs_a_loop(pair, follow):
    sender, receiver = pair

    async def tensors():
        yield "layer.0", layer(0)

    with pytest.raises(TypeError, match="await"):
        sender.send_weights(1, tensors()).wait()
    server = load(follow, receiver, ropeway.Destinations(places()))
    with pytest.raises(ropeway.TransferError) as caught:
        sender.send_weights(1, ropeway.Source(STATED, tensors)).wait()
    assert caught.value.code == "source_failed" and isinstance(caught.value.__cause__, TypeError)
    sender.close().wait()
    server.join()


@pytest.mark.parametrize("fails_at", [0, 3, 9])
def test_an_iterator_that_raises_aborts_with_its_words(pair, follow, fails_at):
    sender, receiver = pair
    into = ropeway.Destinations(places())
    server = load(follow, receiver, into)

    def tensors():
        for at, (name, _, _) in enumerate(STATED):
            if at == fails_at:
                raise ValueError("no gradient today")
            yield name, layer(at)

    with pytest.raises(ropeway.TransferError) as caught:
        sender.send_weights(1, ropeway.Source(STATED, tensors)).wait()
    assert caught.value.code == "source_failed" and "ValueError: no gradient today" in str(caught.value)
    assert isinstance(caught.value.__cause__, ValueError)
    # The next one works, on both sides.
    assert sender.send_weights(2, [(name, layer(at)) for at, (name, _, _) in enumerate(STATED)]).wait()
    sender.close().wait()
    server.join()
    for error in server.errors:  # none, if it was withdrawn before the server looked at it
        assert error.code == "peer_aborted" and "no gradient today" in error.peer_words
    assert len(server.errors) <= 1
    assert server.reports[0].version == 2 and not into.torn


@pytest.mark.parametrize("given, words", [
    (lambda: [], "ended before"),
    (lambda: [("other", layer(0))], "announced"),
    (lambda: [("layer.0", layer(0)[:10])], "layer.0"),
    (lambda: [("layer.0", object())], "no tensor"),
    (lambda: [None], "TypeError"),
    (lambda: 1 / 0, "ZeroDivisionError"),
])
def test_an_iterator_that_gives_something_else(pair, follow, given, words):
    sender, receiver = pair
    server = load(follow, receiver, ropeway.Destinations(places()))
    with pytest.raises(ropeway.TransferError, match=words) as caught:
        sender.send_weights(1, ropeway.Source(STATED, given)).wait()
    assert caught.value.code == "source_failed"
    sender.close().wait()
    server.join()


def test_an_interrupt_in_an_iterator_is_raised_when_the_send_has_ended(pair, follow):
    sender, receiver = pair
    server = load(follow, receiver, ropeway.Destinations(places()))

    def tensors():
        yield "layer.0", layer(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sender.send_weights(1, ropeway.Source(STATED, tensors)).wait()
    sender.close().wait()
    server.join()


def test_cancelled_while_the_iterator_is_awaited(address, run):
    async def main():
        stuck = asyncio.Event()

        async def tensors():
            yield "layer.0", layer(0)
            stuck.set()
            await asyncio.sleep(3600)

        async with ropeway.Sender(address) as sender, ropeway.Receiver() as receiver:
            await receiver.connect(address)
            sending = asyncio.ensure_future(awaited(sender.send_weights(1, ropeway.Source(STATED, tensors))))
            loading = asyncio.ensure_future(awaited((await receiver.next_update()).load_into(places())))
            await stuck.wait()
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            with pytest.raises(ropeway.TransferError):
                await loading
            memory = places()
            sending = sender.send_weights(2, [(name, layer(at)) for at, (name, _, _) in enumerate(STATED)])
            await (await receiver.next_update()).load_into(memory)
            await sending

    run(main())


def test_shards_are_gathered_when_their_turn_comes(pair, follow):
    sender, receiver = pair

    class Shard:
        """As a DTensor shows itself."""

        dtype = np.dtype(np.float32)
        shape = (1000,)

        def __init__(self, at):
            self._at = at

        def full_tensor(self):
            return layer(self._at)

    shards = {name: Shard(at) for at, (name, _, _) in enumerate(STATED)}
    memory = places()
    server = load(follow, receiver, ropeway.Destinations(memory))
    source = ropeway.gathered(shards)
    sender.send_weights(1, source).wait()
    assert (memory["layer.9"] == 109).all()
    sender.send_weights(2, ropeway.gathered(shards, lambda name, shard: shard.full_tensor() + 1)).wait()
    assert (memory["layer.9"] == 110).all()
    assert [name for name, _ in source.iterate()] == list(shards)  # as the other ranks do
    sender.close().wait()
    server.join()


def test_what_is_stated_is_cast_to(address):
    with ropeway.Sender(address) as sender, ropeway.Receiver() as receiver:
        receiver.connect(address).wait()
        source = ropeway.Source([("w", np.float16, [4])], [("w", np.arange(4, dtype=np.float32))])
        memory = {"w": np.zeros(4, np.float16)}
        import threading

        thread = threading.Thread(target=lambda: receiver.next_update().wait().load_into(memory).wait())
        thread.start()
        sender.send_weights(1, source).wait()
        thread.join(60)
        assert list(memory["w"]) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="device"):
        ropeway.Source([], [], device="tpu")
    with pytest.raises(TypeError, match="send_weights"):
        sender.start(1, source)


def test_a_source_states_its_dtypes_itself(address):
    with ropeway.Sender(address) as sender, pytest.raises(TypeError, match="instead of `cast`"):
        sender.send_weights(1, ropeway.Source(STATED, lambda: iter(())), cast="BF16")


def test_a_limit_on_a_send_from_an_iterator(pair):
    """Whichever step it comes in: before the update is accepted no tensor is asked for."""
    sender, receiver = pair
    for wait in (0.05, 0.2):
        with pytest.raises(TimeoutError, match=f"{wait:g} s"):
            sender.send_weights(1, ropeway.Source(STATED, lambda: ((name, layer(0)) for name, _, _ in STATED))).wait(wait)
