"""A trainer and a server in two processes, on a CUDA device: what its streams, its allocator, graphs and ends of processes do
to an update. The trainer is this process, the server is device.py's."""
from __future__ import annotations

import gc
import os
import signal
import threading
import time
import warnings

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import device as other_process  # noqa: E402
import ropeway  # noqa: E402
from device import CUDA, DEVICE, ROUTE, Failed, Other, content, growth, is_expandable, segments, slow, used  # noqa: E402
from roles import in_poll, until  # noqa: E402

if not DEVICE:
    pytest.skip("no CUDA device: NOTHING of what a device does was tested", allow_module_level=True)
cuda = pytest.mark.skipif(not CUDA, reason="no CUDA device")


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    one = Other(tmp_path_factory.mktemp("other"))
    yield one
    one.close()


@pytest.fixture
def server(process):
    yield process
    process("close")
    process("forget")


@pytest.fixture
def sender(address, server):
    with ropeway.Sender(address) as one:
        server("connect", address)
        one.wait_for_receivers(1, limit=30).wait(40)
        yield one


def stated(tensors):
    return [(name, str(tensor.dtype).rpartition(".")[2], tuple(tensor.shape)) for name, tensor in tensors.items()]


def send(sender, server, version, what, route=ROUTE, **how):
    """One version, into the server's destinations."""
    server.start("load")
    report = sender.send_weights(version, what, **how).wait(60)
    loaded = server.result()
    assert report.count("committed") == 1 and loaded["version"] == version
    assert report.receivers[0].route == loaded["route"] in ((route,) if isinstance(route, str) else route)
    return report, loaded


def ones(count=3, size=1 << 16):
    return {f"layer.{at}": torch.ones(size, device=DEVICE) for at in range(count)}


def all_are(held, tensors, value):
    return held == content({name: torch.full_like(tensor, value) for name, tensor in tensors.items()})


# ---- content and routes ----


def test_everything_arrives_bit_by_bit(sender, server):
    whole = torch.randn(20, 30, 40, device=DEVICE)
    names = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64",
             "float8_e4m3fn", "float8_e5m2"]
    tensors = {name: torch.randint(0, 2, (33 * getattr(torch, name).itemsize,), dtype=torch.uint8, device=DEVICE)
               .view(getattr(torch, name)) for name in names}
    tensors.update(permuted=whole.permute(2, 0, 1), rows=whole[::2], scalar=whole[0, 0, 0], empty=whole[:0],
                   large=torch.randn(3000, 1000, device=DEVICE), parameter=torch.nn.Parameter(whole.clone()))
    server("make", stated(tensors))
    for version in (1, 2, 3):
        with torch.no_grad():
            whole.add_(1)
        send(sender, server, version, tensors)
        assert server("content") == content(tensors)


@pytest.mark.parametrize("route", ["mapped", "staged", "host"])
def test_each_route(address, server, route):
    if not CUDA and route != "host":
        pytest.skip("no CUDA device")
    tensors = {"w": torch.randn(1000, 1000, device=DEVICE), "b": torch.randn(77, device=DEVICE)}
    server("make", stated(tensors))
    with ropeway.Sender(address, route=route, bucket_bytes=1 << 20, digests=True) as sender:
        server("connect", address, demand_digests=True)
        sender.wait_for_receivers(1, limit=30).wait(40)
        for version in (1, 2):
            tensors["w"].mul_(1.5)
            report, loaded = send(sender, server, version, tensors, route=route)
            assert report.digest == loaded["digest"] and server("content") == content(tensors)


@cuda
def test_tensors_of_the_host_among_those_of_the_device(sender, server):
    tensors = {"device": torch.randn(1000, device=DEVICE), "host": torch.randn(500), "last": torch.randn(9, device=DEVICE)}
    server("make", stated(tensors))
    server.start("load")
    assert sender.send_weights(1, tensors).wait(60).count("committed") == 1
    server.result()
    assert server("content") == content(tensors)


