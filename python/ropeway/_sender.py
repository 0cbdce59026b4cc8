"""The trainer's side."""
from __future__ import annotations

import os
import weakref
from types import TracebackType
from typing import (Any, AsyncIterable, Callable, Dict, Generator, Generic, Iterable, Iterator, List, Mapping, Optional,
                    Sequence, Tuple, Type, TypeVar, Union)

from . import _core, _tensors
from ._errors import TransferError, words_of
from ._operation import Foreign, Operation, Single, Steps, last
from ._reports import ConnectedReceiver, SendReport, TensorInfo
from ._tensors import Cast

_open: "weakref.WeakSet[Any]" = weakref.WeakSet()
"""Senders and receivers, which end with the interpreter."""


SharedMemory = _core.SharedMemory


class Prepared:
    """Tensors that a sender has looked at once: names, shapes and addresses. Sending them again costs nothing per
    tensor. From `Sender.prepare`.

    Keeps the tensors' memory. Tensors that are given *other* memory (``parameter.data = ...``) must be prepared anew:
    what is sent is the memory that was there."""

    def __init__(self, core: _core.Prepared, devices: Tuple[int, ...], after: Any) -> None:
        self._core = core
        self._devices = devices
        self._after = after

    def __len__(self) -> int:
        return int(self._core.size)


class Source:
    """Tensors that are made while they are sent, one by one, so that they need never exist all at once: a list of what
    will come, and something to iterate for each send.

    Args:
        stated: for each tensor its name, dtype and shape, in order, as receivers see them: `TensorInfo`, or a tuple.
        tensors: gives an iterable, or async iterable, of (name, tensor) in that order; called once for each send. An
            iterable that can be iterated again (a list, a module's generator function) will do as well. What it
            raises aborts the version, with its words in every report.
        device: where most of the tensors will lie: ``"host"`` or ``"cuda:N"``.

    It is iterated on the thread that waits for the send: an asyncio loop's, or the one in ``wait``. Tensors of no
    elements are passed over. Each tensor is let go when its last copy was seen to end.
    """

    def __init__(self, stated: Iterable[Union[TensorInfo, Sequence[Any]]],
                 tensors: Union[Callable[[], Any], Iterable[Tuple[str, Any]], AsyncIterable[Tuple[str, Any]]],
                 device: str = "host") -> None:
        self.stated: List[TensorInfo] = []
        for one in stated:
            name, dtype, shape = (one.name, one.dtype, one.shape) if isinstance(one, TensorInfo) else one
            self.stated.append(TensorInfo(name, _tensors.dtype_name(dtype), tuple(int(extent) for extent in shape)))
        self._tensors = tensors
        kind, _, ordinal = str(device).partition(":")
        if kind not in ("host", "cpu", "cuda"):
            raise ValueError(f"no device is called {device!r}; there are host (or cpu), cuda and cuda:N")
        self._ordinal = int(ordinal or 0) if kind == "cuda" else -1

    def iterate(self) -> Any:
        """What `tensors` gives: for ranks that take part in the gathering and send nothing themselves (see `gathered`)."""
        return self._iterate()

    def _iterate(self) -> Any:
        return self._tensors() if callable(self._tensors) else self._tensors


class Run:
    """One way through an iterator that is a collective, on the rank that sends: it knows whether the other ranks still
    wait in it."""

    def __init__(self, pairs: Iterable[Tuple[str, Any]]) -> None:
        self._pairs = iter(pairs)
        self.failed = False
        """Whether the iterator itself has raised: then nobody knows where the others are."""

    def __iter__(self) -> "Run":
        return self

    def __next__(self) -> Tuple[str, Any]:
        try:
            return next(self._pairs)
        except StopIteration:
            raise
        except BaseException:
            self.failed = True
            raise

    def finish(self) -> None:
        """Takes part in what is left, for the other ranks' sake."""
        if not self.failed:
            for _ in self:
                pass


