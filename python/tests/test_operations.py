"""How operations are awaited, waited for, cancelled and limited; which loop they meet and what they leave running."""
from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest

import ropeway
from roles import in_poll, until

WEIGHTS = {"w": np.ones(1000, np.float32), "b": np.arange(10)}


def zeros():
    return {name: np.zeros_like(tensor) for name, tensor in WEIGHTS.items()}


def arrived(into):
    return all((into[name] == tensor).all() for name, tensor in WEIGHTS.items())


def test_a_trainer_and_a_server_on_one_loop(address, run):
    async def server(receiver, into):
        async for update in receiver:
            await update.load_into(into)

    async def main():
        into = zeros()
        async with ropeway.Sender(address) as sender, ropeway.Receiver(name="server") as receiver:
            await receiver.connect(address)
            assert await sender.wait_for_receivers(1) == 1
            (there,) = await sender.receivers()
            assert there.name.startswith("server") and there.version is None
            following = asyncio.ensure_future(server(receiver, into))
            for version in range(1, 4):
                report = await sender.send_weights(version, WEIGHTS)
                assert report.version == version and report.count("committed") == 1
            assert arrived(into) and receiver.version == 3 and receiver.status().phase == "idle"
            (there,) = await sender.receivers()
            assert there.version == 3
            await sender.close()
            await following
            await sender.close()  # again

    run(main())


def test_several_loops_after_each_other(address):
    into = zeros()
    sender, receiver = ropeway.Sender(address), ropeway.Receiver()

    async def connect():
        await receiver.connect(address)

    async def send():
        sending = sender.send_weights(1, WEIGHTS)
        await (await receiver.next_update()).load_into(into)
        await sending

    asyncio.run(connect())
    asyncio.run(send())
    into["w"][:] = 0
    asyncio.run(send())
    assert arrived(into)
    sender.close().wait()
    receiver.close().wait()


def test_one_thread_starts_and_another_waits(address):
    with ropeway.Sender(address) as sender, ropeway.Receiver() as receiver:
        receiver.connect(address).wait()
        updates = []
        waiting = receiver.next_update()
        thread = threading.Thread(target=lambda: updates.append(waiting.wait()))
        thread.start()
        into = zeros()
        sending = sender.send_weights(1, WEIGHTS)
        thread.join(60)
        updates[0].load_into(into).wait()
        sending.wait()
        assert arrived(into)
        assert sending.wait() is sending.wait()  # a result stays


def test_what_an_operation_is_of_lives_as_long(address):
    receiver = ropeway.Receiver(connect_limit=60)
    alive = weakref.ref(receiver)
    connecting = receiver.connect(address)
    del receiver
    gc.collect()
    assert alive() is not None
    with pytest.raises(TimeoutError):
        connecting.wait(0.05)
    del connecting
    until(lambda: collected(alive))
    with ropeway.Sender(address) as sender:
        updates = []

        def serve():
            waiting = connected(address).next_update()
            gc.collect()
            updates.append(waiting.wait(30))
            updates[0].load_into(zeros()).wait(30)

        thread = threading.Thread(target=serve)
        thread.start()
        sender.wait_for_receivers(1).wait()
        assert sender.send_weights(1, WEIGHTS).wait(30).count("committed") == 1
        thread.join(60)


def connected(address):
    receiver = ropeway.Receiver()
    receiver.connect(address).wait()
    return receiver


def test_waiting_releases_the_gil(address):
    with ropeway.Sender(address) as sender, ropeway.Receiver() as receiver:
        receiver.connect(address).wait()
        turns = []

        def other():
            turns.append(sender.send_weights(1, WEIGHTS))

        thread = threading.Timer(0.01, other)
        thread.start()
        update = receiver.next_update().wait(60)  # would stand still if this thread kept the GIL
        assert update.version == 1
        thread.join()
        turns[0].cancel()


def test_cancelling_a_send_gives_the_version_up(address, run):
    async def main():
        async with ropeway.Sender(address) as sender, ropeway.Receiver() as receiver:
            await receiver.connect(address)

            async def send():
                await sender.send_weights(1, WEIGHTS)

            task = asyncio.ensure_future(send())
            update = await receiver.next_update()  # nobody answers it
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(ropeway.TransferError) as caught:
                await update.load_into(zeros())
            assert caught.value.code == "peer_aborted"
            # Both go on.
            into = zeros()
            sending = sender.send_weights(2, WEIGHTS)
            await (await receiver.next_update()).load_into(into)
            assert (await sending).count("committed") == 1 and arrived(into)

    run(main())


