"""Operations that are given up in the moments between two steps, threads that get the GIL there, and what must not stay
behind then."""
from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
import weakref

import numpy as np
import pytest

import ropeway
from ropeway import _operation

WEIGHTS = {f"layer.{at}": np.full(1000, at, np.float32) for at in range(4)}


def zeros():
    return {name: np.zeros_like(tensor) for name, tensor in WEIGHTS.items()}


def test_a_source_that_is_cancelled_when_its_question_has_come(pair, follow):
    sender, receiver = pair
    server = follow(receiver, lambda update: update.load_into(zeros()).wait())
    source = ropeway.Source([(name, "F32", (1000,)) for name in WEIGHTS], lambda: iter(WEIGHTS.items()))

    async def main():
        async def send():
            await sender.send_weights(1, source)

        sending = asyncio.ensure_future(send())
        await asyncio.sleep(0)
        time.sleep(0.1)  # the loop stands still: the library has asked for the first tensor when it is cancelled
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert (await sender.send_weights(2, WEIGHTS)).count("committed") == 1

    asyncio.run(main())
    sender.close().wait()
    server.join()


def test_what_is_cancelled_between_two_steps_ends(pair):
    sender, receiver = pair
    into = zeros()
    sending = sender.send_weights(1, WEIGHTS)
    update = receiver.next_update().wait()

    def load_weights(tensors):
        loading.cancel()  # as another thread may, while the loader runs
        for name, tensor in tensors:
            into[name][...] = tensor

    loading = update.load_with(load_weights, tensors="numpy")
    with pytest.raises(ropeway.TransferError) as caught:
        loading.wait()
    assert caught.value.code == "operation_aborted"
    with pytest.raises(ropeway.TransferError):
        sending.wait()


def test_destinations_that_an_update_is_awaited_for_are_not_given_away(pair):
    sender, receiver = pair
    one, other = ropeway.Destinations(zeros()), ropeway.Destinations(zeros())
    loading = receiver.load_next(one)
    with pytest.raises(ValueError, match="waits"):
        ropeway.ShadowDestinations(one, other)
    sender.send_weights(1, WEIGHTS).wait()
    assert loading.wait().version == 1 and one.version == 1
    shadow = ropeway.ShadowDestinations(one, other)
    loading = receiver.load_next(shadow)
    sender.send_weights(2, WEIGHTS).wait()
    assert loading.wait().version == 2 and shadow.version == 2


def test_an_unclaimed_update_survives_a_mistake(pair):
    sender, receiver = pair

    async def main():
        waiting = asyncio.ensure_future(receiver.__anext__())
        await asyncio.sleep(0)
        sending = sender.send_weights(1, WEIGHTS)
        time.sleep(0.1)  # it has come when the waiting for it is cancelled
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(TypeError):
            receiver.load_next(zeros(), after="now")
        assert (await receiver.load_next(zeros())).version == 1
        assert (await sending).count("committed") == 1

    asyncio.run(main())


def test_what_has_failed_keeps_nothing(address):
    gc.disable()
    try:
        gone = []
        for _ in range(3):
            receiver = ropeway.Receiver(connect_limit=0.01)
            connecting = receiver.connect(address)
            for _ in range(2):  # it fails as often as it is asked
                with pytest.raises(ropeway.TransferError, match="no socket") as caught:
                    connecting.wait()
                assert caught.value.code == "connect_timeout"
                del caught
            gone += [weakref.ref(receiver), weakref.ref(connecting)]
            del receiver, connecting
        assert [one() for one in gone] == [None] * 6
    finally:
        gc.enable()


def test_loops_that_were_closed_are_let_go(pair):
    _, receiver = pair

    async def begin():
        task = asyncio.ensure_future(receiver.__anext__())
        task._log_destroy_pending = False
        await asyncio.sleep(0)
        return task

    unfinished = []
    for _ in range(3):
        loop = asyncio.new_event_loop()
        unfinished.append(loop.run_until_complete(begin()))
        loop.close()  # while it is waited on
    asyncio.run(begin())
    assert sum(loop.is_closed() for loop in _operation._boxes) <= 1


def test_what_was_sent_goes_while_the_main_thread_waits(pair):
    sender, receiver = pair
    left = []

    def send():
        for version in range(20):
            tensor = np.ones(1000, np.float32)
            gone = weakref.ref(tensor)
            sender.send_weights(version, {"w": tensor})  # nobody waits for it
            del tensor
            receiver.next_update().wait().refuse("no")
            end = time.monotonic() + 10
            while gone() is not None and time.monotonic() < end:
                receiver.next_update().cancel()  # any call
            left.append(gone())

    # The main thread is in join: it runs nothing of what was left to it.
    thread = threading.Thread(target=send)
    thread.start()
    thread.join()
    assert left == [None] * 20


@pytest.mark.parametrize("role", ["beside_another_interpreter", "without_descriptors", "interrupted_twice",
                                  "fail_under_the_end"])
def test_in_a_process_of_its_own(address, peer, role):
    one = peer(role, address)
    heard = one.hear()
    if heard == {"skipped": True}:
        pytest.skip("this Python makes no other interpreters")
    assert heard and heard["done"] and one.end() == 0, heard
