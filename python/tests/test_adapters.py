"""The adapters, against stand-ins with the interfaces that the engines have published; the engines themselves are not
needed, and not imported."""
from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
import logging
import os
import pathlib
import subprocess
import sys
import threading
import time
import types

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import ropeway  # noqa: E402
from pages import blocks_of  # noqa: E402


class Model(torch.nn.Module):
    """With a loader as engines have it: it fuses two tensors into one."""

    def __init__(self):
        super().__init__()
        self.gate_up = torch.nn.Parameter(torch.zeros(2, 8, 4), requires_grad=False)
        self.norm = torch.nn.Parameter(torch.zeros(4), requires_grad=False)
        self.calls, self.fails = 0, False

    def load_weights(self, tensors):
        self.calls += 1
        for name, tensor in tensors:
            if self.fails:
                raise ValueError("no room for it")
            target = {"gate": self.gate_up.data[0], "up": self.gate_up.data[1], "norm": self.norm.data}[name]
            target.copy_(tensor)
        return {name for name, _ in tensors}

    def holds(self, weights):
        return (torch.equal(self.gate_up[0], weights["gate"]) and torch.equal(self.gate_up[1], weights["up"])
                and torch.equal(self.norm, weights["norm"]))


def trained(version):
    words = torch.Generator().manual_seed(version)
    return {"gate": torch.randn(8, 4, generator=words), "up": torch.randn(8, 4, generator=words),
            "norm": torch.randn(4, generator=words)}


@contextlib.contextmanager
def at_once():
    """What waits for a limit takes a multiple of this."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 10


@pytest.fixture
def long_moment(monkeypatch):
    """For a send to fail by itself, however long that takes."""
    from ropeway.adapters import _beside

    monkeypatch.setattr(_beside, "MOMENT", 30)


def test_no_engine_is_imported():
    subprocess.run([sys.executable, "-c", "import sys; from ropeway.adapters import sglang, verl, vllm; vllm.register(); "
                    "assert not {'torch', 'vllm', 'verl', 'sglang', 'zmq'} & set(sys.modules)"], check=True, timeout=60)


def test_a_session_whose_end_is_still_on_its_way(address):
    """The server is called about a version of the trainer's next sender before it knows that the last one has closed."""
    from ropeway.adapters._server import Taker

    taker = Taker(address, name="server")
    with ropeway.Sender(address) as last:
        taker.connect(1)
        last.wait_for_receivers(1).wait()
        os.rename(address, address + ".last")  # it has not closed at all, as far as the server can see
        with ropeway.Sender(address) as sender:
            def take():
                held.append(taker.load(taker.next(2, 10, session=2), lambda tensors: None).version)

            held = []
            taking = threading.Thread(target=take)
            taking.start()
            sender.wait_for_receivers(1).wait()
            assert sender.send_weights(2, trained(2)).wait(10).count("committed") == 1
            taking.join(60)
            assert held == [2]
            taker.close()


# ---- vLLM ----