def test_a_limit_on_a_send(address, run):
    async def main():
        async with ropeway.Sender(address) as sender, ropeway.Receiver() as receiver:
            await receiver.connect(address)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(sender.send_weights(1, WEIGHTS), 0.05)

    run(main())
    with ropeway.Sender(address) as sender, ropeway.Receiver() as receiver:
        receiver.connect(address).wait()
        with pytest.raises(TimeoutError, match="0.05 s"):
            sender.send_weights(1, WEIGHTS).wait(0.05)
        with pytest.raises(TimeoutError):
            ropeway.Receiver(connect_limit=60).connect(address + ".not").wait(0.05)
        with pytest.raises(ropeway.TransferError) as caught:
            sender.wait_for_receivers(2, limit=0.01).wait()
        assert caught.value.code == "too_few_receivers"
        into = zeros()
        sending = sender.send_weights(2, WEIGHTS)
        update = receiver.next_update().wait()
        if update.version == 1:  # announced before it was given up
            update = receiver.next_update().wait()
        update.load_into(into).wait()
        sending.wait()


@pytest.mark.parametrize("then", ["next_update", "load_next"])
def test_cancelling_the_wait_for_an_update_loses_none(address, run, then):
    async def main():
        async with ropeway.Sender(address) as sender, ropeway.Receiver() as receiver:
            await receiver.connect(address)
            for version in range(1, 20):
                into = zeros()
                waiting = asyncio.ensure_future(receiver.__anext__())
                await asyncio.sleep(0)
                sending = sender.send_weights(version, WEIGHTS)
                if version % 2:
                    time.sleep(0.002)  # the loop stands still: the update has come when it is cancelled
                waiting.cancel()
                try:
                    update = await waiting
                except asyncio.CancelledError:
                    update = await receiver.next_update() if then == "next_update" else None
                if update is None:
                    assert (await receiver.load_next(into)).version == version
                else:
                    assert update.version == version
                    await update.load_into(into)
                assert (await sending).count("committed") == 1
                assert arrived(into)

    run(main())


def test_cancelling_a_load_ends_when_nothing_writes_any_more(address, run):
    async def main():
        async with ropeway.Sender(address) as sender, ropeway.Receiver() as receiver:
            await receiver.connect(address)
            stuck = threading.Event()

            def tensors():
                yield "w", WEIGHTS["w"]
                raise RuntimeError("never asked for") if stuck.wait(60) else TimeoutError

            places = ropeway.Destinations(zeros())
            source = ropeway.Source([("w", "F32", (1000,)), ("b", "I64", (10,))], tensors)
            thread = threading.Thread(target=lambda: catch(lambda: sender.send_weights(1, source).wait()))
            thread.start()
            loading = asyncio.ensure_future(load(await receiver.next_update(), places))
            await asyncio.sleep(0.05)
            loading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await loading
            stuck.set()
            await asyncio.get_running_loop().run_in_executor(None, thread.join, 60)
            assert receiver.status().phase == "idle"
            sending = sender.send_weights(2, WEIGHTS)
            await (await receiver.next_update()).load_into(places)
            assert not places.torn and (await sending).count("committed") == 1

    async def load(update, places):
        await update.load_into(places)

    run(main())


def catch(what):
    try:
        what()
    except Exception as error:
        return error


def test_cancelled_by_hand(address):
    with ropeway.Sender(address), ropeway.Receiver() as receiver:
        receiver.connect(address).wait()
        waiting = receiver.next_update()
        assert not waiting.done()
        waiting.cancel()
        with pytest.raises(ropeway.TransferError) as caught:
            waiting.wait()
        assert caught.value.code == "operation_aborted" and waiting.done()
        waiting.cancel()


def test_one_of_a_kind_at_a_time(address):
    with ropeway.Sender(address), ropeway.Receiver() as receiver:
        receiver.connect(address).wait()
        first = receiver.next_update()
        with pytest.raises(ropeway.TransferError) as caught:
            receiver.next_update().wait()
        assert caught.value.code == "busy"
        with pytest.raises(ropeway.TransferError) as caught:
            receiver.connect(address).wait()
        assert caught.value.code == "busy"
        first.cancel()


def test_closed_ones_say_so(address):
    sender, receiver = ropeway.Sender(address), ropeway.Receiver()
    with pytest.raises(ropeway.TransferError) as caught:
        receiver.next_update().wait()
    assert caught.value.code == "not_open"
    sender.close().wait()
    receiver.close().wait()
    for use in (lambda: sender.send_weights(1, WEIGHTS), lambda: receiver.next_update(), lambda: receiver.connect(address)):
        with pytest.raises(ropeway.TransferError) as caught:
            use().wait()
        assert caught.value.code == "not_open"
    assert not os.path.exists(address)