def test_casts_on_the_way(sender, server):
    tensors = {"w": torch.cat([torch.randn(5000, device=DEVICE), torch.tensor([float("inf"), 1e-40], device=DEVICE)])}
    server("make", [("w", "bfloat16", (5002,))])
    server.start("load")
    sender.send_weights(1, tensors, cast=torch.bfloat16).wait(60)
    server.result()
    assert server("content") == content({"w": tensors["w"].bfloat16()})


@pytest.mark.parametrize("theirs", [False, True])
@pytest.mark.parametrize("ours", [False, True])
def test_expandable_segments_on_either_side(sender, server, ours, theirs):
    with segments(ours):
        tensors = {f"layer.{at}": torch.randn(700, 1000, device=DEVICE) for at in range(12)}
    if CUDA:
        assert is_expandable(tensors["layer.0"]) == ours
    assert server("make", stated(tensors), expandable=theirs) == (theirs and CUDA)
    for version in (1, 2, 3):
        for tensor in tensors.values():
            tensor.mul_(1.25)
        if version == 3:  # more of the range is backed meanwhile
            with segments(ours):
                tensors["layer.3"] = torch.randn(700, 1000, device=DEVICE)
        # Memory that this torch has made without a handle to share can't be mapped, and is copied twice.
        report, _ = send(sender, server, version, tensors, route=(ROUTE, "staged") if ours else ROUTE)
        assert server("content") == content(tensors)
    if CUDA and report.receivers[0].route != "mapped":
        warnings.warn(f"tensors of expandable segments went {report.receivers[0].route}: {report.receivers[0].route_reason}")


@cuda
def test_arrays_of_cupy_on_a_stream_of_their_own(sender, server):
    cupy = pytest.importorskip("cupy", reason="cupy is not installed")
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        array = cupy.arange(100000, dtype=cupy.float32)
        server("make", [("w", "float32", (100000,))])
        for version in (1, 2):
            array *= 2
            send(sender, server, version, {"w": array}, route=ROUTE)
            assert server("content")["w"] == array.get().tobytes()


# ---- streams ----


@pytest.mark.parametrize("how", ["current", "side", "stream", "event", "prepared"])
def test_what_a_slow_kernel_writes_is_waited_for(sender, server, how):
    tensors = ones()
    server("make", stated(tensors))
    side = torch.cuda.Stream() if CUDA else None
    what, knobs = tensors, {}
    for version in (1, 2, 3):
        value = 10.0 * version
        if how in ("current", "prepared") or not CUDA:
            slow()
            for tensor in tensors.values():
                tensor.fill_(value)
        else:
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                slow()
                for tensor in tensors.values():
                    tensor.fill_(value)
                event = torch.cuda.Event()
                event.record()
            knobs = {"stream": {"after": side}, "event": {"after": event}, "side": {}}[how]
        if how == "prepared" and version == 1:
            what = sender.prepare(tensors)
        if how == "side" and CUDA:
            with torch.cuda.stream(side):
                send(sender, server, version, what)
        else:
            send(sender, server, version, what, **knobs)
        assert all_are(server("content"), tensors, value)


def test_a_slow_reader_sees_the_old_version_only(sender, server):
    tensors = ones()
    server("make", stated(tensors))
    for version in (1, 2):
        for tensor in tensors.values():
            tensor.fill_(version)
        server.start("load_while_reading")
        sender.send_weights(version, tensors).wait(60)
        before, after = server.result()
        if CUDA:
            assert all_are(before, tensors, version - 1)
        assert all_are(after, tensors, version)


@cuda
def test_the_callers_device_and_stream_stay(sender, server):
    tensors = ones()
    server("make", stated(tensors))
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        send(sender, server, 1, tensors)
        assert torch.cuda.current_stream() == side and torch.cuda.current_device() == 0


@cuda
def test_a_send_returns_while_the_stream_is_busy(sender, server):
    """Python waits for no kernel: what is waited for is waited for on the device."""
    tensors = ones()
    server("make", stated(tensors))
    send(sender, server, 1, tensors)
    slow(6_000_000_000)
    kernel = torch.cuda.Event()
    kernel.record()
    server.start("load")
    sending = sender.send_weights(2, tensors)
    assert not sending.done() and not kernel.query()
    sending.wait(60)
    server.result()


