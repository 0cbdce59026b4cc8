"""vLLM's weight transfer through ropeway: a backend called ``ropeway`` for both of its factories.

In the server and in the trainer (vLLM loads the plugin that this package names by itself in every process):

    from ropeway.adapters import vllm as ropeway_vllm
    ropeway_vllm.register()

and then ``WeightTransferConfig(backend="ropeway")`` on both sides. Each rank of the server is a receiver; ranks of one
server form a group, so that all of them hold a version or none does.

Written for the interfaces of August 2026 and of vLLM 0.33 (``WeightTransferEngine(config, vllm_config, device, model)``,
which owns start, update and finish; ``TrainerWeightTransferEngine`` with ``trainer_init`` and ``send_weights``, and since
0.33 without a config, for sources that say ``iter_full`` and whose ``metadata`` is a property). Nothing of vLLM is imported
before `register` is called.
"""
from __future__ import annotations

import contextlib
import importlib
import inspect
import os
from dataclasses import dataclass
from typing import Any, ClassVar, Dict, Iterable, Iterator, List, Optional, Tuple

from .._sender import Run, Sender, Source
from ._beside import Publisher
from ._server import Taker

BACKEND = "ropeway"


def default_path() -> str:
    """Where trainer and server meet unless they are told otherwise: ``ROPEWAY_SOCKET``, or a folder of this user."""
    return os.environ.get("ROPEWAY_SOCKET") or f"/tmp/ropeway-{os.getuid()}/vllm.sock"


# ---- the server ----


class WorkerSide:
    """What one rank of the server does; `register` makes vLLM's engine of it."""

    taker: Optional[Taker] = None
    config: Any
    vllm_config: Any
    device: Any
    model: Any
    model_config: Any

    def init_transfer_engine(self, init_info: Any) -> None:
        """Connects to the trainer, whose socket may appear later."""
        if self.taker is not None:
            self.taker.close()
        parallel = self.vllm_config.parallel_config
        rank = int(getattr(parallel, "rank", 0))
        size = int(getattr(parallel, "world_size", 1))
        knobs: Dict[str, Any] = {"name": f"vllm rank {rank}", "device": _device(self.device),
                                 "connect_limit": init_info.connect_limit}
        if size > 1:
            knobs.update(group=f"{init_info.group}.{_server(self.vllm_config)}.{_replica(parallel)}", group_size=size)
        self.capture = bool(init_info.capture)
        self.limit = float(init_info.update_limit)
        self.taker = Taker(init_info.path, **knobs)
        self.taker.connect(init_info.session)

    def start_weight_update(self) -> None:
        """Prepares layerwise reloading, as vLLM's own engines do, unless the loader is captured."""
        if not self.capture:
            _reload("initialize_layerwise_reload")(self.model)

    def receive_weights(self, update_info: Any) -> None:
        """Takes the version that the trainer announced, and returns when this rank has committed it."""
        taker = self._taker()
        update = taker.next(update_info.version, self.limit, update_info.session)
        with _in_parts():
            if self.capture:
                taker.load(update, self.model.load_weights, self.model)
            else:
                # Layerwise reloading keeps what it is given until a layer is complete.
                taker.load(update, lambda tensors: self.model.load_weights([(name, one.clone()) for name, one in tensors]))

    def finish_weight_update(self) -> None:
        """Ends layerwise reloading."""
        if not self.capture:
            _reload("finalize_layerwise_reload")(self.model, self.model_config)

    def shutdown(self) -> None:
        """Says goodbye to the trainer."""
        if self.taker is not None:
            self.taker.close()
            self.taker = None

    def _taker(self) -> Taker:
        if self.taker is None:
            raise RuntimeError("init_weight_transfer_engine was not called: the worker knows no trainer")
        return self.taker

    @staticmethod
    def trainer_send_weights(iterator: Iterator[Tuple[str, Any]], trainer_args: Any) -> None:
        """Sends from a trainer that has no engine of the other factory.

        `trainer_args`: a dict with ``path`` and ``version``; ``receivers`` (1) and ``limit`` (60 s) say how many must be
        connected. The sender of a path is made at the first call and kept until one fails; `close_senders` ends it."""
        arguments = dict(trainer_args)
        sender = _senders.get(arguments["path"])
        if sender is None:
            sender = _senders[arguments["path"]] = Sender(arguments["path"])
        try:
            sender.wait_for_receivers(int(arguments.get("receivers", 1)), float(arguments.get("limit", 60))).wait()
            sender.send_weights(int(arguments["version"]), iterator).wait()
        except BaseException:
            # Workers that wait for this version learn from the end of their sessions that it will not come.
            del _senders[arguments["path"]]
            sender.close().wait()
            raise