class _Gathered(Source):
    """A `Source` whose iteration is a collective, at the end of which all ranks learn what came of the send."""

    _groups: List[Any]

    def iterate(self) -> Any:
        yield from self._iterate()
        self._agree(None)

    def _agree(self, failure: Optional[BaseException]) -> None:
        """Tells the other ranks how it went on this one; raises if it went wrong on another alone. On all ranks."""
        if not self._groups:
            return
        from torch import distributed

        said: Optional[Tuple[int, str, str]] = None
        if failure is not None:
            given_up = isinstance(failure, TimeoutError) or not isinstance(failure, Exception)
            code, words = "operation_aborted" if given_up else "invalid_argument", words_of(failure)
            if isinstance(failure, TransferError):
                code, words = failure.code, str(failure)
            said = distributed.get_rank(), code, words
        # One dimension of a mesh after the other, so that in the end each rank has heard of all.
        for group in self._groups:
            heard: List[Optional[Tuple[int, str, str]]] = [None] * distributed.get_world_size(group)
            distributed.all_gather_object(heard, said, group=group)
            said = next((one for one in heard if one is not None), None)
        if said is not None and failure is None:
            rank, code, words = said
            raise TransferError(f"rank {rank} has not sent the weights: {words}", code)


def _groups_of(pairs: List[Tuple[str, Any]], group: Any) -> List[Any]:
    """The process groups of those who gather these together."""
    if group is not None:
        return [group]
    meshes: List[Any] = []
    for _, tensor in pairs:
        mesh = getattr(tensor, "device_mesh", None)
        if mesh is not None and hasattr(tensor, "full_tensor") and not any(mesh == known for known in meshes):
            meshes.append(mesh)
    return [group for mesh in meshes if hasattr(mesh, "get_all_groups") for group in mesh.get_all_groups()]


def gathered(tensors: Any, gather: Optional[Callable[[str, Any], Any]] = None, device: str = "host",
             group: Any = None) -> Source:
    """A `Source` of sharded tensors (DTensor, FSDP2) that are made whole when their turn comes.

    Args:
        tensors: a torch module, a mapping or (name, tensor) pairs. Names and shapes are read from it now; the shapes of
            DTensors are those of the whole.
        gather: makes one tensor whole, given its name and shard. By default ``tensor.full_tensor()`` for what has it,
            and the tensor itself for what has not.
        device: where gathered tensors lie.
        group: torch's process group of the ranks that gather together. By default those of the DTensors' meshes, and none
            for tensors of other kinds.

    Gathering is a collective: ranks that have no sender iterate as well, ``for _ in source.iterate(): pass``. Where there is
    a group, that ends when the send has ended, and raises TransferError with its code and words if it has failed: a send
    that fails, is refused or cancelled still gathers what is left before it raises, so that no rank waits for it. Where
    gathering itself fails on a rank, that rank raises at once; the others learn of it from the process group: when the
    rank's process ends, or by the timeout that the group was made with. So it is where the rank that is to send never calls
    `send_weights`: let it wait for receivers before the others start.
    """
    pairs = list(_tensors.items(tensors))

    def whole(name: str, tensor: Any) -> Any:
        if gather is not None:
            return gather(name, tensor)
        return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor

    def all_whole() -> Iterator[Tuple[str, Any]]:
        for name, tensor in pairs:
            yield name, whole(name, tensor)

    source = _Gathered([(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in pairs], all_whole, device)
    source._groups = _groups_of(pairs, group)
    return source


class Sending:
    """A version on its way, from `Sender.start`. One that is dropped before `done` has ended is given up."""

    def __init__(self, core: _core.Sending, sender: object) -> None:
        self._core = core
        self._sender = sender  # which lives as long

    @property
    def version(self) -> int:
        """As `Sender.start` was told."""
        return int(self._core.version)

    def source_free(self) -> Operation[None]:
        """Ends when no copy reads the tensors any more: the trainer may change its weights. Fails if the version was
        given up. Cancelling stops this wait only."""
        return Single(self._core.source_free(), of=self)

    def done(self) -> Operation[SendReport]:
        """Ends when every outcome is known; errors and cancellation as for `Sender.send_weights`."""
        return Single(self._core.done(), of=self)


class Held:
    """A version whose tensors stay as they are, from `Sender.hold`: until `release` has ended, or as a context manager
    (``with`` or ``async with``), which releases it. One that is dropped ends as well, and keeps its tensors until nobody
    reads them; but they must not change before `release` has ended."""

    def __init__(self, core: _core.Held, sender: object) -> None:
        self._core = core
        self._sender = sender  # which lives as long

    @property
    def version(self) -> int:
        """As `Sender.hold` was told."""
        return int(self._core.version)

    def release(self) -> Operation[None]:
        """Ends when nobody reads the tensors any more, after a delivery that does was given up: they may change. Once
        more means nothing. Cancelling stops this wait only."""
        return Single(self._core.release(), of=self)

    def __enter__(self) -> "Held":
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        self.release().wait()

    async def __aenter__(self) -> "Held":
        return self

    async def __aexit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException],
                        trace: Optional[TracebackType]) -> None:
        await self.release()