def test_an_operation_that_nobody_waits_for_goes_on(address):
    with ropeway.Sender(address) as sender, ropeway.Receiver() as receiver:
        receiver.connect(address).wait()
        source = np.full(100000, 3.0)
        gone = weakref.ref(source)
        sender.send_weights(1, {"w": source})
        del source
        gc.collect()
        assert gone() is not None  # the operation keeps it
        into = {"w": np.zeros(100000)}
        receiver.next_update().wait().load_into(into).wait()
        assert (into["w"] == 3).all()
        sender.close().wait()
        until(lambda: collected(gone))


def test_a_start_that_nobody_waits_for_gives_the_version_up(address):
    with ropeway.Sender(address) as sender, ropeway.Receiver() as receiver:
        receiver.connect(address).wait()
        source = np.full(100000, 3.0)
        gone = weakref.ref(source)
        sender.start(1, {"w": source})
        del source
        until(lambda: collected(gone))
        into = zeros()
        sending = sender.send_weights(2, WEIGHTS)
        update = receiver.next_update().wait()
        if update.version == 1:
            update = receiver.next_update().wait()
        update.load_into(into).wait()
        assert sending.wait().count("committed") == 1 and arrived(into)


@pytest.mark.parametrize("dropped", [False, True])
def test_a_version_that_was_started_keeps_its_tensors(address, dropped):
    with ropeway.Sender(address, bucket_bytes=4096) as sender, ropeway.Receiver() as receiver:
        receiver.connect(address).wait()
        source = np.full(100000, 3.0)
        gone = weakref.ref(source)
        starting = sender.start(1, {"w": source})
        del source
        update = receiver.next_update().wait()
        sending = starting.wait()
        del starting
        gc.collect()
        assert gone() is not None
        into = {"w": np.zeros(100000)}
        if dropped:
            del sending  # given up
            with pytest.raises(ropeway.TransferError) as caught:
                update.load_into(into).wait()
            assert caught.value.code == "peer_aborted"
        else:
            update.load_into(into).wait()
            assert sending.done().wait().count("committed") == 1 and (into["w"] == 3).all()
            del sending
        until(lambda: collected(gone))


def collected(reference):
    gc.collect()
    return reference() is None


def test_what_was_sent_is_let_go(address, run):
    async def main():
        async with ropeway.Sender(address) as sender, ropeway.Receiver() as receiver:
            await receiver.connect(address)
            source, into = {"w": np.ones(10)}, {"w": np.zeros(10)}
            gone = weakref.ref(source["w"]), weakref.ref(into["w"])
            sending = sender.send_weights(1, source)
            update = await receiver.next_update()
            loading = update.load_into(into)
            await loading
            await sending
            del source, into, loading, sending, update
            await sender.release_memory()
            gc.collect()
            assert gone[0]() is None and gone[1]() is None

    run(main())


def test_errors_travel_between_processes():
    error = ropeway.TransferError("words", "peer_gone", tensor="w", bucket=3, peer="server", peer_words="bye")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.code, copy.tensor, copy.bucket, copy.peer, copy.peer_words, copy.report) == (
        "words", "peer_gone", "w", 3, "server", "bye", None)


@pytest.mark.parametrize("knobs", [{"slots": 0}, {"bucket_bytes": 1}, {"max_receivers": 5000}])
def test_options_that_make_no_sense(address, knobs):
    with pytest.raises(ropeway.TransferError) as caught:
        ropeway.Sender(address, **knobs)
    assert caught.value.code == "invalid_argument"


def test_words_that_mean_nothing(address):
    with pytest.raises(ValueError, match="route"):
        ropeway.Sender(address, route="quickest")
    with pytest.raises(ValueError, match="device"):
        ropeway.Receiver(device="tpu")
    with pytest.raises(ValueError, match="seconds"):
        ropeway.Receiver(connect_limit=-1)
    with pytest.raises(TypeError):
        ropeway.Receiver(conect_limit=1)


def test_addresses(address, tmp_path):
    with ropeway.Sender(address), pytest.raises(ropeway.TransferError) as caught:
        ropeway.Sender(address)
    assert caught.value.code == "address_in_use"
    with pytest.raises(ropeway.TransferError) as caught:
        ropeway.Sender(tmp_path / ("x" * 200))
    assert caught.value.code == "bad_path"
    with pytest.raises(ropeway.TransferError) as caught:
        ropeway.Receiver(connect_limit=0.01).connect(tmp_path / "s" / "none.sock").wait()
    assert caught.value.code == "connect_timeout"