_senders: Dict[str, Sender] = {}


def close_senders() -> None:
    """Ends what `WorkerSide.trainer_send_weights` has kept."""
    while _senders:
        _senders.popitem()[1].close().wait()


def _device(device: Any) -> str:
    index = getattr(device, "index", None)
    kind = getattr(device, "type", str(device))
    if kind != "cuda":
        return "host"
    if index is None:
        import torch

        index = torch.cuda.current_device()
    return f"cuda:{index}"


def _server(vllm_config: Any) -> str:
    """What is the same for all ranks of one server, and another for each server: of each launch, not of its address."""
    try:
        # The ranks' process group, whose store the first of them writes to. They have it in common also where each has
        # made a configuration of its own (external_launcher), with an instance_id of its own.
        from torch.distributed import distributed_c10d, is_available, is_initialized

        if is_available() and is_initialized():
            word = distributed_c10d._get_default_store().compare_set("ropeway.server", "", os.urandom(6).hex())
            return word.decode() if isinstance(word, bytes) else str(word)
    except (ImportError, AttributeError, NotImplementedError):
        pass
    return str(getattr(vllm_config, "instance_id", "") or "")  # copied from the engine into each of its ranks


def _replica(parallel: Any) -> int:
    """Of a server's copies of the model. What vLLM calls a rank is 0 in each of them where they know nothing of each other."""
    index = getattr(parallel, "data_parallel_index", None)
    if index is None:
        index = getattr(parallel, "data_parallel_rank", 0)
    # Ranks beyond the first copy's: launched by somebody else, who knows of the copies, while vLLM does not.
    return int(index or 0) + int(getattr(parallel, "rank", 0)) // int(getattr(parallel, "world_size", 1))


def _reload(name: str) -> Any:
    return getattr(importlib.import_module("vllm.model_executor.model_loader.reload"), name)


def _in_parts() -> Any:
    """Where vLLM has a check that each call of a loader brings a whole draft model: without it, as in its own engines."""
    try:
        return importlib.import_module("vllm.model_executor.model_loader.mtp_validation").disable_mtp_completeness_check()
    except ImportError:
        return contextlib.nullcontext()


# ---- the trainer ----


class TrainerSide:
    """What a rank of the trainer does; `register` makes vLLM's engine of it. Rank 0 sends, the others gather."""

    publisher: Optional[Publisher] = None
    client: Any
    source: Any
    is_sender: bool

    def open(self, init_info: Any) -> None:
        """Listens, and has the server's ranks connect."""
        self.version = 0
        self.stream = bool(init_info.stream)
        self._check_source()
        if not self.is_sender:
            return
        # A server may finish what it computes before it looks at an update.
        self.publisher = Publisher(init_info.path, init_info.receivers, init_info.connect_limit,
                                   min_receivers=init_info.receivers, decide_limit=init_info.update_limit)
        try:
            self.client.init_weight_transfer_engine({
                "path": init_info.path, "capture": init_info.capture, "connect_limit": init_info.connect_limit,
                "update_limit": init_info.update_limit, "session": self.publisher.session})
            self.publisher.wait_for_receivers()
        except BaseException:
            self.shutdown()
            raise

    def send_weights(self) -> None:
        """One version: start, update and transfer at the same time, finish. On every rank."""
        self.version += 1
        run, version, publisher = Run(self._pairs()), self.version, self.publisher
        if publisher is None:
            run.finish()  # its part of the collectives
            return
        try:
            self.client.start_weight_update()
            publisher.send("ropeway-vllm-update", version, lambda: self._tensors(run),
                           lambda: self.client.update_weights({"version": version, "session": publisher.session}))
        except BaseException:
            with contextlib.suppress(Exception):  # it is the first one that says what went wrong
                run.finish()
            raise
        run.finish()
        self.client.finish_weight_update()

    def shutdown(self) -> None:
        """Says goodbye to the server's ranks."""
        if self.publisher is not None:
            self.publisher.close()
            self.publisher = None

    def _check_source(self) -> None:
        """Raises where rank 0 can't give all that the source states. On every rank: those that don't send would wait for
        the one that has raised."""
        source = self.source
        implements = getattr(source, "implements_iter_full", None)  # since 0.33, as owned_names
        if implements is not None and not implements():
            raise TypeError(f"ropeway sends whole tensors, and {type(source).__name__} does not implement iter_full()")
        owned_names = getattr(source, "owned_names", None)
        if owned_names is not None:
            self._raise_for_missing(owned_names(0), "rank 0, which sends, does not own")

    def _raise_for_missing(self, names: Iterable[str], what: str) -> None:
        there = set(names)
        missing = [name for name, _, _ in self._stated() if name not in there]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ValueError(f"{what} {missing[0]!r}{more} of what the source states: the server would keep old weights")

    def _stated(self) -> List[Tuple[str, Any, Tuple[int, ...]]]:
        metadata = self.source.metadata
        return [(one.name, one.dtype, tuple(one.shape)) for one in (metadata() if callable(metadata) else metadata)]

    def _pairs(self) -> Iterator[Tuple[str, Any]]:
        """Whole tensors, gathered as they come."""
        full = getattr(self.source, "iter_full", None)
        return full() if full is not None else iter(self.source)

    def _tensors(self, run: Run) -> Any:
        if self.stream:
            return Source(self._stated(), run)
        pairs = list(run)
        self._raise_for_missing([name for name, _ in pairs], "the iterator ended without")
        return pairs


