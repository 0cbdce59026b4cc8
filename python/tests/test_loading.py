"""Loaders, as engines have them, and buckets that are taken by hand: what is lent is given back, or said to be kept."""
from __future__ import annotations

import dataclasses
import pickle
import threading

import numpy as np
import pytest

import ropeway

WEIGHTS = {"first": np.arange(500, dtype=np.float32), "large": np.arange(5000, dtype=np.int32).reshape(50, 100),
           "empty": np.zeros((0, 3)), "scalar": np.array(3, np.int8), "last": np.arange(7, dtype=np.float16)}


def announce(sender, receiver, version=1):
    sending = sender.send_weights(version, WEIGHTS)
    return sending, receiver.next_update().wait()


def test_a_loader_gets_whole_tensors(pair):
    sender, receiver = pair
    held, calls = {}, []

    def load_weights(tensors):
        calls.append([name for name, _ in tensors])
        for name, tensor in tensors:
            held[name] = tensor.copy()

    for version in (1, 2):
        held.clear()
        sending, update = announce(sender, receiver, version)
        assert [one.name for one in update.tensors] == list(WEIGHTS) and update.total_bytes == sum(
            tensor.nbytes for tensor in WEIGHTS.values())
        report = update.load_with(load_weights, tensors="numpy").wait()
        assert report.version == version and sending.wait().count("committed") == 1
        assert report.assembled == WEIGHTS["large"].nbytes  # which spans buckets
        for name, tensor in WEIGHTS.items():
            assert held[name].dtype == tensor.dtype
            np.testing.assert_array_equal(held[name], tensor)
    assert len(calls) > 4


def test_what_a_loader_is_given_is_read_only(pair):
    sender, receiver = pair
    sending, update = announce(sender, receiver)

    def load_weights(tensors):
        for name, tensor in tensors:
            if name == "first":
                tensor[0] = 7

    with pytest.raises(ValueError, match="read-only"):
        update.load_with(load_weights, tensors="numpy").wait()
    with pytest.raises(ropeway.TransferError):
        sending.wait()


@pytest.mark.parametrize("call", [1, 3])
def test_a_loader_that_raises_is_named_to_the_sender(pair, call):
    sender, receiver = pair
    sending, update = announce(sender, receiver)
    calls = 0

    def load_weights(tensors):
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyError("no layer of that name")

    with pytest.raises(KeyError):
        update.load_with(load_weights, tensors="numpy").wait()
    with pytest.raises(ropeway.TransferError) as caught:
        sending.wait()
    (one,) = caught.value.report.receivers
    assert one.name.startswith("server") and one.outcome == "failed" and "no layer of that name" in one.text
    assert "not shared" in one.route_reason and "not shared" not in one.text and one.copied == 0
    sending, update = announce(sender, receiver, 2)
    update.load_with(lambda tensors: None, tensors="numpy").wait()
    assert sending.wait().count("committed") == 1


def test_a_loader_that_keeps_what_it_was_lent_is_told(pair):
    sender, receiver = pair
    sending, update = announce(sender, receiver)
    kept = []

    def load_weights(tensors):
        kept.extend(tensor for name, tensor in tensors if name == "first")

    with pytest.raises(ropeway.ReleasedError, match="'first'.*copy"):
        update.load_with(load_weights, tensors="numpy").wait()
    with pytest.raises(ropeway.TransferError) as caught:
        sending.wait(30)
    assert "first" in caught.value.report.receivers[0].text
    # It was not written over: its slot is held. When it goes, the slot does, and versions pass as before.
    np.testing.assert_array_equal(kept[0], WEIGHTS["first"])
    kept.clear()
    for version in range(2, 6):
        sending, update = announce(sender, receiver, version)
        update.load_with(lambda tensors: None, tensors="numpy").wait()
        assert sending.wait().count("committed") == 1


def test_what_is_kept_stays_as_it_is_while_versions_pass(pair):
    sender, receiver = pair
    sending, update = announce(sender, receiver)
    bucket = update.next_bucket().wait()
    (view,) = [piece.numpy() for piece in bucket.pieces if piece.name == "first"]
    assert bucket.release() == ["first"]
    # The next buckets come through the other slot for as long as this one is held, and the version waits for it.
    while (other := update.next_bucket().wait()) is not None:
        assert other.release() == []
        if other.number == 2:
            break
    np.testing.assert_array_equal(view, WEIGHTS["first"])
    del view
    while (other := update.next_bucket().wait()) is not None:
        other.release()
    update.commit().wait()
    assert sending.wait().count("committed") == 1