@pytest.fixture(params=["August 2026", "0.33", "published"])
def vllm(request, monkeypatch):
    """As much of vllm.distributed.weight_transfer as an engine meets, as it was and as it is; and vLLM's own files, where
    ROPEWAY_PEERS names the folder that has them (see benchmarks/published.py)."""
    new = request.param != "August 2026"
    if request.param == "published":
        yield from published_vllm(monkeypatch)
        return
    base = types.ModuleType("vllm.distributed.weight_transfer.base")

    @dataclasses.dataclass
    class WeightTransferInitInfo:
        pass

    @dataclasses.dataclass
    class TrainerInitInfo(WeightTransferInitInfo):
        rank: int = dataclasses.field(kw_only=True)

        def __init_subclass__(cls, **knobs):
            super().__init_subclass__(**knobs)
            if new and not getattr(cls, "backend", None):
                raise TypeError(f"{cls.__name__} must set a class-level `backend` string")

        @property
        def is_sender(self):
            return self.rank == 0

    class WeightTransferEngine:
        def __init__(self, config, vllm_config, device, model):
            self.config, self.vllm_config, self.device, self.model = config, vllm_config, device, model
            self.model_config = vllm_config.model_config

        def parse_init_info(self, init_dict):
            return self.init_info_cls(**init_dict)

        def update_weights(self, update_info):
            self.receive_weights(self.update_info_cls(**update_info))

    class OldTrainer:
        def __init__(self, config, *, client, source, is_sender=True):
            self.config, self.client, self.source, self.is_sender = config, client, source, is_sender

    class NewTrainer:
        def __init__(self, *, client, source=None, is_sender=True, rank=0):
            self.client, self.source, self.is_sender, self.rank = client, source, is_sender, rank

    class Factory:
        def __init__(self):
            self._registry = {}

        def register_engine(self, name, engine):
            assert name not in self._registry
            self._registry[name] = lambda: engine

    base.WeightTransferInitInfo = WeightTransferInitInfo
    base.WeightTransferUpdateInfo = type("WeightTransferUpdateInfo", (), {})
    base.TrainerInitInfo = TrainerInitInfo
    base.WeightTransferEngine = WeightTransferEngine
    base.TrainerWeightTransferEngine = NewTrainer if new else OldTrainer
    factory = types.ModuleType("vllm.distributed.weight_transfer.factory")
    factory.WeightTransferEngineFactory, factory.WeightTransferTrainerFactory = Factory(), Factory()
    reload = types.ModuleType("vllm.model_executor.model_loader.reload")
    reload.said = []
    reload.initialize_layerwise_reload = lambda model: reload.said.append("start")
    reload.finalize_layerwise_reload = lambda model, config: reload.said.append("finish")
    transfer = types.ModuleType("vllm.distributed.weight_transfer")
    transfer.base, transfer.factory = base, factory
    for module in (types.ModuleType("vllm"), types.ModuleType("vllm.distributed"), transfer, base, factory,
                   types.ModuleType("vllm.model_executor"), types.ModuleType("vllm.model_executor.model_loader"), reload):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    if new:
        add_mtp_check(monkeypatch)
    yield registered(factory, reload, new)


def add_mtp_check(monkeypatch):
    check = types.ModuleType("vllm.model_executor.model_loader.mtp_validation")
    check.disable_mtp_completeness_check = contextlib.nullcontext
    monkeypatch.setitem(sys.modules, check.__name__, check)


def registered(factory, reload, new):
    from ropeway.adapters import vllm as adapter

    adapter.register()
    adapter.register()  # again
    trainer = factory.WeightTransferTrainerFactory._registry["ropeway"]()

    def trainer_init(info, client, source):
        if new:
            return trainer.trainer_init(init_info=info, client=client, source=source)
        return trainer.trainer_init(None, info, client=client, source=source)

    return types.SimpleNamespace(worker=factory.WeightTransferEngineFactory._registry["ropeway"](), trainer=trainer,
                                 trainer_init=trainer_init, reload=reload, adapter=adapter,
                                 source=NewSource if new else WeightSource)


def published_vllm(monkeypatch):
    folder = os.environ.get("ROPEWAY_PEERS")
    if not folder:
        pytest.skip("ROPEWAY_PEERS names no folder with vLLM's published files")
    before = dict(sys.modules)
    monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parents[2] / "benchmarks"))
    import published

    published.vllm(folder)
    logger = types.ModuleType("vllm.logger")
    logger.init_logger = logging.getLogger
    sys.modules["vllm.logger"] = logger
    name = "vllm.distributed.weight_transfer"
    factory = published._file(f"{name}.factory", pathlib.Path(folder, *name.split("."), "factory.py"))
    sys.modules[name].base, sys.modules[name].factory = sys.modules[f"{name}.base"], factory
    reload = sys.modules["vllm.model_executor.model_loader.reload"]
    reload.said = []
    reload.initialize_layerwise_reload = lambda model: reload.said.append("start")
    reload.finalize_layerwise_reload = lambda model, config: reload.said.append("finish")
    made = registered(factory, reload, True)
    made.trainer_init = lambda info, client, source: factory.WeightTransferTrainerFactory.trainer_init(
        info, client=client, source=source)
    made.source = lambda: published_source(sys.modules[f"{name}.base"])
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: None)  # there may be none
    yield made
    for added in set(sys.modules) - set(before):
        if added.partition(".")[0] in ("vllm", "published"):
            del sys.modules[added]