# ---- lifetimes ----


def test_memory_is_free_the_moment_a_send_has_ended(sender, server):
    tensors = ones(4, 1 << 20)
    server("make", stated(tensors))
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    for version in range(1, 6):
        for tensor in tensors.values():
            tensor.fill_(version)
        server.start("load")
        sending = sender.send_weights(version, tensors)
        places = {name: tensor.data_ptr() for name, tensor in tensors.items()}
        tensors = {}  # the operation keeps them
        gc.collect()
        sending.wait(60)
        del sending
        gc.collect()
        # What is allocated now lies where they were, and is written at once.
        others = {name: torch.full(shape, -1.0, device=DEVICE) for name, shape in shapes.items()}
        server.result()
        assert all_are(server("content"), others, version)
        if CUDA:
            assert {one.data_ptr() for one in others.values()} & set(places.values())
        tensors, others, tensor = others, {}, None  # or they would be kept by this frame


def test_tensors_that_are_dropped_while_they_are_sent_are_kept(sender, server):
    tensors = ones(4, 1 << 20)
    server("make", stated(tensors))
    slow()
    server.start("load")
    sending = sender.send_weights(1, tensors)
    shapes = [tensor.shape for tensor in tensors.values()]
    tensors.clear()
    gc.collect()
    others = [torch.full(shape, -1.0, device=DEVICE) for shape in shapes]
    sending.wait(60)
    server.result()
    assert all_are(server("content"), {f"layer.{at}": one for at, one in enumerate(others)}, 1)


def test_a_parameter_that_was_given_other_memory_while_it_is_sent(sender, server):
    tensors = {"w": torch.nn.Parameter(torch.ones(1 << 20, device=DEVICE))}
    server("make", stated(tensors))
    for version in (1, 2, 3):  # the first is looked at, the next ones are recognised
        slow()
        server.start("load")
        sending = sender.send_weights(version, tensors)
        tensors["w"].data = torch.full((1 << 20,), version + 1.0, device=DEVICE)
        sending.wait(60)
        server.result()
        assert all_are(server("content"), tensors, version)


def test_destinations_are_free_the_moment_a_load_has_ended(sender, server):
    tensors = ones(4, 1 << 20)
    for version in (1, 2):
        server("make", stated(tensors))
        for tensor in tensors.values():
            tensor.fill_(version)
        server.start("load_and_free")
        sender.send_weights(version, tensors).wait(60)
        held, untouched = server.result()
        assert all_are(held, tensors, version) and untouched


def test_memory_that_was_freed_and_made_anew(sender, server):
    """Another allocation at the same address, and the same allocation with its tensors elsewhere."""
    server("make", [("w", "float32", (3 << 20,))])
    for version in range(1, 5):
        tensor = torch.full((3 << 20,), float(version), device=DEVICE)
        send(sender, server, version, {"w": tensor})
        assert all_are(server("content"), {"w": tensor}, version)
        del tensor
        gc.collect()
        if CUDA and version % 2:
            torch.cuda.empty_cache()
    both = torch.zeros(2, 3 << 20, device=DEVICE)
    for version in range(5, 8):
        both[version % 2].fill_(version)
        send(sender, server, version, {"w": both[version % 2]})
        assert all_are(server("content"), {"w": both[0]}, version)


@cuda
def test_memory_comes_back_when_it_is_asked_for(sender, server):
    server("make", [("w", "uint8", (1 << 29,))])
    send(sender, server, 1, {"w": torch.zeros(1 << 29, dtype=torch.uint8, device=DEVICE)})
    torch.cuda.synchronize()
    gc.collect()
    before = used()
    sender.release_memory().wait(30)
    torch.cuda.empty_cache()
    assert used() <= before - (1 << 29)  # although the server lives
    for version in (2, 3):
        tensor = torch.full((1 << 29,), version, dtype=torch.uint8, device=DEVICE)
        send(sender, server, version, {"w": tensor})
    assert server("content")["w"] == bytes([3]) * (1 << 29)


