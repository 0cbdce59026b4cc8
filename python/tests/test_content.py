"""What is sent arrives, byte by byte, and what does not fit is said before a byte moves."""
from __future__ import annotations

import array
import threading

import numpy as np
import pytest

import ropeway


def exchange(address, source, into, version=1, cast=None, places=None, **knobs):
    """One version, from a sender to a receiver in this process; what `into` holds is compared by the caller."""
    with ropeway.Sender(address, **knobs) as sender, ropeway.Receiver() as receiver:
        receiver.connect(address).wait()
        sending = sender.send_weights(version, source, cast=cast)
        update = receiver.next_update().wait(60)
        loaded = update.load_into(places if places is not None else into).wait(60)
        return sending.wait(60), loaded


def random(shape, dtype, seed=0):
    words = np.random.default_rng(seed)
    if dtype == np.bool_:
        return words.integers(0, 2, shape).astype(dtype)
    if np.issubdtype(dtype, np.integer):
        return words.integers(0, 100, shape).astype(dtype)
    return words.standard_normal(shape).astype(dtype)


DTYPES = [np.bool_, np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64, np.float16,
          np.float32, np.float64, np.complex64]


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("bucket", [4096, 1 << 20])
def test_mixed_tensors_arrive_exactly(address, slots, bucket):
    source = {f"{at}.{np.dtype(dtype).name}": random((3 + at, 7), dtype, at) for at, dtype in enumerate(DTYPES)}
    source["large"] = random((100, 101), np.float32, 99)  # more than a bucket of 4096
    source["scalar"] = np.array(7.5)
    source["empty"] = np.zeros((0, 5), np.float32)
    into = {name: np.zeros_like(tensor) for name, tensor in source.items()}
    sent, loaded = exchange(address, source, into, slots=slots, bucket_bytes=bucket)
    for name, tensor in source.items():
        np.testing.assert_array_equal(into[name], tensor)
    assert loaded.tensors == sent.tensors == len(source)
    assert loaded.bytes == sent.bytes == sum(tensor.nbytes for tensor in source.values())
    assert sent.count("committed") == 1 and sent.receivers[0].route == "host"
    assert sent.receivers[0].route_reason == loaded.route_reason
    assert loaded.route_reason.endswith("host memory that is not shared (see sender::share)")
    assert sent.receivers[0].copied == loaded.copied and sent.receivers[0].text == ""


def test_digests_are_compared_and_reported(address):
    source = {"w": random((100, 33), np.float32), "b": random(7, np.float16)}
    into = {name: np.zeros_like(tensor) for name, tensor in source.items()}
    sent, loaded = exchange(address, source, into, digests=True)
    assert sent.digest == loaded.digest and len(sent.digest) == 32
    source["w"][99, 32] += 1
    changed, _ = exchange(address, source, into, version=2, digests=True)
    assert changed.digest != sent.digest
    sent, loaded = exchange(address, source, into, version=3)
    assert sent.digest is None and loaded.digest is None


def test_who_demands_digests_takes_nothing_without(address):
    source, into = {"w": np.ones(5, np.float32)}, {"w": np.zeros(5, np.float32)}
    with ropeway.Sender(address, min_receivers=0) as sender, ropeway.Receiver(demand_digests=True) as receiver:
        receiver.connect(address).wait()
        sending = sender.send_weights(1, source)
        with pytest.raises(ropeway.TransferError) as raised:
            receiver.next_update().wait(60).load_into(into).wait(60)
        assert raised.value.code == "digest_missing"
        assert sending.wait(60).receivers[0].outcome == "refused"
    assert not into["w"].any()