def test_a_blocking_wait_is_interrupted(address, peer):
    with ropeway.Sender(address) as sender:
        server = peer("wait_for_updates", address)
        assert server.hear() == {"connected": True}
        until(lambda: in_poll(server.process.pid))
        server.process.send_signal(signal.SIGINT)
        assert server.hear() == {"interrupted": True}
        report = sender.send_weights(5, {f"layer.{at}": np.full(1000, 500 + at, np.float32) for at in range(4)}).wait()
        assert server.hear() == {"version": 5, "whole": True} and report.count("committed") == 1
        assert server.end() == 0


def test_an_asyncio_wait_is_interrupted(address, peer):
    with ropeway.Sender(address):
        server = peer("wait_for_updates_asyncio", address)
        assert server.hear() == {"connected": True}
        time.sleep(0.2)  # into the loop's own wait; before that it ends as well
        server.process.send_signal(signal.SIGINT)
        heard = [server.hear(), server.hear()]
        assert {"interrupted": True} in heard and server.end() == 0


def test_a_program_ends_whose_operations_end_with_the_interpreter(address, peer):
    one = peer("end_in_the_interpreters_end", address)  # the library's thread would be killed if it asked for the GIL
    assert one.hear() == {"connected": True}
    assert one.end() == 0


def test_a_program_that_closes_nothing_ends(address, peer):
    one = peer("never_close", address)
    assert one.hear() == {"connected": True}
    assert one.end() == 0


def test_a_program_that_ends_under_a_daemon_thread_ends(address, peer):
    for _ in range(3):
        one = peer("end_under_a_daemon", address)
        assert one.hear() == {"connected": True}
        assert one.end() == 0


@pytest.mark.parametrize("kind", ["sender", "receiver"])
def test_two_threads_may_close_one_thing(address, kind):
    for _ in range(50):
        with ropeway.Sender(address) as sender, ropeway.Receiver() as receiver:
            receiver.connect(address).wait()
            one = sender if kind == "sender" else receiver
            both = threading.Barrier(2)
            errors = []

            def close():
                both.wait()
                try:
                    one.close().wait()
                except ropeway.TransferError as error:
                    errors.append(error.code)

            threads = [threading.Thread(target=close) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert set(errors) <= {"not_open"}


def test_a_forked_child_leaves_its_parents_things_alone(address, peer):
    one = peer("fork", address)
    assert one.hear() == {"child": "not_open"}
    assert one.hear() == {"status": 0}
    assert one.hear() == {"committed": 1}
    assert one.end() == 0


def test_without_numpy_and_torch(address):
    """Nothing is imported that the program has not imported."""
    program = """if True:
        import sys, ropeway
        assert "numpy" not in sys.modules and "torch" not in sys.modules and "asyncio" in sys.modules
        source, into = bytearray(b"weights"), bytearray(7)
        with ropeway.Sender(sys.argv[1]) as sender, ropeway.Receiver() as receiver:
            receiver.connect(sys.argv[1]).wait()
            sending = sender.send_weights(1, {"w": source})
            receiver.next_update().wait().load_into({"w": into}).wait()
            sending.wait()
        assert into == b"weights" and "numpy" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", program, address], check=True, timeout=60)


@pytest.mark.parametrize("cancelled", [False, True])
def test_several_tasks_may_await_one_operation(address, run, cancelled):
    async def main():
        async with ropeway.Sender(address) as sender, ropeway.Receiver() as receiver:
            await receiver.connect(address)
            into = zeros()
            operations = [sender.send_weights(1, WEIGHTS), receiver.next_update()]
            if cancelled:
                waiting = [asyncio.ensure_future(operations[0]) for _ in range(3)]
                await asyncio.sleep(0)
                waiting[1].cancel()
                ends = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 30)
                assert isinstance(ends[1], asyncio.CancelledError)
                assert [end.code for end in (ends[0], ends[2])] == ["operation_aborted"] * 2
                return
            update = await operations[1]
            loading = update.load_with(lambda tensors: [into[name].__setitem__(..., one) for name, one in tensors],
                                       tensors="numpy")  # several steps
            waiting = [asyncio.ensure_future(one) for one in (loading, operations[0]) for _ in range(3)]
            ends = await asyncio.wait_for(asyncio.gather(*waiting), 30)
            assert {one.version for one in ends} == {1} and len({id(one) for one in ends}) == 2
            assert arrived(into)

    run(main())


@pytest.mark.parametrize("knob, value", [("slots", "2"), ("slots", -1), ("bucket_bytes", 1e6), ("digests", 1),
                                         ("source_limit", "5"), ("allowed_users", "abc")])
def test_what_a_knob_cannot_be_is_said_with_its_name(address, knob, value):
    with pytest.raises(TypeError, match=f"^{knob} can't be "):
        ropeway.Sender(address, **{knob: value})


def test_a_receivers_name_is_text():
    with pytest.raises(TypeError, match="^name can't be 5"):
        ropeway.Receiver(name=5)