def published_source(base):
    """vLLM's own source, of a module whose weights are replaced."""
    module = torch.nn.Module()

    class Source(base.ModuleSource):
        @property
        def weights(self):
            return dict(module.named_parameters())

        @weights.setter
        def weights(self, weights):
            for name, tensor in weights.items():
                setattr(module, name, torch.nn.Parameter(tensor, requires_grad=False))

    source = Source(module)
    source.weights = trained(1)
    return source


class Ranks:
    """The server as a trainer's client sees it: each call runs on all ranks."""

    def __init__(self, engines):
        self.engines = engines

    def _all(self, call):
        failures = []

        def run(engine):
            try:
                call(engine)
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=run, args=(engine,)) for engine in self.engines]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        if failures:
            raise RuntimeError(f"a worker failed: {failures[0]}") from failures[0]

    def init_weight_transfer_engine(self, info):
        self._all(lambda engine: engine.init_transfer_engine(engine.parse_init_info(info)))

    def start_weight_update(self):
        self._all(lambda engine: engine.start_weight_update())

    def update_weights(self, info):
        self._all(lambda engine: engine.update_weights(info))

    def finish_weight_update(self):
        self._all(lambda engine: engine.finish_weight_update())


class WeightSource:
    def __init__(self):
        self.weights = trained(1)

    def metadata(self):
        return [types.SimpleNamespace(name=name, dtype=tensor.dtype, shape=tuple(tensor.shape))
                for name, tensor in self.weights.items()]

    def __iter__(self):
        return iter(self.weights.items())


class NewSource:
    """As they are since 0.33."""

    def __init__(self):
        self.weights = trained(1)

    @property
    def metadata(self):
        return WeightSource.metadata(self)

    def iter_full(self):
        return iter(self.weights.items())


def workers(vllm, ranks, server="1a2b3", first=0, **parallel):
    def worker(rank):
        known = types.SimpleNamespace(**{"rank": rank, "world_size": ranks, "data_parallel_rank": 0, **parallel})
        config = types.SimpleNamespace(model_config=None, instance_id=server, parallel_config=known)
        return vllm.worker(None, config, torch.device("cpu"), Model())

    return [worker(first + rank) for rank in range(ranks)]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("capture", [False, True])
def test_vllm(vllm, address, ranks, stream, capture):
    engines, source = workers(vllm, ranks), vllm.source()
    info = vllm.adapter.trainer_info(rank=0, path=address, receivers=ranks, stream=stream, capture=capture)
    trainer = vllm.trainer_init(info, client=Ranks(engines), source=source)
    for version in (1, 2, 3):
        source.weights = trained(version)
        trainer.send_weights()
        assert all(engine.model.holds(source.weights) for engine in engines)
    if capture:
        assert all(engine.model.calls == 1 for engine in engines) and not vllm.reload.said
    else:
        assert vllm.reload.said == (["start"] * ranks + ["finish"] * ranks) * 3
    trainer.shutdown()
    for engine in engines:
        engine.shutdown()


def test_vllm_as_its_page_says(vllm, address, monkeypatch):
    engines, source = workers(vllm, 2), vllm.source()
    factory = sys.modules["vllm.distributed.weight_transfer.factory"]
    if not hasattr(factory.WeightTransferTrainerFactory, "trainer_init"):  # vLLM's own has it
        factory.WeightTransferTrainerFactory.trainer_init = vllm.trainer_init
    monkeypatch.setenv("ROPEWAY_SOCKET", address)
    trainer = blocks_of("vllm.md")["trainer_engine"](0, 2, Ranks(engines), source)
    for version in (1, 2):
        source.weights = trained(version)
        trainer.send_weights()
        assert all(engine.model.holds(source.weights) and engine.model.calls == 1 for engine in engines)  # captured
    trainer.shutdown()
    for engine in engines:
        engine.shutdown()