@pytest.mark.parametrize("mapped", [False, True])
def test_who_comes_late_is_given_what_is_held(address, mapped):
    memory = ropeway.SharedMemory(1 << 16)
    source = {"w": np.frombuffer(memory, np.float32)[:1000] if mapped else np.zeros(1000, np.float32)}
    source["w"][:] = random(1000, np.float32)
    into = [{"w": np.zeros(1000, np.float32)} for _ in range(2)]
    with ropeway.Sender(address) as sender, ropeway.Receiver(name="first") as first, ropeway.Receiver() as late:
        if mapped:
            sender.share(memory)
        first.connect(address).wait()
        sending = sender.send_weights(1, source)
        first.next_update().wait(60).load_into(into[0]).wait(60)
        assert sending.wait(60).count("committed") == 1
        with sender.hold(1, source) as held:
            assert held.version == 1
            late.connect(address).wait()
            loaded = late.next_update().wait(60).load_into(into[1]).wait(60)
            assert loaded.version == 1 and loaded.route == ("mapped" if mapped else "host")
            np.testing.assert_array_equal(into[1]["w"], source["w"])
            with pytest.raises(ropeway.TransferError) as raised:
                sender.release_memory().wait(60)
            assert raised.value.code == "busy"
        held.release().wait(60)  # once more means nothing
        sender.release_memory().wait(60)
        source["w"][:] = 7
        with pytest.raises(TypeError):
            sender.hold(2, ropeway.Source([("w", np.float32, (3,))], lambda: iter(())))


def test_a_promise_that_is_dropped_ends(address):
    source, into = {"w": np.ones(5, np.float32)}, {"w": np.zeros(5, np.float32)}
    with ropeway.Sender(address) as sender, ropeway.Receiver(idle_mapping_limit=float("inf")) as late:
        held = sender.hold(1, source)
        del held
        late.connect(address).wait()
        sending = sender.send_weights(2, source)
        assert late.next_update().wait(60).load_into(into).wait(60).version == 2
        assert sending.wait(60).count("committed") == 1


def test_tensors_in_shared_memory_are_mapped(address):
    memory = ropeway.SharedMemory(1 << 16)
    source = np.frombuffer(memory, np.float32)[:1000]
    source[:] = random(1000, np.float32)
    into = {"w": np.zeros(1000, np.float32)}
    with ropeway.Sender(address, route="mapped") as sender, ropeway.Receiver() as receiver:
        sender.share(memory)
        receiver.connect(address).wait()
        for version in (1, 2):
            source += 1
            sending = sender.send_weights(version, {"w": source})
            loaded = receiver.next_update().wait().load_into(into).wait()
            one = sending.wait().receivers[0]
            assert loaded.route == one.route == "mapped" and loaded.route_reason == one.route_reason == ""
            assert loaded.copied == one.copied == source.nbytes
            np.testing.assert_array_equal(into["w"], source)
        sender.release_memory().wait()


def test_no_tensors_at_all_commit(address):
    sent, loaded = exchange(address, {}, {})
    assert sent.count("committed") == 1 and loaded.tensors == 0


@pytest.mark.parametrize("bucket", [256, 1 << 20])
def test_strided_sources_and_destinations(address, bucket):
    whole = random((20, 30, 4), np.float32)
    source = {"transposed": whole.T, "second rows": whole[::2], "permuted": whole.transpose(1, 2, 0),
              "backwards": whole[::-1], "repeated": np.broadcast_to(whole[:1], whole.shape)}
    room = np.zeros((40, 30, 4), np.float32)
    into = {name: np.zeros(tensor.shape, np.float32) for name, tensor in source.items()}
    into["second rows"] = room[::4]
    exchange(address, source, into, bucket_bytes=bucket)
    for name, tensor in source.items():
        np.testing.assert_array_equal(into[name], tensor)
    assert (room[1::4] == 0).all()


def test_tied_weights_and_many_tensors(address):
    table = random((4, 4), np.float32)
    source = {"head": table, "embedding": table}
    source.update({f"layer.{at}.weight": np.full(1, at, np.int32) for at in range(20000)})
    into = {name: np.zeros_like(tensor) for name, tensor in source.items()}
    places = ropeway.Destinations(into)  # before the sender waits: with AddressSanitizer they take long
    exchange(address, source, into, places=places)
    assert all((into[name] == tensor).all() for name, tensor in source.items())