def test_weights_may_change_when_the_source_is_free(sender, server):
    tensors = ones(4, 1 << 20)
    server("make", stated(tensors))
    for version in (1, 2):
        for tensor in tensors.values():
            tensor.fill_(version)
        server.start("load")
        sending = sender.start(version, tensors).wait(60)
        sending.source_free().wait(60)
        for tensor in tensors.values():
            tensor.fill_(-1)
        assert sending.done().wait(60).count("committed") == 1
        server.result()
        assert all_are(server("content"), tensors, version)


# ---- loaders, iterators, shards ----


def test_a_loader_through_buckets(address, server):
    tensors = {f"layer.{at}": torch.randn(300, 500, device=DEVICE) for at in range(6)}
    server("make", stated(tensors))
    with ropeway.Sender(address, bucket_bytes=1 << 20) as sender:
        server("connect", address)
        sender.wait_for_receivers(1, limit=30).wait(40)
        for version in (1, 2, 3):
            for tensor in tensors.values():
                tensor.mul_(1.5)
            server.start("load_with")
            assert sender.send_weights(version, tensors).wait(60).count("committed") == 1
            assert server.result() >= 4
            assert server("content") == content(tensors)
        for raises_at in (1, 3):
            server.start("load_with", raises_at=raises_at)
            with pytest.raises(ropeway.TransferError) as caught:
                sender.send_weights(10 + raises_at, tensors).wait(60)
            assert "no layer of that name" in caught.value.report.receivers[0].text
            with pytest.raises(Failed, match="no layer of that name"):
                server.result()
        server.start("load_with", keeps="layer.2")
        with pytest.raises(ropeway.TransferError) as caught:
            sender.send_weights(20, tensors).wait(60)
        assert "layer.2" in caught.value.report.receivers[0].text
        with pytest.raises(Failed, match="ReleasedError.*layer.2"):
            server.result()
        server.start("load_with")
        assert sender.send_weights(21, tensors).wait(60).count("committed") == 1
        server.result()


def test_a_captured_loader(sender, server):
    tensors = {"a": torch.randn(40, 30, device=DEVICE), "b": torch.randn(20, 30, device=DEVICE),
               "c": torch.randn(50, 60, device=DEVICE)}
    server("make", stated(tensors))
    server.start("load_captured", 3)
    wanted = []
    for version in (1, 2, 3):
        for tensor in tensors.values():
            tensor.mul_(1.5)
        wanted.append(content({"fused": torch.cat([tensors["a"], tensors["b"]]), "turned": tensors["c"].t()}))
        sender.send_weights(version, tensors).wait(60)
    held, calls, by_tensor = server.result()
    assert held == wanted and calls == 1 and not by_tensor


def test_an_iterator_that_makes_its_tensors_and_one_that_fails(sender, server):
    """Each tensor is let go when it was read, so its memory is given to the next one."""
    given = [(f"layer.{at}", "float32", (1 << 18,)) for at in range(20)]
    server("make", given)
    fails_at = None

    def tensors():
        for at, (name, _, shape) in enumerate(given):
            if at == fails_at:
                raise RuntimeError("out of weights")
            slow(2_000_000)
            yield name, torch.full(shape, float(at), device=DEVICE)

    source = ropeway.Source(given, tensors, DEVICE)
    for version, fails_at in enumerate((None, 3, None), 1):
        server.start("load")
        if fails_at is None:
            sender.send_weights(version, source).wait(60)
            assert server.result()["version"] == version and not server("torn")
            assert server("content") == content({name: torch.full(shape, float(at)) for at, (name, _, shape)
                                                 in enumerate(given)})
            continue
        with pytest.raises(ropeway.TransferError) as caught:
            sender.send_weights(version, source).wait(60)
        assert caught.value.code == "source_failed" and isinstance(caught.value.__cause__, RuntimeError)
        with pytest.raises(Failed, match="out of weights"):
            server.result()