def test_vllm_ranks_that_do_not_send_gather(vllm):
    gathered, source = [], vllm.source()
    how = "__iter__" if isinstance(source, WeightSource) else "iter_full"

    def watched(self):
        for name, tensor in getattr(super(Watched, self), how)():
            gathered.append(name)
            yield name, tensor

    Watched = type("Watched", (type(source),), {how: watched})
    source.__class__ = Watched
    info = vllm.trainer.init_info_cls(rank=1)
    trainer = vllm.trainer_init(info, client=None, source=source)
    trainer.send_weights()
    trainer.shutdown()
    assert gathered == ["gate", "up", "norm"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("call", ["start_weight_update", "update_weights"])
def test_vllm_send_that_fails_gathers_all_the_same(vllm, address, stream, call):
    """The other ranks are in the collectives."""
    (engine,), source, gathered = workers(vllm, 1), vllm.source(), []

    class Watched(type(source)):
        def iter_full(self):
            for name, tensor in super().iter_full() if hasattr(super(), "iter_full") else super().__iter__():
                gathered.append(name)
                yield name, tensor

        __iter__ = iter_full

    source.__class__ = Watched
    client = Ranks([engine])
    trainer = vllm.trainer_init(vllm.trainer.init_info_cls(rank=0, path=address, stream=stream), client=client, source=source)

    def fail(*info):
        raise ConnectionError("the server is away")

    setattr(client, call, fail)
    with at_once(), pytest.raises(ConnectionError, match="away"):
        trainer.send_weights()
    assert gathered == ["gate", "up", "norm"]
    delattr(client, call)
    trainer.send_weights()
    assert gathered == ["gate", "up", "norm"] * 2 and engine.model.holds(source.weights)
    trainer.shutdown()
    engine.shutdown()


def test_vllm_worker_that_fails(vllm, address, long_moment):
    (engine,), source = workers(vllm, 1), vllm.source()
    info = vllm.trainer.init_info_cls(rank=0, path=address)
    trainer = vllm.trainer_init(info, client=Ranks([engine]), source=source)
    engine.model.fails = True
    with pytest.raises(ropeway.TransferError) as caught:
        trainer.send_weights()
    assert "no room for it" in caught.value.report.receivers[0].text and isinstance(caught.value.__cause__, RuntimeError)
    engine.model.fails = False
    trainer.send_weights()
    assert engine.model.holds(source.weights)
    trainer.shutdown()
    engine.shutdown()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_vllm_source_that_fails(vllm, address, ranks, stream, error):
    engines, source = workers(vllm, ranks), vllm.source()
    broken = []

    class Breaking(type(source)):
        def iter_full(self):
            pairs = iter(super().iter_full() if hasattr(super(), "iter_full") else super().__iter__())
            yield next(pairs)
            if broken:
                raise error("no disk")
            yield from pairs

        __iter__ = iter_full

    source.__class__ = Breaking
    info = vllm.trainer.init_info_cls(rank=0, path=address, receivers=ranks, stream=stream)
    trainer = vllm.trainer_init(info, client=Ranks(engines), source=source)
    for version in (1, 2):
        source.weights = trained(version)
        broken[:] = [True]
        with at_once(), pytest.raises((error, ropeway.TransferError)) as caught:
            trainer.send_weights()
        assert isinstance(caught.value, error) or isinstance(caught.value.__cause__, error)
        broken.clear()
        trainer.send_weights()
        assert all(engine.model.holds(source.weights) for engine in engines)
    trainer.shutdown()
    for engine in engines:
        engine.shutdown()


def test_vllm_call_that_fails(vllm, address):
    (engine,), source = workers(vllm, 1), vllm.source()
    client = Ranks([engine])
    trainer = vllm.trainer_init(vllm.trainer.init_info_cls(rank=0, path=address), client=client, source=source)
    update = client.update_weights

    def fail(info):
        raise ConnectionError("the server is away")

    client.update_weights = fail
    with at_once(), pytest.raises(ConnectionError, match="away"):
        trainer.send_weights()
    client.update_weights = update
    trainer.send_weights()
    assert engine.model.holds(source.weights)
    trainer.shutdown()
    engine.shutdown()


def test_vllm_limits_reach_the_workers(vllm, address):
    engines = workers(vllm, 2)
    info = vllm.trainer.init_info_cls(rank=0, path=address, receivers=2, connect_limit=23, update_limit=42)
    told = []
    client = Ranks(engines)
    client.init_weight_transfer_engine = lambda words: (told.append(words), Ranks(engines).init_weight_transfer_engine(words))
    trainer = vllm.trainer_init(info, client=client, source=vllm.source())
    assert [engine.limit for engine in engines] == [42, 42] and told[0]["connect_limit"] == 23
    trainer.shutdown()
    for engine in engines:
        engine.shutdown()


@pytest.mark.parametrize("stream", [False, True])
def test_vllm_source_that_gives_less_than_it_states(vllm, address, stream):
    (engine,), source = workers(vllm, 1), vllm.source()

    class Less(type(source)):
        def iter_full(self):
            for name, tensor in super().iter_full() if hasattr(super(), "iter_full") else super().__iter__():
                if name != "norm":
                    yield name, tensor

        __iter__ = iter_full

    source.__class__ = Less
    info = vllm.trainer.init_info_cls(rank=0, path=address, stream=stream)
    trainer = vllm.trainer_init(info, client=Ranks([engine]), source=source)
    with at_once(), pytest.raises((ValueError, ropeway.TransferError), match="ended .*'norm'"):
        trainer.send_weights()
    assert not engine.model.norm.any() and engine.taker.receiver.version is None
    trainer.shutdown()
    engine.shutdown()


@pytest.mark.parametrize("rank", [0, 1])  # both, or one would wait for the other in a collective
def test_vllm_source_of_parts(vllm, address, rank):
    source = vllm.source()
    if isinstance(source, WeightSource):
        pytest.skip("sources had no owners before 0.33")

    class Partly(type(source)):
        def owned_names(self, rank):
            return [one.name for one in self.metadata if (one.name == "norm") == (rank == 1)]

    class Local(type(source)):
        def implements_iter_full(self):
            return False

    for kind, error, words in ((Partly, ValueError, "does not own 'norm'"), (Local, TypeError, "iter_full")):
        source.__class__ = kind
        with pytest.raises(error, match=words):
            vllm.trainer_init(vllm.trainer.init_info_cls(rank=rank, path=address), client=None, source=source)
    assert not os.path.exists(address)  # nobody waits there


@pytest.mark.parametrize("second", [dict(server="4c5d6"), dict(data_parallel_rank=1), dict(data_parallel_index=1), dict(first=2)],
                         ids=["server", "replica", "replica of a dense model", "replica of the launcher's"])
def test_vllm_two_groups_at_one_trainer(vllm, address, second):
    engines, source = workers(vllm, 2) + workers(vllm, 2, **second), vllm.source()
    info = vllm.trainer.init_info_cls(rank=0, path=address, receivers=4)
    trainer = vllm.trainer_init(info, client=Ranks(engines), source=source)
    trainer.send_weights()
    assert all(engine.model.holds(source.weights) for engine in engines)
    trainer.shutdown()
    for engine in engines:
        engine.shutdown()


def test_vllm_ranks_with_configurations_of_their_own_are_one_group(vllm, address, monkeypatch):
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    stores = {"1": distributed.HashStore(), "2": distributed.HashStore()}  # of the process group of each server
    ours = threading.local()
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.distributed_c10d, "_get_default_store", lambda: stores[ours.server])
    engines, source = [], vllm.source()
    for server in stores:
        for rank in range(2):
            engines.append(workers(vllm, 2, f"{server}-{rank}")[rank])
            connect = engines[-1].init_transfer_engine

            def run(info, connect=connect, server=server):
                ours.server = server
                connect(info)

            engines[-1].init_transfer_engine = run
    info = vllm.trainer.init_info_cls(rank=0, path=address, receivers=4)
    trainer = vllm.trainer_init(info, client=Ranks(engines), source=source)
    trainer.send_weights()  # which no group does whose members are not all there
    assert all(engine.model.holds(source.weights) for engine in engines)
    trainer.shutdown()
    for engine in engines:
        engine.shutdown()