def test_use_after_release_raises(pair):
    sender, receiver = pair
    sending, update = announce(sender, receiver)
    bucket = update.next_bucket().wait()
    piece = bucket.pieces[0]
    assert (piece.name, piece.dtype, piece.shape, piece.offset, piece.nbytes, piece.whole) == (
        "first", "F32", (500,), 0, 2000, True)
    assert piece.numpy()[3] == 3 and np.from_dlpack(piece)[4] == 4
    with bucket:
        assert not bucket.released
    assert bucket.released and bucket.release() == []
    for use in (piece.numpy, lambda: np.from_dlpack(piece), piece.__dlpack__):
        with pytest.raises(ropeway.ReleasedError, match="first"):
            use()
    update.refuse("seen enough")
    with pytest.raises(ropeway.TransferError) as caught:
        sending.wait()
    assert "seen enough" in caught.value.report.receivers[0].text


def test_holding_every_slot_and_asking_for_more(pair):
    sender, receiver = pair
    sending, update = announce(sender, receiver)
    held = [update.next_bucket().wait(), update.next_bucket().wait()]
    with pytest.raises(ropeway.TransferError) as caught:
        update.next_bucket().wait()
    assert caught.value.code == "slots_held"
    with pytest.raises(ropeway.TransferError) as caught:
        update.commit().wait()
    assert caught.value.code == "invalid_argument"
    del held  # released
    while update.next_bucket().wait() is not None:
        pass
    update.commit().wait()
    assert sending.wait().count("committed") == 1


def test_a_loader_on_a_loop(address, run):
    async def main():
        held = {}

        def load_weights(tensors):
            held.update((name, tensor.copy()) for name, tensor in tensors)

        async with ropeway.Sender(address, bucket_bytes=4096) as sender, ropeway.Receiver() as receiver:
            await receiver.connect(address)
            sending = sender.send_weights(1, WEIGHTS)
            await (await receiver.next_update()).load_with(load_weights, tensors="numpy")
            await sending
        for name, tensor in WEIGHTS.items():
            np.testing.assert_array_equal(held[name], tensor)

    run(main())


def test_saying_no(pair):
    sender, receiver = pair
    for say, outcome, words in (
            (lambda update: update.refuse("asleep: the weights' memory is given away"), "refused", "asleep"),
            (lambda update: update.not_now(30, "answering"), "skipped", "answering"),
            (lambda update: None, "refused", "unanswered")):
        sending, update = announce(sender, receiver)
        say(update)
        del update
        with pytest.raises(ropeway.TransferError) as caught:
            sending.wait()
        (one,) = caught.value.report.receivers
        assert one.outcome == outcome and words in one.text
    sending, update = announce(sender, receiver)
    update.load_into({name: np.zeros_like(tensor) for name, tensor in WEIGHTS.items()}).wait()
    assert sending.wait().count("committed") == 1


def test_torn_destinations_say_so_until_a_whole_version_comes(address):
    names = [f"layer.{at}" for at in range(8)]
    memory = {name: np.zeros(1000, np.float32) for name in names}
    places = ropeway.Destinations(memory)
    stated = [(name, "F32", (1000,)) for name in names]

    def half():
        for name in names[:6]:
            yield name, np.ones(1000, np.float32)
        raise RuntimeError("out of weights")

    with ropeway.Sender(address, bucket_bytes=4096) as sender, ropeway.Receiver() as receiver:
        receiver.connect(address).wait()
        failures = []

        def load():
            try:
                receiver.next_update().wait().load_into(places).wait()
            except ropeway.TransferError as error:
                failures.append(error)

        thread = threading.Thread(target=load)
        thread.start()
        with pytest.raises(ropeway.TransferError):
            sender.send_weights(1, ropeway.Source(stated, half)).wait()
        thread.join(60)
        assert failures[0].code == "peer_aborted" and places.torn and places.torn_tensors()
        assert places.status().holding == "torn" and not places.status().whole
        sending = sender.send_weights(2, {name: np.full(1000, 2, np.float32) for name in names})
        receiver.next_update().wait().load_into(places).wait()
        sending.wait()
        assert not places.torn and places.version == 2 and all((tensor == 2).all() for tensor in memory.values())


def zeros():
    return {name: np.zeros_like(tensor) for name, tensor in WEIGHTS.items()}


def holds(into):
    return all((into[name] == tensor).all() for name, tensor in WEIGHTS.items())