def test_names_for_one_memory_are_one_place(address):
    table = np.zeros((4, 4), np.float32)
    places = ropeway.Destinations({"head": table, "embedding": table})
    with ropeway.Sender(address) as sender, ropeway.Receiver() as receiver:
        receiver.connect(address).wait()

        def send(version, *names):
            sending = sender.send_weights(version, {name: np.full((4, 4), version, np.float32) for name in names})
            try:
                return receiver.next_update().wait().load_into(places).wait()
            finally:
                try:
                    sending.wait()
                except ropeway.TransferError:
                    pass

        for version, names in enumerate([("head", "embedding"), ("embedding",), ("head",)], 1):
            assert send(version, *names).version == version and (table == version).all() and not places.torn
        with pytest.raises(ropeway.TransferError, match='"embedding" is not sent'):
            send(4, "other")
        for strict in (places.allow_tied(False), ropeway.Destinations().add("head", table).add("embedding", table)):
            places = strict
            with pytest.raises(ropeway.TransferError, match="of tied weights, load one or allow them"):
                send(5, "head", "embedding")
        with pytest.raises(ropeway.TransferError, match="overlapping"):  # parts of a memory are no names for it
            places = ropeway.Destinations({"head": table, "embedding": table[:2]})
            sending = sender.send_weights(6, {"head": np.ones((4, 4), np.float32), "embedding": np.ones((2, 4), np.float32)})
            receiver.next_update().wait().load_into(places).wait()
        with pytest.raises(ropeway.TransferError):
            sending.wait()
    assert (table == 3).all()


@pytest.mark.parametrize("name", ["é" * 512, "a b\nc", "重み"])
def test_any_name_is_carried(address, name):
    into = {name: np.zeros(3, np.int8)}
    exchange(address, {name: np.arange(3, dtype=np.int8)}, into)
    assert list(into[name]) == [0, 1, 2]


def test_a_name_that_is_no_utf8_is_an_error(address):
    with ropeway.Sender(address) as sender, pytest.raises(UnicodeEncodeError):
        sender.send_weights(1, {"\ud800": np.zeros(1)})


def test_what_is_no_array_but_has_a_buffer(address):
    source = {"bytes": b"1234", "array": array.array("d", [1.5, 2.5]), "dlpack": OnlyDlpack(np.arange(6.0)[::2])}
    into = {"bytes": bytearray(4), "array": array.array("d", [0, 0]), "dlpack": np.zeros(3)}
    exchange(address, source, into)
    assert into["bytes"] == b"1234" and into["array"] == source["array"] and list(into["dlpack"]) == [0, 2, 4]


class OnlyDlpack:
    def __init__(self, what):
        self._what = what

    def __dlpack__(self, **how):
        return self._what.__dlpack__(**how)

    def __dlpack_device__(self):
        return self._what.__dlpack_device__()


@pytest.mark.parametrize("tensor, words", [
    (object(), "no tensor"), ([1.0], "no tensor"), (np.zeros(2, ">f4"), "byte order"), (np.zeros(2, "U3"), "dtype"),
    (np.zeros(2, np.complex128), "dtype"),
])
def test_what_cannot_be_carried_is_named(address, tensor, words):
    with ropeway.Sender(address) as sender, pytest.raises(TypeError, match=f"'layer.0'.*{words}"):
        sender.send_weights(1, {"layer.0": tensor})


@pytest.mark.parametrize("tensors", [7, [1, 2], {"a": None}, [("a", np.zeros(1), 3)], [(1, np.zeros(1))]])
def test_what_are_no_tensors_is_said(address, tensors):
    with ropeway.Sender(address) as sender, pytest.raises(TypeError):
        sender.send_weights(1, tensors)


def test_a_name_twice_is_refused_by_name(address):
    with ropeway.Sender(address, min_receivers=0) as sender, pytest.raises(ropeway.TransferError) as caught:
        sender.send_weights(1, [("twin", np.zeros(1)), ("twin", np.zeros(1))]).wait()
    assert caught.value.code == "duplicate_name" and "twin" in str(caught.value) and caught.value.report.version == 1


def test_read_only_destinations_are_refused():
    frozen = np.zeros(3)
    frozen.flags.writeable = False
    for destination in (frozen, b"123", np.float32(1), OnlyDlpack(np.zeros(3))):
        with pytest.raises(TypeError, match="'w'"):
            ropeway.Destinations({"w": destination})


