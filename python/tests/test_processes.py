"""Trainers and servers in processes of their own, which end, are killed and come back; and what all of it costs in the
long run."""
from __future__ import annotations

import os
import signal

import numpy as np
import pytest

import ropeway
from roles import state, state_once_settled, until, weights

SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")
SOAK = 300  # seconds for a thousand updates, however busy the machine is


def test_a_trainer_and_two_servers(address, peer):
    servers = [peer("receive", address), peer("receive_asyncio", address)]
    with ropeway.Sender(address) as sender:
        sender.wait_for_receivers(2).wait()
        assert all(server.hear() == {"connected": True} for server in servers)
        for version in (1, 2, 3):
            assert sender.send_weights(version, weights(version)).wait().count("committed") == 2
            assert all(server.hear() == {"version": version, "whole": True} for server in servers)
    assert all(server.hear() is None and server.end() == 0 for server in servers)


def test_a_server_that_is_killed_while_it_loads(address, peer):
    with ropeway.Sender(address, bucket_bytes=4096) as sender:
        slow, server = peer("load_slowly", address), peer("receive", address)
        sender.wait_for_receivers(2).wait()
        sending = sender.send_weights(1, weights(1))
        assert slow.hear() == {"connected": True} and slow.hear() == {"bucket": 0}
        os.kill(slow.process.pid, signal.SIGKILL)
        report = sending.wait(30)
        outcomes = {one.name.split()[0]: (one.outcome, one.code) for one in report.receivers}
        assert outcomes == {"slow": ("dropped", "peer_gone"), "server": ("committed", None)}
        assert sender.send_weights(2, weights(2)).wait().count("committed") == 1
        before = state()["descriptors"]
    until(lambda: state()["descriptors"] < before)


@pytest.mark.parametrize("way", ["into", "with"])
def test_a_trainer_that_is_killed_in_the_middle(address, peer, way):
    trainer = peer("send_and_hang", address)
    memory = weights(0)
    places = ropeway.Destinations(memory)
    with ropeway.Receiver(name="server", connect_limit=60) as receiver:
        receiver.connect(address).wait()
        update = receiver.next_update().wait()
        loading = update.load_into(places) if way == "into" else update.load_with(lambda tensors: None, tensors="numpy")
        assert trainer.hear() == {"stuck": True}
        os.kill(trainer.process.pid, signal.SIGKILL)
        with pytest.raises(ropeway.TransferError) as caught:
            loading.wait(30)
        assert caught.value.code == "peer_gone"
        with pytest.raises(ropeway.TransferError) as caught:
            receiver.next_update().wait(30)
        assert caught.value.code in ("peer_gone", "not_open")
        assert receiver.status().phase == "closed" and receiver.status().error
        # The next trainer takes the same path over, and what was torn is whole again.
        trainer.close()
        successor = peer("send", address, 1)
        receiver.connect(address).wait()
        receiver.next_update().wait().load_into(places).wait()
        assert not places.torn and (memory["layer.3"] == 103).all()
        assert successor.hear() == {"version": 1, "committed": 1} and successor.end() == 0


@pytest.fixture
def stop():
    """Stops a process, and lets it go on at the latest when the test has ended."""
    stopped = []

    def run(one):
        stopped.append(one)
        os.kill(one.process.pid, signal.SIGSTOP)

    yield run
    for one in stopped:
        if one.process.poll() is None:
            os.kill(one.process.pid, signal.SIGCONT)


DROPPED = ("peer_silent", "peer_gone")  # what the sender says, if it is still heard


def wake(one):
    os.kill(one.process.pid, signal.SIGCONT)
    one.go_on()


def test_a_server_that_is_stopped_while_it_loads(address, peer, stop):
    with ropeway.Sender(address, bucket_bytes=4096, silence_limit=4) as sender:
        slow, server = peer("load_when_told", address), peer("receive", address)
        sender.wait_for_receivers(2).wait()
        sending = sender.send_weights(1, weights(1))
        assert slow.hear() == {"connected": True} and slow.hear() == {"bucket": 0}
        stop(slow)
        report = sending.wait(30)
        outcomes = {one.name.split()[0]: (one.outcome, one.code) for one in report.receivers}
        assert outcomes == {"slow": ("dropped", "peer_silent"), "server": ("committed", None)}
        assert sender.send_weights(2, weights(2)).wait(30).count("committed") == 1
        # It wakes in a session that has ended, has committed nothing, and takes part anew.
        wake(slow)
        said = slow.hear()
        assert said["error"] in DROPPED and said["version"] is None
        sender.wait_for_receivers(2).wait()
        assert sender.send_weights(3, weights(3)).wait(30).count("committed") == 2
        assert slow.hear() == {"version": 3, "whole": True}
    assert slow.end() == 0