@pytest.mark.parametrize("kind", ["mapping", "destinations", "shadow"])
def test_the_next_update_loaded_as_it_comes(address, kind):
    with ropeway.Sender(address, bucket_bytes=4096) as sender, ropeway.Receiver() as receiver:
        receiver.connect(address).wait()
        sets = [zeros(), zeros()]
        into = {"mapping": lambda: sets[0], "destinations": lambda: ropeway.Destinations(sets[0]),
                "shadow": lambda: ropeway.ShadowDestinations(*map(ropeway.Destinations, sets))}[kind]()
        for version in (1, 2, 3):
            loading = receiver.load_next(into)
            assert not loading.done()
            sent = sender.send_weights(version, WEIGHTS).wait()
            report = loading.wait()
            assert report.version == version and report.bytes == sent.bytes and sent.count("committed") == 1
            assert receiver.version == version
            if kind == "shadow":
                with into.lease() as lease:
                    assert lease.version == version and holds(sets[lease.set])
            else:
                assert holds(sets[0])
                sets[0]["large"][...] = 0
        loading = receiver.load_next(into)
        sender.close().wait()
        assert loading.wait() is None


def test_the_next_update_does_not_fit(pair):
    sender, receiver = pair
    into = zeros()
    for version in (1, 2):
        loading = receiver.load_next({"other": np.zeros(3)})
        with pytest.raises(ropeway.TransferError) as caught:
            sender.send_weights(version, WEIGHTS).wait()
        assert caught.value.report.count("refused") == 1
        with pytest.raises(ropeway.TransferError) as caught:
            loading.wait()
        assert caught.value.code == "destination_mismatch"
    loading = receiver.load_next(into)
    assert sender.send_weights(3, WEIGHTS).wait().count("committed") == 1
    assert loading.wait().version == 3 and holds(into)


def test_waiting_for_the_next_update_to_load_can_end_early(pair):
    sender, receiver = pair
    into = zeros()
    with pytest.raises(TimeoutError):
        receiver.load_next(into).wait(0.01)
    given_up = receiver.load_next(into)
    with pytest.raises(ropeway.TransferError) as caught:
        receiver.load_next(into).wait()
    assert caught.value.code == "busy"
    given_up.cancel()
    with pytest.raises(ropeway.TransferError) as caught:
        given_up.wait()
    assert caught.value.code == "operation_aborted"
    loading = receiver.load_next(into)
    assert sender.send_weights(1, WEIGHTS).wait().count("committed") == 1
    assert loading.wait().version == 1 and holds(into)


def test_reports_are_whole(pair):
    sender, receiver = pair
    loading = receiver.load_next(zeros())
    sent = sender.send_weights(1, WEIGHTS).wait()
    for report in (sent, sent.receivers[0], loading.wait(), receiver.status()):
        assert vars(report).keys() == {field.name for field in dataclasses.fields(report)}
        assert pickle.loads(pickle.dumps(report)) == report == dataclasses.replace(report)
        with pytest.raises(dataclasses.FrozenInstanceError):
            report.version = 2
    assert sent.total > 0 and sent.stages["announce"] > 0 and isinstance(sent.receivers, tuple)


def test_words_for_tensors():
    with pytest.raises(ValueError, match="jax"):
        ropeway._bucket.array_kind("jax")


def test_an_asynchronous_loader_is_refused_and_nothing_is_committed(pair):
    sender, receiver = pair

    async def load_weights(tensors):
        raise AssertionError("never awaited")

    sending, update = announce(sender, receiver)
    with pytest.raises(TypeError, match="asynchronous"):
        update.load_with(load_weights, tensors="numpy").wait()
    with pytest.raises(ropeway.TransferError):
        sending.wait()
    assert receiver.version is None


def test_a_second_load_of_an_update_leaves_the_first_alone(pair):
    sender, receiver = pair
    held = {name: np.zeros_like(tensor) for name, tensor in WEIGHTS.items()}
    sending, update = announce(sender, receiver)
    loading = update.load_into(held)
    with pytest.raises(ropeway.TransferError) as second:
        update.load_with(lambda tensors: None, tensors="numpy").wait()
    assert second.value.code == "busy"
    assert loading.wait().version == 1 and sending.wait().count("committed") == 1
    np.testing.assert_array_equal(held["large"], WEIGHTS["large"])


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_copies_may_be_changed_and_kept(pair, kind):
    if kind == "torch":
        pytest.importorskip("torch", reason="torch is not installed")
    sender, receiver = pair
    kept = {}

    def load_weights(tensors):
        for name, tensor in tensors:
            kept[name] = tensor
            tensor += 1

    sending, update = announce(sender, receiver)
    assert update.load_with(load_weights, tensors=kind, copy=True).wait().version == 1
    assert sending.wait().count("committed") == 1
    for name, tensor in WEIGHTS.items():
        np.testing.assert_array_equal(np.asarray(kept[name]), tensor + 1)