Tensors = Union[Prepared, Source, Mapping[str, Any], Iterable[Tuple[str, Any]], AsyncIterable[Tuple[str, Any]], Any]
"""What can be sent: see `Sender.send_weights`."""


class Sender:
    """Publishes versions of a model's weights to the receivers on this host.

    Listens at once at `path`, whose directory is made (0700) if only that is missing. The library's own thread tells
    receivers that the sender is alive, whatever Python does meanwhile.

    Args:
        path: of the socket. Its directory must belong to you alone.
        bucket_bytes: of a slot of the ring through which tensors go that can't be mapped (64 MiB).
        slots: of that ring (2); 1 is lock-step.
        min_receivers: a send that reaches fewer fails with ``too_few_receivers`` (1).
        max_receivers: more are turned away (63).
        handshake_limit, decide_limit, silence_limit, commit_limit, source_limit, close_limit: seconds; see
            ``sender_options`` in options.hpp.
        route: which ways updates may go: ``automatic``, ``mapped``, ``staged`` or ``host``.
        digests: of every tensor, computed where it lies, which each receiver compares with what it has in place
            before it commits (``digest_mismatch``). Both sides read the weights once more.
        allowed_users: user numbers, beside our own, whose processes may connect.
        allow_shared_directory: accepts a directory that others may write to: for tests only.

    Raises TransferError: ``bad_path``, ``not_permitted``, ``address_in_use``, ``invalid_argument``.

    Thread-safety: all members may be called from any thread; one send runs at a time (``busy``). After a fork it is
    the parent's alone. End it with `close`, or as a context manager (``with`` or ``async with``).
    """

    def __init__(self, path: "Union[str, os.PathLike[str]]", *, bucket_bytes: Optional[int] = None,
                 slots: Optional[int] = None, min_receivers: Optional[int] = None, max_receivers: Optional[int] = None,
                 handshake_limit: Optional[float] = None, decide_limit: Optional[float] = None,
                 silence_limit: Optional[float] = None, commit_limit: Optional[float] = None,
                 source_limit: Optional[float] = None, close_limit: Optional[float] = None, route: Optional[str] = None,
                 digests: Optional[bool] = None, allowed_users: Optional[Sequence[int]] = None,
                 allow_shared_directory: Optional[bool] = None) -> None:
        knobs: Dict[str, Any] = {
            "bucket_bytes": bucket_bytes, "slots": slots, "min_receivers": min_receivers, "max_receivers": max_receivers,
            "handshake_limit": handshake_limit, "decide_limit": decide_limit, "silence_limit": silence_limit,
            "commit_limit": commit_limit, "source_limit": source_limit, "close_limit": close_limit, "route": route,
            "digests": digests, "allowed_users": allowed_users, "allow_shared_directory": allow_shared_directory,
        }
        self.path = os.fspath(path)
        """Where it listens, as given."""
        self._core = _core.Sender(self.path, {name: value for name, value in knobs.items() if value is not None})
        self._seen: "Optional[Tuple[_core.Seen, int, Tuple[int, ...]]]" = None  # of the last send; the dtype; devices
        _open.add(self)

    def prepare(self, tensors: Any, *, cast: Cast = None, after: Any = None) -> Prepared:
        """Looks at tensors once; `send_weights` and `start` then take what this gives. See `send_weights`."""
        return self._look(_tensors.pairs_of(tensors), cast, after)

    def send_weights(self, version: int, tensors: Tensors, *, cast: Cast = None,
                     after: Any = None) -> Operation[SendReport]:
        """Sends `tensors` as `version` to every receiver that is connected now; ends when every outcome is known.

        Args:
            version: a label; a receiver sees it as it is given.
            tensors: a torch module (its state dict, tied weights once and no ``_extra_state``), a mapping, (name, tensor)
                pairs in an iterable or async iterable, or what `prepare`, `Source` or `gathered` made. Tensors are torch's, numpy's, or
                anything with DLPack, ``__cuda_array_interface__`` or the buffer protocol, on any device, strided or
                not; none is copied, and all are kept until the operation has ended. A plain iterable is run to its end first: one whose
                tensors should not exist all at once belongs into a `Source`.
            cast: the dtype that receivers see; see `Cast`. F32 becomes BF16 or F16 while it is packed, and the reverse.
            after: a CUDA stream or event before which no byte is read: by default torch's current streams.

        Raises TransferError with a `report`: ``too_few_receivers``, ``busy``, ``duplicate_name``, ``unsupported``,
        ``overflow``, ``source_failed``, ``out_of_memory``, ``no_device``, ``device_failed``, ``not_open``. What goes wrong with
        one receiver is no error of the send: it stands in the report. TypeError names a tensor that can't be
        carried.

        Cancellation gives the version up; receivers keep what they hold, or are torn where they load in place.
        """
        if isinstance(tensors, Prepared):  # first, for it is the quickest
            prepared = self._prepared(tensors, cast, after)
            return Single(self._core.send(version, prepared._core, self._when(prepared, after)), of=self)
        if isinstance(tensors, Source):
            if cast is not None:
                raise TypeError("a Source says what is sent: state the dtypes there, instead of `cast`")
            if isinstance(tensors, _Gathered):
                return Steps(self._send_gathered(version, tensors, after))
            return Steps(self._send_source(version, tensors, tensors._iterate, after))
        if hasattr(tensors, "__aiter__"):
            return Steps(self._send_async(version, tensors, cast, after))
        wire = _tensors.plain_wire(cast)
        pairs = tensors if type(tensors) is dict else _tensors.pairs_of(tensors)
        # The tensors of the last send, where they were then, need no more than to be recognised.
        seen, seen_wire, devices = self._seen or (None, None, ())
        if seen is not None and seen_wire == wire:
            again = self._core.send_again(version, seen, pairs, _tensors.core_types(),
                                          _tensors.ready_after(after, devices))
            if again is not None:
                return Single(again, of=self)
        prepared = self._look(list(pairs.items()) if isinstance(pairs, dict) else pairs, cast, after)
        now = prepared._core.seen() if wire is not None else None
        self._seen = None if now is None or wire is None else (now, wire, prepared._devices)
        return Single(self._core.send(version, prepared._core, self._when(prepared, after)), of=self)

    def start(self, version: int, tensors: Tensors, *, cast: Cast = None, after: Any = None) -> Operation[Sending]:
        """Starts a version and ends as soon as it is announced: `Sending.source_free` then says when the weights may
        change, and `Sending.done` what came of it. Not for a `Source` or an async iterable."""
        if isinstance(tensors, Source) or hasattr(tensors, "__aiter__"):
            raise TypeError("what is made on the fly is sent with send_weights")
        prepared = self._prepared(tensors, cast, after)
        return Single(self._core.start(version, prepared._core, self._when(prepared, after)),
                      lambda core: Sending(core, self), of=self)

    def hold(self, version: int, tensors: Tensors, *, cast: Cast = None, after: Any = None) -> Held:
        """Promises that `tensors` stay as they are until what this returns is released. Whoever joins or comes back
        meanwhile, has failed a send or was not there, is given `version` without another call; who has it, or something
        that was sent since, is not. A send that is started meanwhile goes first.

        Raises as `send_weights` for what is wrong with the tensors. Not for a `Source` or an async iterable.
        `release_memory` fails (``busy``) until it is released."""
        if isinstance(tensors, Source) or hasattr(tensors, "__aiter__"):
            raise TypeError("what is made on the fly can't be held: it is gone when somebody comes late")
        prepared = self._prepared(tensors, cast, after)
        return Held(self._core.hold(version, prepared._core, self._when(prepared, after)), self)

    def wait_for_receivers(self, count: int = 1, limit: float = 60.0) -> Operation[int]:
        """Ends with the number of receivers once at least `count` are connected. Raises TransferError
        (``too_few_receivers``) after `limit` seconds. Cancelling stops this wait only."""
        return Single(self._core.wait_for_receivers(count, limit), of=self)

    def receivers(self) -> Operation[List[ConnectedReceiver]]:
        """The receivers that are connected now."""
        return Single(self._core.receivers(), of=self)

    def share(self, memory: SharedMemory) -> None:
        """Lets receivers map tensors that lie in this memory, from the next send on."""
        self._core.share(memory)

    def release_memory(self) -> Operation[None]:
        """Wants back all that receivers have mapped of the trainer's memory, for trainers that free or offload their
        weights; ends when every receiver has unmapped it, or has gone. The next send maps anew.

        Raises TransferError: ``busy`` while a send runs or a version is held, ``peer_silent``, ``not_open``."""
        return Single(self._core.release_memory(), of=self)

    def close(self) -> Operation[None]:
        """Ends gracefully: a running send is given up, receivers are told goodbye, the socket is removed. No error, also
        when it is closed already."""
        return Steps(self._close())

    def _close(self) -> "Generator[Operation[Any], Any, None]":
        if self._core.is_open:
            try:
                yield Single(self._core.close())
            finally:
                self._core.destroy()

    def __enter__(self) -> "Sender":
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        self.close().wait()

    async def __aenter__(self) -> "Sender":
        return self

    async def __aexit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException],
                        trace: Optional[TracebackType]) -> None:
        await self.close()

    # ---- what is behind it ----

    def _look(self, pairs: List[Any], cast: Cast, after: Any) -> Prepared:
        sources, looked = _tensors.sources(pairs, cast)
        return Prepared(self._core.prepare(sources), tuple(sources.devices()), _tensors.streams_of(looked, after))

    def _prepared(self, tensors: Any, cast: Cast, after: Any) -> Prepared:
        if isinstance(tensors, Prepared):
            if cast is not None:
                raise TypeError("the tensors were prepared: give `cast` to prepare()")
            return tensors
        return self.prepare(tensors, cast=cast, after=after)

    @staticmethod
    def _when(prepared: Prepared, after: Any) -> _tensors.When:
        return _tensors.ready_after(after if after is not None else prepared._after, prepared._devices)

    def _send_async(self, version: int, tensors: Any, cast: Cast,
                    after: Any) -> "Generator[Operation[Any], Any, SendReport]":
        async def collect() -> List[Tuple[str, Any]]:
            return [pair async for pair in tensors]

        pairs = yield Foreign(collect())
        report: SendReport = yield last(self.send_weights(version, pairs, cast=cast, after=after))
        return report

    def _send_gathered(self, version: int, source: _Gathered,
                       after: Any) -> "Generator[Operation[Any], Any, SendReport]":
        run = Run(source._iterate())
        try:
            report = yield from self._send_source(version, source, lambda: run, after)
        except GeneratorExit:
            raise
        except BaseException as error:
            try:
                run.finish()
                if not run.failed:
                    source._agree(error)
            except Exception:
                pass  # it is the first one that says what went wrong
            raise
        run.finish()  # tensors of no elements may be left
        source._agree(None)
        return report

    def _send_source(self, version: int, source: Source, iterate: Callable[[], Any],
                     after: Any) -> "Generator[Operation[Any], Any, SendReport]":
        stated = source.stated
        bridge = self._core.source([(one.name, _tensors.dtype_number(one.dtype), one.shape) for one in stated],
                                   source._ordinal)
        core, wanted = self._core.send_source(version, bridge)
        send: Single[SendReport] = Single(core)
        failure: Optional[BaseException] = None
        at = -1  # of the last tensor that the iterator gave
        step: Optional[Operation[Any]] = None
        try:
            iterator = iterate()
            asynchronous = hasattr(iterator, "__aiter__")
            iterator = iterator.__aiter__() if asynchronous else iter(iterator)
        except BaseException as error:
            failure = error
        while True:
            try:
                index: Optional[int] = yield Single(wanted())
            except BaseException as error:  # the question may have come before it was cancelled: then the send has not ended
                send.cancel()
                if not isinstance(error, GeneratorExit):
                    try:
                        yield send
                    except GeneratorExit:
                        raise
                    except BaseException:
                        pass
                raise
            _core.let_go()  # what was sent already goes before the next one is made
            if index is None:
                break
            try:
                if failure is not None:
                    raise failure
                while at < index:
                    try:
                        pair = (yield Foreign(iterator.__anext__())) if asynchronous else next(iterator)
                    except (StopIteration, StopAsyncIteration):
                        raise ValueError(f"the iterator ended before tensor {stated[index].name!r}, which it announced"
                                         ) from None
                    at += 1
                    if pair[0] != stated[at].name:
                        raise ValueError(f"the iterator gave {pair[0]!r} where it announced {stated[at].name!r}")
                name, tensor = pair
                one = _tensors.described(name, tensor)
                number = _tensors.dtype_number(stated[index].dtype)
                when = _tensors.ready_after(_tensors.streams_of([one], after), (one.ordinal,))
                bridge.give(name, one, -1 if number == one.dtype else number, when)
                del pair, tensor, one, when
            except GeneratorExit:
                raise
            except BaseException as error:
                failure = error
                bridge.fail(words_of(error))
        try:
            report: SendReport = yield last(send)
        except TransferError as error:
            if failure is None:
                raise
            if isinstance(failure, Exception):
                raise error from failure
            raise failure from None  # KeyboardInterrupt, CancelledError: not the send's to swallow
        return report