def test_sharded_weights_are_gathered(sender, server, tmp_path, monkeypatch):
    """FSDP's own sharding, on one rank: what it makes whole is sent, and let go."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "lo")
    dist.init_process_group("nccl" if CUDA else "gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cuda" if CUDA else "cpu", (1,))
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 32)).to(DEVICE)
        plain = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        for layer in (model[0], model[2], model):
            fully_shard(layer, mesh=mesh)
        with pytest.raises(TypeError, match="gathered"):
            sender.send_weights(1, model)
        server("make", stated(plain))
        asked = []

        def gather(name, shard):
            asked.append(name)
            return shard.full_tensor()

        for version, source in enumerate((ropeway.gathered(model, device=DEVICE),
                                          ropeway.gathered(model, gather, device=DEVICE)), 2):
            server.start("load")
            assert sender.send_weights(version, source).wait(60).count("committed") == 1
            server.result()
            assert server("content") == content(plain)
        assert asked == list(plain)
    finally:
        dist.destroy_process_group()


def test_on_a_loop(address, server, run):
    tensors = ones()
    server("make", stated(tensors))

    async def main():
        async with ropeway.Sender(address) as sender:
            server("connect", address)
            await sender.wait_for_receivers(1, limit=30)
            for version in (1, 2):
                slow()
                for tensor in tensors.values():
                    tensor.fill_(version)
                server.start("load_on_a_loop")
                report = await sender.send_weights(version, tensors)
                assert report.count("committed") == 1 and server.result()["route"] == ROUTE
                assert all_are(server("content"), tensors, version)

    run(main())


# ---- graphs ----


@cuda
def test_a_graph_that_reads_the_destinations(sender, server):
    tensors = {"w": torch.randn(1 << 20, device=DEVICE)}
    server("make", stated(tensors))
    server.start("load_under_a_graph", 3)
    for held in range(3):
        tensors["w"].add_(1)
        sender.send_weights(held, tensors).wait(60)
    assert server.result()[-1] == content({"w": tensors["w"] * 2})


@cuda
def test_an_update_while_a_graph_is_captured(sender, server):
    tensors = {"w": torch.randn(1 << 20, device=DEVICE)}
    server("make", stated(tensors))
    for version in (1, 2):  # the first maps the trainer's memory
        tensors["w"].add_(1)
        server.start("load_while_capturing")
        assert server.heard() == "capturing"
        sender.send_weights(version, tensors).wait(60)
        captured, held = server.result()
        assert captured and held == content(tensors)


# ---- ends ----


def test_an_interrupt_while_a_server_waits(sender, server):
    tensors = ones()
    server("make", stated(tensors))
    server.start("wait_to_be_interrupted")
    assert server.heard() == "waiting"
    until(lambda: in_poll(server.process.pid))
    server.process.send_signal(signal.SIGINT)
    with pytest.raises(Failed, match="KeyboardInterrupt"):
        server.result()
    send(sender, server, 1, tensors)


def test_an_interrupt_while_a_trainer_sends(sender, server):
    tensors = ones()
    server("make", stated(tensors))

    def interrupt():
        until(lambda: in_poll(os.getpid()))
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    with pytest.raises(KeyboardInterrupt):
        interrupting.start()
        sender.send_weights(1, tensors).wait(30)  # nobody answers
    interrupting.join()
    server.start("load")
    sending = sender.send_weights(2, tensors)
    try:
        assert server.result()["version"] == 2
    except Failed as first:  # the one that was given up had been announced
        assert first.code == "peer_aborted"
        assert server("load")["version"] == 2
    assert sending.wait(60).count("committed") == 1


def test_a_limit_while_the_stream_is_busy(sender, server):
    """A send that is given up ends when no copy reads the tensors any more."""
    tensors = ones()
    server("make", stated(tensors))
    send(sender, server, 1, tensors)
    slow(400_000_000)
    server.start("load")
    try:
        sender.send_weights(2, tensors).wait(0.01)
    except TimeoutError:
        with pytest.raises(Failed):
            server.result()
    else:
        assert not CUDA
        server.result()
    for tensor in tensors.values():
        tensor.fill_(3)
    send(sender, server, 3, tensors)
    assert all_are(server("content"), tensors, 3)


SLACK = 160 << 20  # less than the tensors of `test_processes_that_are_killed`


def settles(least, limit=15):
    """Waits until the device's used memory is at most that."""
    until = time.monotonic() + limit
    while used() > least:
        assert time.monotonic() < until, f"{used() >> 20} MiB are used, and were {least >> 20}"
        time.sleep(0.05)