# ---- vLLM's classes ----


def register() -> None:
    """Makes ``ropeway`` a backend of both factories; does nothing the second time, or where vLLM has no factory."""
    try:
        from vllm.distributed.weight_transfer import base, factory
    except ImportError:
        return
    for which, make in (("WeightTransferEngineFactory", worker_engine), ("WeightTransferTrainerFactory", trainer_engine)):
        registry = getattr(factory, which, None)
        if registry is not None and BACKEND not in registry._registry:
            registry.register_engine(BACKEND, make(base))


def trainer_info(rank: int, **knobs: Any) -> Any:
    """What `trainer_init` is told of a trainer's rank: ``path``, ``receivers`` (how many ranks of servers there are, 1),
    ``capture``, ``stream``, ``connect_limit``, ``update_limit``. Imports vLLM."""
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

    register()
    return WeightTransferTrainerFactory._registry[BACKEND]().init_info_cls(rank=rank, **knobs)


def worker_engine(base: Any) -> Any:
    """The engine class, of vLLM's own bases."""

    @dataclass
    class RopewayInitInfo(base.WeightTransferInitInfo):  # type: ignore[misc]
        """What a worker is told once."""

        path: str = ""
        """Of the trainer's socket."""
        group: str = "vllm"
        capture: bool = False
        """Whether the model's loader is run once and replayed, straight into its weights. Not for quantised models,
        whose weights are processed after loading."""
        connect_limit: float = 60.0
        update_limit: float = 600.0
        session: Optional[int] = None
        """What the trainer calls its sender, if it does."""

        def __post_init__(self) -> None:
            self.path = self.path or default_path()

    @dataclass
    class RopewayUpdateInfo(base.WeightTransferUpdateInfo):  # type: ignore[misc]
        """What a worker is told for each version."""

        version: Optional[int] = None
        session: Optional[int] = None

    class RopewayWeightTransferEngine(WorkerSide, base.WeightTransferEngine):  # type: ignore[misc]
        """vLLM's worker side, with ropeway as the transport."""

        init_info_cls = RopewayInitInfo
        update_info_cls = RopewayUpdateInfo

    return RopewayWeightTransferEngine


def trainer_engine(base: Any) -> Any:
    """The trainer's engine class, of vLLM's own bases."""

    @dataclass
    class RopewayTrainerInitInfo(base.TrainerInitInfo):  # type: ignore[misc]
        """What a trainer's rank is told once."""

        backend: ClassVar[str] = BACKEND

        path: str = ""
        receivers: int = 1
        """How many ranks of servers there are."""
        capture: bool = False
        stream: bool = False
        """Gathers each tensor when its turn comes, instead of all of them first."""
        connect_limit: float = 60.0
        update_limit: float = 600.0
        """How long the server may take until it looks at an update, and the trainer until it sends what it announced."""

        def __post_init__(self) -> None:
            self.path = self.path or default_path()

    with_config = "config" in inspect.signature(base.TrainerWeightTransferEngine.__init__).parameters

    class RopewayTrainerWeightTransferEngine(TrainerSide, base.TrainerWeightTransferEngine):  # type: ignore[misc]
        """vLLM's trainer side, with ropeway as the transport."""

        init_info_cls = RopewayTrainerInitInfo
        config_cls = object

        @classmethod
        def trainer_init(cls, *given: Any, init_info: Any = None, client: Any, source: Any = None) -> Any:
            """Listens and waits for the server's ranks. Before 0.33 a config comes first."""
            info = given[-1] if init_info is None else init_info
            if source is None:
                raise ValueError("ropeway sends what a WeightSource gives: there is none")
            config = {"config": given[0] if len(given) > 1 else None} if with_config else {}
            made = cls(**config, client=client, source=source, is_sender=info.is_sender)
            made.open(info)
            return made

    return RopewayTrainerWeightTransferEngine