def test_vllm_without_a_trainer_engine(vllm, address, monkeypatch):
    (engine,), weights = workers(vllm, 1), trained(5)
    sending = threading.Thread(target=vllm.worker.trainer_send_weights, args=(
        iter(weights.items()), {"path": address, "version": 5}))
    sending.start()
    Ranks([engine]).init_weight_transfer_engine({"path": address, "connect_limit": 60})
    engine.update_weights({"version": 5})
    sending.join(60)
    assert engine.model.holds(weights)

    waits, receiver = threading.Event(), engine.taker.receiver
    next_update = receiver.next_update

    def next_update_and_say_so():
        update = next_update()
        waits.set()
        return update

    def wrong():
        assert waits.wait(60)  # the worker, for this version
        yield "gate", "no tensor"

    monkeypatch.setattr(receiver, "next_update", next_update_and_say_so)
    with at_once():
        sending = threading.Thread(target=pytest.raises, args=(TypeError, vllm.worker.trainer_send_weights, wrong(),
                                                               {"path": address, "version": 6}))
        sending.start()
        with pytest.raises(ropeway.TransferError, match="has closed"):
            engine.update_weights({"version": 6})
        sending.join(60)
    vllm.adapter.close_senders()
    engine.shutdown()


# ---- verl ----


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("two", [False, True])
def test_verl(tmp_path, run, asynchronous, two):
    from ropeway.adapters.verl import BucketedWeightReceiver, BucketedWeightSender

    handle = f"ipc://{tmp_path}/verl.sock"
    held, last = {}, []

    def one_argument(weights):
        held.update((name, tensor.clone()) for name, tensor in weights)

    def two_arguments(weights, is_last):
        one_argument(weights)
        last.append(is_last)

    async def pairs(weights):
        for pair in weights.items():
            yield pair

    for version in (1, 2):
        weights = trained(version)
        weights["large"] = torch.randn(600, 1000)  # more than a bucket
        receiver = BucketedWeightReceiver(handle, torch.device("cpu"))
        receiving = threading.Thread(target=receiver.receive_weights, args=(two_arguments if two else one_argument,))
        receiving.start()
        sender = BucketedWeightSender(handle, bucket_size_mb=1)
        run(sender.async_send_weights(pairs(weights) if asynchronous else iter(weights.items())))
        receiving.join(60)
        assert set(held) == set(weights) and all(torch.equal(held[name], weights[name]) for name in weights)
        assert sender.report.count("committed") == 1
        held.clear()
        assert not two or (last[-1] and last.count(True) == 1)
        last.clear()
    assert os.listdir(tmp_path) == []