def test_all_differences_are_said_at_once_before_a_byte_moves(address):
    source = {"dtype": np.ones(3, np.float32), "shape": np.ones(3), "more": np.ones(1), "right": np.ones(2)}
    into = {"dtype": np.zeros(3, np.int32), "shape": np.zeros(4), "missing": np.zeros(1), "right": np.zeros(2)}
    with ropeway.Sender(address) as sender, ropeway.Receiver() as receiver:
        receiver.connect(address).wait()
        sending = sender.send_weights(1, source)
        update = receiver.next_update().wait()
        places = ropeway.Destinations(into)
        with pytest.raises(ropeway.TransferError) as caught:
            update.load_into(places).wait()
        assert caught.value.code == "destination_mismatch"
        assert all(name in str(caught.value) for name in ("dtype", "shape", "missing", "more"))
        assert not into["right"].any() and not places.torn
        with pytest.raises(ropeway.TransferError) as failed:
            sending.wait()
        assert failed.value.code == "too_few_receivers"
        assert failed.value.report.receivers[0].outcome == "refused"
        assert failed.value.report.receivers[0].code == "destination_mismatch"


def test_subsets_are_asked_for(address):
    source = {"a": np.ones(3), "b": np.ones(3)}
    into = {"b": np.zeros(3), "c": np.zeros(3)}
    places = ropeway.Destinations(into).allow_unsent().allow_unplaced()
    assert len(places) == 2
    exchange(address, source, into, places=places)
    assert into["b"].all() and not into["c"].any() and places.version == 1 and not places.torn
    assert places.status().whole and places.status().holding == "committed"


def test_shards_and_fused_destinations(address):
    source = {name: random((8, 6), np.float32, at) for at, name in enumerate(("q", "k", "v", "out"))}
    qkv, out, corner = np.zeros((12, 6), np.float32), np.zeros((8, 3), np.float32), np.zeros((2, 2), np.float32)
    places = ropeway.Destinations().allow_unplaced()
    for at, name in enumerate(("q", "k", "v")):
        places.add_shard(name, qkv[4 * at:4 * at + 4], dimension=0, rank=1, ranks=2)
    places.add_shard("out", out, dimension=1, rank=0, ranks=2)
    places.add_part("q", corner, start=(3, 4))
    exchange(address, source, None, places=places)
    np.testing.assert_array_equal(qkv, np.concatenate([source[name][4:] for name in ("q", "k", "v")]))
    np.testing.assert_array_equal(out, source["out"][:, :3])
    np.testing.assert_array_equal(corner, source["q"][3:5, 4:6])
    with pytest.raises(ropeway.TransferError, match="rank"):
        places.add_shard("out", out, dimension=1, rank=2, ranks=2)


def test_a_cast_rounds_to_nearest_even_and_keeps_what_is_no_number(address):
    bits = pytest.importorskip("ml_dtypes")
    source = {"w": np.concatenate([random(1000, np.float32), np.float32([np.inf, -np.inf, np.nan, 0, -0.0, 1.00390625])]),
              "steps": np.arange(3)}
    into = {"w": np.zeros(1006, bits.bfloat16), "steps": np.zeros(3, np.int64)}
    sent, _ = exchange(address, source, into, cast="bfloat16")
    wanted = source["w"].astype(bits.bfloat16)
    same = into["w"].view(np.uint16) == wanted.view(np.uint16)
    assert all(same | (np.isnan(source["w"]) & np.isnan(into["w"].astype(np.float32))))  # any NaN will do
    assert list(into["steps"]) == [0, 1, 2] and sent.bytes == 2 * 1006 + 24


def test_a_cast_for_each_tensor(address):
    source = {"w": random(10, np.float32), "norm": random(10, np.float32)}
    into = {"w": np.zeros(10, np.float16), "norm": np.zeros(10, np.float32)}
    exchange(address, source, into, cast=lambda name, dtype: np.float16 if name == "w" and dtype == "F32" else None)
    np.testing.assert_array_equal(into["w"], source["w"].astype(np.float16))
    np.testing.assert_array_equal(into["norm"], source["norm"])
    with ropeway.Sender(address, min_receivers=0) as sender, pytest.raises(ropeway.TransferError) as caught:
        sender.send_weights(1, {"w": np.zeros(3, np.float64)}, cast="f16").wait()
    assert caught.value.code == "unsupported"


