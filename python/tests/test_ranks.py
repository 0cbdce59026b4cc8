"""Trainers of several ranks, with FSDP's own sharding and gloo: one sends, all gather, and all learn how it went."""
from __future__ import annotations

import time

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this torch has no gloo", allow_module_level=True)

import ropeway  # noqa: E402
from roles import sharded  # noqa: E402

RANKS = 3


class Server:
    """Takes whole tensors in this process."""

    def __init__(self, address, shapes):
        self.address, self.shapes = address, shapes
        self.held = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        self.places = ropeway.Destinations(self.held)
        self.connect()

    def connect(self):
        self.receiver = ropeway.Receiver(name="server", connect_limit=60)
        self.receiver.connect(self.address).wait()

    def take(self):
        return self.receiver.next_update().wait(60).load_into(self.places).wait(60)

    def takes(self, version):
        self.take()
        wanted = sharded(version, self.shapes)
        assert all((self.held[name] == wanted[name]).all() for name in wanted) and not self.places.torn


@pytest.fixture
def ranks(address, tmp_path, peer):
    def start(how):
        all_ranks = [peer("rank", address, tmp_path / "ranks", number, RANKS, how, limit=180)
                     for number in range(RANKS)]
        server = Server(address, {name: tuple(shape) for name, shape in all_ranks[0].hear()["shapes"].items()})
        server.takes(1)
        assert [one.hear() for one in all_ranks] == [{"committed": 1}] + [{"took_part": 1}] * (RANKS - 1)
        return all_ranks, server

    return start


def test_ranks_that_gather_for_the_one_that_sends(ranks):
    all_ranks, server = ranks("right")
    for version in (2, 3):
        server.takes(version)
        assert [one.hear() for one in all_ranks] == [{"committed": 1}] + [{"took_part": version}] * (RANKS - 1)
    server.receiver.close().wait()
    assert [one.end() for one in all_ranks] == [0] * RANKS


@pytest.mark.parametrize("how", ["nobody", "refused", "wrong", "given up"])
def test_a_send_that_fails_on_its_rank_fails_on_all(ranks, how):
    """And none waits for another: the next version is sent by the same."""
    all_ranks, server = ranks(how)
    if how == "nobody":
        server.receiver.close().wait()
    else:
        update = server.receiver.next_update().wait(60)
        if how == "refused":
            update.refuse("asleep")
        elif how == "wrong":
            with pytest.raises(ropeway.TransferError):
                update.load_into(server.places).wait(60)
        else:  # it is never answered
            all_ranks[0].go_on()
    heard = [one.hear() for one in all_ranks]
    code = {"wrong": "source_failed", "given up": "operation_aborted"}.get(how, "too_few_receivers")
    assert heard[0]["error"] == ("TimeoutError" if how == "given up" else "TransferError")
    assert {one["code"] for one in heard} == {code, heard[0]["code"]}
    for one in heard[1:]:
        assert one["error"] == "TransferError" and one["text"].startswith("rank 0 has not sent the weights: ")
        assert how == "given up" or heard[0]["text"] in one["text"]
    if how == "nobody":
        server.connect()
    server.takes(3)
    assert [one.hear() for one in all_ranks] == [{"committed": 1}] + [{"took_part": 3}] * (RANKS - 1)
    server.receiver.close().wait()
    assert [one.end() for one in all_ranks] == [0] * RANKS


@pytest.mark.parametrize("how, broken", [("dies", 1), ("raises", 1), ("sender dies", 0)])
def test_a_rank_that_fails_in_the_gathering_fails_all(ranks, how, broken):
    """By what the process group says: at once, or, while the rank lives, after the group's limit."""
    all_ranks, server = ranks(how)
    began = time.monotonic()
    with pytest.raises(ropeway.TransferError) as caught:
        server.take()
    assert caught.value.code == ("peer_gone" if how == "sender dies" else "peer_aborted")
    heard = [one.hear() for one in all_ranks]
    assert time.monotonic() - began < 30
    for number, one in enumerate(heard):
        if number == broken:
            assert one is None if "dies" in how else one["error"] == "MemoryError"
        elif number == 0:
            assert one["code"] == "source_failed" and one["cause"] not in ("NoneType", "TransferError")
        else:
            assert one["error"] not in ("TransferError", "MemoryError")
    for number, one in enumerate(all_ranks):
        if number != broken or "dies" not in how:
            one.go_on()
            assert one.end() == 0