def test_verl_as_its_page_says(tmp_path):
    said, model, handle = blocks_of("verl.md"), Model(), f"ipc://{tmp_path}/verl.sock"
    receiving = threading.Thread(target=said["take_update"], args=(handle, torch.device("cpu"), model.load_weights))
    receiving.start()
    asyncio.run(said["update_rollout"](handle, trained(1).items()))
    receiving.join(60)
    assert model.holds(trained(1))


@pytest.mark.parametrize("weights", [{}, {"gate": torch.zeros(0, 4)}, {"gate": torch.ones(8, 4)}])
def test_verl_last_call_that_fails(tmp_path, run, weights):
    from ropeway.adapters.verl import BucketedWeightReceiver, BucketedWeightSender

    handle, calls = f"ipc://{tmp_path}/verl.sock", []

    def fail(loaded, is_last):
        calls.append((len(loaded), is_last))
        raise ValueError("no adapter is added")

    def receive():
        with pytest.raises(ValueError, match="no adapter"):
            BucketedWeightReceiver(handle, torch.device("cpu")).receive_weights(fail)

    receiving = threading.Thread(target=receive)
    receiving.start()
    with pytest.raises(ropeway.TransferError) as caught:
        run(BucketedWeightSender(handle).async_send_weights(weights.items()))
    receiving.join(60)
    assert "no adapter is added" in caught.value.report.receivers[0].text and calls == [(len(weights), True)]
    assert os.listdir(tmp_path) == []