def test_a_server_that_is_stopped_before_it_answers(address, peer, stop):
    with ropeway.Sender(address, silence_limit=4) as sender:
        idle, server = peer("receive", address), peer("receive_asyncio", address)
        sender.wait_for_receivers(2).wait()
        assert idle.hear() == {"connected": True} and server.hear() == {"connected": True}
        stop(idle)
        report = sender.send_weights(1, weights(1)).wait(30)
        assert {(one.outcome, one.code) for one in report.receivers} == {("committed", None), ("dropped", "peer_silent")}
        wake(idle)
        said = idle.hear()
        assert said["error"] in DROPPED and not said["torn"]
        assert server.hear() == {"version": 1, "whole": True}
    assert idle.end() == 0


def test_a_trainer_that_is_stopped_in_the_middle(address, peer, stop):
    trainer = peer("send_when_told", address)
    memory = weights(0)
    places = ropeway.Destinations(memory)
    with ropeway.Receiver(name="server", connect_limit=60, silence_limit=4) as receiver:
        receiver.connect(address).wait()
        loading = receiver.next_update().wait().load_into(places)
        assert trainer.hear() == {"stuck": True}
        stop(trainer)
        with pytest.raises(ropeway.TransferError) as caught:
            loading.wait(30)
        assert caught.value.code == "peer_silent" and receiver.status().phase == "closed"
        # It wakes to a version that nobody takes any more, and sends the next.
        wake(trainer)
        assert trainer.hear() == {"error": "too_few_receivers", "outcomes": ["dropped"]}
        receiver.connect(address).wait()
        receiver.next_update().wait().load_into(places).wait()
        assert not places.torn and (memory["layer.3"] == 203).all()
        assert trainer.hear() == {"committed": 1} and trainer.end() == 0


def test_a_server_hears_that_its_trainer_was_killed(address, peer):
    server = None
    trainer = peer("send_and_hang", address)
    server = peer("receive", address)
    assert server.hear() == {"connected": True}
    assert trainer.hear() == {"stuck": True}
    os.kill(trainer.process.pid, signal.SIGKILL)
    said = server.hear()
    assert said["error"] == "peer_gone" and server.end() == 0


def test_a_server_that_comes_back_takes_part_again(address, peer):
    with ropeway.Sender(address) as sender:
        for version in (1, 2):
            server = peer("receive", address)
            sender.wait_for_receivers(1).wait()
            assert server.hear() == {"connected": True}
            assert sender.send_weights(version, weights(version)).wait().count("committed") == 1
            assert server.hear() == {"version": version, "whole": True}
            os.kill(server.process.pid, signal.SIGKILL)
            while sender.receivers().wait():
                pass


@pytest.mark.skipif(SANITIZED, reason="AddressSanitizer keeps what was freed")
@pytest.mark.parametrize("way", ["into", "with"])
def test_a_thousand_updates_leave_nothing_behind(address, peer, run, way):
    versions = 1000
    source = weights(0, 8, 20000)

    async def main():
        async with ropeway.Sender(address, bucket_bytes=1 << 18) as sender:
            server = peer("soak_receive", address, way, versions, limit=SOAK)
            await sender.wait_for_receivers(1)
            server.hear()
            mine = []
            for version in range(1, versions + 1):
                for at, tensor in enumerate(source.values()):
                    tensor[...] = version * 100 + at
                # Every kind of argument: the same objects, new ones, and what was prepared.
                what = source if version % 3 else [(name, tensor[:]) for name, tensor in source.items()]
                report = await sender.send_weights(version, what if version % 2 else sender.prepare(what))
                assert report.count("committed") == 1
                if version in (versions // 4, versions):
                    mine.append(state_once_settled(*mine))
            return mine, [server.hear(), server.hear()]

    for early, late in run(main(), SOAK):
        # Fewer are left if the collector has found meanwhile what tests before this one had left.
        assert late["descriptors"] <= early["descriptors"] and late["threads"] <= early["threads"]
        assert late["maps"] <= early["maps"] + 8
        assert late["resident"] <= early["resident"] + (4 << 20)


@pytest.mark.skipif(SANITIZED, reason="AddressSanitizer keeps what was freed")
def test_memory_of_senders_that_are_gone_comes_back(address):
    def one():
        with ropeway.Sender(address) as sender, ropeway.Receiver() as receiver:
            receiver.connect(address).wait()
            memory = {"w": np.zeros(1000)}
            sending = sender.send_weights(1, {"w": np.ones(1000)})
            receiver.next_update().wait().load_into(memory).wait()
            sending.wait()

    for _ in range(3):
        one()
    before = state()
    for _ in range(30):
        one()
    after = state_once_settled(before)
    assert after["threads"] <= before["threads"] and after["descriptors"] <= before["descriptors"]
    assert after["resident"] <= before["resident"] + (4 << 20)