def test_prepared_tensors_are_sent_with_what_they_hold_then(address):
    source, into = {"w": np.zeros(5, np.float32)}, {"w": np.zeros(5, np.float32)}
    with ropeway.Sender(address) as sender, ropeway.Receiver() as receiver:
        prepared = sender.prepare(source)
        assert len(prepared) == 1
        receiver.connect(address).wait()
        for version in (1, 2, 3):
            source["w"] += 1
            sending = sender.send_weights(version, prepared)
            receiver.next_update().wait().load_into(into).wait()
            sending.wait()
            assert (into["w"] == version).all()
        with pytest.raises(TypeError, match="prepare"):
            sender.send_weights(4, prepared, cast="f16")


def test_the_trainer_may_go_on_when_its_memory_is_free(address):
    source, into = {"w": np.ones(1000, np.float32)}, {"w": np.zeros(1000, np.float32)}
    with ropeway.Sender(address) as sender, ropeway.Receiver() as receiver:
        receiver.connect(address).wait()
        starting = sender.start(7, source)
        loading = receiver.next_update().wait().load_into(into)
        sending = starting.wait()
        assert sending.version == 7
        sending.source_free().wait()
        source["w"][:] = 2
        assert sending.done().wait().count("committed") == 1
        loading.wait()
        assert (into["w"] == 1).all()


def test_a_shadow_set_is_served_while_the_next_version_arrives(address):
    sets = [{"w": np.zeros(4)}, {"w": np.zeros(4)}]
    first, second = map(ropeway.Destinations, sets)
    shadow = ropeway.ShadowDestinations(first, second)
    assert not shadow.lease() and shadow.version is None
    with pytest.raises(ValueError, match="belong"):
        first.add("x", np.zeros(1))
    with ropeway.Sender(address) as sender, ropeway.Receiver(lease_limit=0.05) as receiver:
        receiver.connect(address).wait()

        def update(version):
            sending = sender.send_weights(version, {"w": np.full(4, version, np.float64)})
            try:
                receiver.next_update().wait().load_into(shadow).wait()
            finally:
                try:
                    sending.wait()
                except ropeway.TransferError:
                    pass

        update(1)
        with shadow.lease() as lease:
            assert lease and lease.version == 1
            update(2)
            assert (sets[lease.set]["w"] == 1).all() and shadow.version == 2
            with pytest.raises(ropeway.TransferError) as caught:  # that set is still read
                update(3)
            assert caught.value.code == "leased"
        assert not lease
        update(4)
        assert (sets[shadow.lease().set]["w"] == 4).all() and shadow.status().whole
    with pytest.raises(ropeway.TransferError) as caught:
        ropeway.ShadowDestinations(ropeway.Destinations({"w": np.zeros(1)}), ropeway.Destinations({"v": np.zeros(1)}))
    assert caught.value.code == "invalid_argument"
    alone = ropeway.Destinations()
    with pytest.raises(ValueError, match="two sets"):
        ropeway.ShadowDestinations(alone, alone)


def test_members_of_a_group_commit_together(address):
    with ropeway.Sender(address) as sender:
        ranks = [ropeway.Receiver(name=f"rank {at}", group="model", group_size=2) for at in range(2)]
        into = [{"w": np.zeros(3)} for _ in ranks]
        ranks[0].connect(address).wait()
        with pytest.raises(ropeway.TransferError) as caught:  # the other is not there
            sender.send_weights(1, {"w": np.ones(3)}).wait()
        assert caught.value.report.receivers[0].code == "group_incomplete"
        ranks[1].connect(address).wait()
        sending = sender.send_weights(2, {"w": np.ones(3)})
        loads = [rank.next_update().wait().load_into(memory) for rank, memory in zip(ranks, into)]
        for load in loads:
            load.wait()
        assert sending.wait().count("committed") == 2 and all(memory["w"].all() for memory in into)
        for rank in ranks:
            rank.close().wait()


def test_two_jobs_on_one_host_do_not_meet(tmp_path):
    results = {}

    def job(number):
        folder = tmp_path / str(number)
        folder.mkdir(mode=0o700)
        into = {"w": np.zeros(100)}
        exchange(str(folder / "w.sock"), {"w": np.full(100, number, np.float64)}, into)
        results[number] = into["w"]

    threads = [threading.Thread(target=job, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all((results[number] == number).all() for number in range(4))