@pytest.fixture
def published_verl(monkeypatch):
    """verl's own file."""
    folder = os.environ.get("ROPEWAY_PEERS")
    if not folder:
        pytest.skip("ROPEWAY_PEERS names no folder with verl's published files")
    before, path = dict(sys.modules), list(sys.path)
    monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parents[2] / "benchmarks"))
    import published

    yield published.verl(folder, "cpu")[0]
    sys.path[:] = path
    for added in set(sys.modules) - set(before):
        if added.partition(".")[0] in ("verl", "published"):
            del sys.modules[added]


@pytest.mark.parametrize("name, methods", [("BucketedWeightSender", ["__init__", "async_send_weights"]),
                                           ("BucketedWeightReceiver", ["__init__", "receive_weights"])])
def test_verl_is_called_as_its_own(published_verl, name, methods):
    from ropeway.adapters import verl

    for method in methods:
        theirs = list(inspect.signature(getattr(getattr(published_verl, name), method)).parameters.values())
        ours = list(inspect.signature(getattr(getattr(verl, name), method)).parameters.values())
        assert [(one.name, one.kind, one.default) for one in ours[:len(theirs)]] == [
            (one.name, one.kind, one.default) for one in theirs]
        assert all(one.default is not one.empty for one in ours[len(theirs):])  # what we add, nobody needs to give


def test_verl_does_as_its_own(published_verl, tmp_path):
    from ropeway.adapters import verl

    weights, seen = {f"w{number}": torch.randn(300, 300) for number in range(8)}, []  # 2.7 buckets
    for module in (published_verl, verl):
        handle, held, last = f"ipc://{tmp_path}/{len(seen)}.sock", {}, []

        def loaded(bucket, is_last, held=held, last=last):
            held.update((name, tensor.clone()) for name, tensor in bucket)
            last.append((bool(bucket), is_last))

        receiver = module.BucketedWeightReceiver(handle, torch.device("cpu"), use_shm=True)
        receiving = threading.Thread(target=receiver.receive_weights, args=(loaded,))
        receiving.start()
        asyncio.run(module.BucketedWeightSender(handle, 1, use_shm=True).async_send_weights(iter(weights.items())))
        receiving.join(60)
        assert not receiving.is_alive() and all(torch.equal(held[name], weights[name]) for name in weights)
        # How many buckets there are differs: verl's hold whole tensors.
        seen.append((list(held), last[-1], sum(is_last for _, is_last in last), os.listdir(tmp_path)))
    assert seen[0] == seen[1]


def test_verl_errors_cross(tmp_path):
    from ropeway.adapters.verl import BucketedWeightReceiver, BucketedWeightSender, socket_path

    handle = f"ipc://{tmp_path}/verl.sock"
    failures = []

    def fail(weights):
        raise ValueError("no room for it")

    def receive():
        try:
            BucketedWeightReceiver(handle, torch.device("cpu")).receive_weights(fail)
        except ValueError as error:
            failures.append(error)

    receiving = threading.Thread(target=receive)
    receiving.start()
    with pytest.raises(ropeway.TransferError) as caught:
        asyncio.run(BucketedWeightSender(handle).async_send_weights(trained(1).items()))
    assert "no room for it" in caught.value.report.receivers[0].text
    receiving.join(60)
    assert failures
    with pytest.raises(ValueError, match="this host"):
        socket_path("tcp://10.0.0.1:555")