def test_processes_that_are_killed(address, server, tmp_path):
    """A server in its loader, then a trainer in its iterator: the others go on, and the memory is back."""
    tensors = ones(4, 1 << 24)
    server("make", stated(tensors))
    before = used() if CUDA else 0
    victim = Other(tmp_path)
    try:
        with ropeway.Sender(address, bucket_bytes=1 << 20) as sender:
            server("connect", address)
            victim("make", [])
            victim("connect", address)
            sender.wait_for_receivers(2, limit=30).wait(40)
            victim.start("hang_in_a_loader")
            server.start("load")
            sending = sender.send_weights(1, tensors)
            assert victim.heard() == "loading"
            victim.kill()
            report = sending.wait(60)
            assert sorted((one.outcome, one.code) for one in report.receivers) == [("committed", None), ("dropped", "peer_gone")]
            server.result()
            send(sender, server, 2, tensors)
            assert server("content") == content(tensors)
            assert len(sender.receivers().wait(30)) == 1
        server("close")
        if CUDA:
            settles(before + SLACK)
    finally:
        victim.close()
    # The server's torch has what it had; the trainer's memory must not stay mapped when the trainer is dead.
    (tmp_path / "calls").unlink(missing_ok=True)
    victim = Other(tmp_path)
    try:
        victim.start("hang_as_a_trainer", address, stated(tensors))
        server("connect", address)
        assert server("load")["version"] == 1 and victim.heard() == "sent"
        server.start("load")
        assert victim.heard() == "stuck"
        victim.kill()
        with pytest.raises(Failed) as caught:
            server.result()
        assert caught.value.code in ("peer_gone", "ECONNRESET")
        if CUDA:
            settles(before + SLACK)
        with ropeway.Sender(address) as sender:  # takes the dead one's path over
            server("connect", address)
            sender.wait_for_receivers(1, limit=30).wait(40)
            send(sender, server, 3, tensors)
            assert not server("torn") and server("content") == content(tensors)
    finally:
        victim.close()


@pytest.mark.parametrize("way", ["into", "with", "captured"])
def test_a_thousand_updates_leave_nothing_behind(sender, server, way):
    versions = 1000
    tensors = {f"layer.{at}": torch.zeros(30000, device=DEVICE) for at in range(8)}
    server("make", stated(tensors))
    server.start("follow", versions, way)
    mine = []
    for version in range(1, versions + 1):
        for tensor in tensors.values():
            tensor.fill_(version)
        # Every kind of argument: the same objects, new ones, and what was prepared.
        what = tensors if version % 3 else [(name, tensor[:]) for name, tensor in tensors.items()]
        report = sender.send_weights(version, what if version % 2 else sender.prepare(what)).wait(60)
        assert report.count("committed") == 1
        del what, report
        if version in (versions // 4, versions):
            gc.collect()
            mine.append(growth())
    for early, late in (mine, server.result()):
        # A queue that waits for a stream, which takes two descriptors, is made at the first update that has to.
        assert late["descriptors"] <= early["descriptors"] + 2 and late["threads"] <= early["threads"], (early, late)
        assert late["maps"] <= early["maps"] + 8, (early, late)
        assert late["resident"] <= early["resident"] + (8 << 20), (early, late)
        if CUDA:
            assert late["allocated"] <= early["allocated"] + (1 << 20), (early, late)
            assert late["reserved"] <= early["reserved"], (early, late)
    assert all_are(server("content"), tensors, versions)


def test_that_the_other_process_is_what_it_says():
    """The tests above are only worth something if both sides mean the same device."""
    assert other_process.DEVICE == DEVICE and torch.zeros(1, device=DEVICE).device.type == DEVICE.partition(":")[0]