# ---- SGLang ----


class SGLang:
    """An engine as the trainer sees it, whose ranks run the loader that was asked for."""

    def __init__(self, models):
        self.models, self.flushed = models, []

    def update_weights_from_tensor(self, named_tensors, load_format=None, flush_cache=True):
        from ropeway.adapters import sglang

        assert load_format == sglang.LOADER
        self.flushed.append(flush_cache)
        for model in self.models:
            sglang.load_weights(model, named_tensors)
        return True, "Success"


def test_sglang_as_its_page_says(address):
    from ropeway.adapters import sglang

    model = Model()
    engine = blocks_of("sglang.md")["with_ropeway"](SGLang([model]), address, 1)
    try:
        for version in (1, 2):
            assert engine.update_weights_from_tensor(list(trained(version).items())) == (True, "Success")
            assert model.holds(trained(version))
    finally:
        engine.close()
        sglang.close()


def test_sglang(address, long_moment):
    from ropeway.adapters import sglang

    model = Model()
    engine = sglang.RopewayEngine(SGLang([model]), address, limit=60)
    try:
        for version in (1, 2, 3):
            weights = list(trained(version).items())
            for bucket in (weights[:2], weights[2:]):  # as trainers do it
                assert engine.update_weights_from_tensor(bucket, flush_cache=False) == (True, "Success")
            assert model.holds(dict(weights))
        assert engine.flushed == [False] * 6  # what is not ropeway's is the engine's
        with pytest.raises(ValueError, match="flattened_bucket"):
            engine.update_weights_from_tensor([], load_format="flattened_bucket")
        model.fails = True
        with pytest.raises(ropeway.TransferError) as caught:
            engine.update_weights_from_tensor(weights)
        assert "no room for it" in caught.value.report.receivers[0].text
    finally:
        engine.close()
        sglang.close()


@pytest.mark.parametrize("late", [0, 1])  # the server looks when the send has failed already
def test_sglang_sends_that_fail(address, late):
    from ropeway.adapters import sglang

    model = Model()

    class Late(SGLang):
        def update_weights_from_tensor(self, *given, **knobs):
            time.sleep(late)
            return super().update_weights_from_tensor(*given, **knobs)

    def interrupted():
        yield "gate", torch.zeros(8, 4)
        raise KeyboardInterrupt

    def right():
        weights = trained(1)
        assert engine.update_weights_from_tensor(list(weights.items())) == (True, "Success") and model.holds(weights)

    engine = sglang.RopewayEngine(Late([model]), address, limit=60)
    try:
        for wrong, error in (([("gate", "no tensor")], TypeError), (interrupted(), KeyboardInterrupt),
                             ([("norm", torch.zeros(4))] * 2, ropeway.TransferError)):
            with at_once(), pytest.raises(error) as caught:
                engine.update_weights_from_tensor(wrong)
            assert caught.value.__cause__ is None  # that the server ended its call is no cause of it
            right()
    finally:
        engine.close()
        sglang.close()


@pytest.mark.parametrize("answer", [ConnectionError("not reached"), (False, "not reached")])
def test_sglang_server_that_does_not_look(address, answer):
    from ropeway.adapters import sglang

    model = Model()

    class Away(SGLang):
        away = True

        def update_weights_from_tensor(self, *given, **knobs):
            if not self.away:
                return super().update_weights_from_tensor(*given, **knobs)
            if isinstance(answer, Exception):
                raise answer
            return answer

    inner, weights = Away([model]), trained(1)
    engine = sglang.RopewayEngine(inner, address, limit=60)
    try:
        for connected in (False, True):
            inner.away = True
            with at_once(), pytest.raises((ConnectionError, RuntimeError), match="not reached"):
                engine.update_weights_from_tensor(list(weights.items()))
            inner.away = False
            assert engine.update_weights_from_tensor(list(weights.items())) == (True, "Success")
        assert model.holds(weights)
    finally:
        engine.close()
        sglang.close()
