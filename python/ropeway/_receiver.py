"""The server's side."""
from __future__ import annotations

import dataclasses
import gc
import os
import traceback
from types import TracebackType
from typing import Any, Dict, Generator, Iterable, List, Mapping, Optional, Sequence, Tuple, Type, Union

from . import _core, _tensors
from ._bucket import Assembler, Bucket, Loader, array_kind, copied, run_loader
from ._destinations import Destinations, ShadowDestinations
from ._errors import ReleasedError, TransferError, words_of
from ._operation import Operation, Ready, Single, Steps, last
from ._reports import LoadReport, ReceiverStatus, TensorInfo
from ._sender import _open

Into = Union[Destinations, ShadowDestinations, Mapping[str, Any], Iterable[Tuple[str, Any]], Any]
"""What an update can be loaded into: see `Update.load_into`."""


class Update:
    """An update that was announced. Take it with `load_into` or `load_with`, or bucket by bucket with `next_bucket` and
    `commit`; or say no with `refuse` or `not_now`. Dropping it unanswered refuses it; dropping it half-way aborts it.
    Members may be called from any thread, one operation at a time (``busy``)."""

    def __init__(self, core: _core.Update, device: int, receiver: object) -> None:
        self._core = core
        self._receiver = receiver  # which lives as long
        self._device = device
        self.version: int = core.version
        """As the sender numbered it. A sender that was started anew may begin again at any number."""
        self.total_bytes: int = core.total_bytes
        """Of all tensors, counted once."""
        self.buckets: int = core.buckets
        """How many will come."""
        self.layout: bytes = core.layout
        """A hash of `tensors`, in order, and of how they lie in buckets: what was worked out for an update of this layout
        holds for every other of it."""
        self._infos: Optional[List[TensorInfo]] = None

    @property
    def tensors(self) -> List[TensorInfo]:
        """The tensors that will arrive, in order."""
        if self._infos is None:
            self._infos = [TensorInfo(name, _tensors.NAMES[dtype], shape) for name, dtype, shape in self._core.tensors()]
        return self._infos

    def load_into(self, into: Into, *, after: Any = None) -> Operation[LoadReport]:
        """Accepts, copies every tensor into its destination, and commits. Ends when the sender has been told; what is
        launched then, on any stream, sees the new bytes.

        Args:
            into: `Destinations` or `ShadowDestinations`, made once; or what `Destinations` takes (a torch module, a mapping,
                pairs), which is then looked at for this update alone, and does not remember being torn.
            after: a CUDA stream or event before which nothing is written: by default torch's current streams, so that
                what is queued there still reads the old bytes.

        Raises TransferError: ``destination_mismatch`` (the update is refused, nothing was written), ``peer_aborted``,
        ``peer_gone``, ``peer_silent``, ``protocol_error``, ``device_failed``, ``busy``, ``leased``. After any but the
        first, ``busy`` and ``leased``, destinations are torn (a live shadow set never is). Cancellation aborts the
        update for this receiver, and ends when nothing writes any more; the session stays.
        """
        into = _looked_at(into)
        return Single(self._core.load_into(into._core, _tensors.ready_after(after, into._devices)), of=self)

    def load_with(self, load_weights: Loader, *, tensors: Optional[str] = None,
                  copy: bool = False) -> Operation[LoadReport]:
        """Gives a loader, as engines have it, the tensors of each bucket, and commits.

        Args:
            load_weights: is called with a list of (name, tensor) for each bucket, on the thread that waits for this
                operation. The tensors are views of the sender's ring, read-only, and end with the call; CUDA work that it
                queues on torch's current stream is waited for. A loader that keeps one (without copying it) fails the
                update with `ReleasedError`, which names it; the kept tensor stays valid, and its slot taken.
            tensors: ``"torch"`` or ``"numpy"``; by default torch's, if it is imported.
            copy: gives it copies, which it may change and keep. Needed for loaders that work in place on what they are
                given: torch knows no read-only tensors, and to write to a view ends the process (host memory) or breaks the
                CUDA context.

        A tensor that spans buckets is put together in memory of its own first (`LoadReport.assembled` says how much).
        Raises what `load_weights` raises, whose words stand in the sender's report; else as `load_into`.
        """
        return Steps(self._load_with(load_weights, array_kind(tensors), copy))

    def next_bucket(self) -> Operation[Optional[Bucket]]:
        """Accepts at the first call; then the next bucket, in order, or None after the last. Fails with
        ``slots_held`` at once when every slot is held by buckets that were not released."""
        return Single(self._core.next_bucket(), lambda core: None if core is None else Bucket(core, self.tensors), of=self)

    def commit(self) -> Operation[LoadReport]:
        """Says that everything of the update is in place; ends when the sender agrees and was told. Every bucket must
        have been taken and released (``invalid_argument``)."""
        return Single(self._core.commit(), of=self)

    def refuse(self, why: str) -> None:
        """Says no, in words that stand in the sender's report. After acceptance: gives the update up."""
        self._core.refuse(why)

    def not_now(self, retry: float, why: str) -> None:
        """Says that another time is better, in `retry` seconds perhaps. Before acceptance only."""
        self._core.not_now(retry, why)

    def _load_with(self, load_weights: Loader, kind: str, copy: bool) -> "Generator[Operation[Any], Any, LoadReport]":
        assembler = Assembler(self.tensors, kind, self._device)
        try:
            while True:
                bucket: Optional[Bucket] = yield self.next_bucket()
                if bucket is None:
                    break
                try:
                    loaded: Optional[List[Tuple[str, Any]]] = assembler.whole(bucket)
                    if loaded:
                        if copy:
                            loaded = [(name, copied(tensor)) for name, tensor in loaded]
                        run_loader(load_weights, loaded)
                    loaded = None
                except BaseException as error:
                    loaded = None
                    if bucket.release():
                        # The frames that the error came through still have the views, and with them the slot.
                        traceback.clear_frames(error.__traceback__)
                    raise
                left = bucket.release()
                if left:
                    gc.collect()  # a cycle is no reason to fail
                    left = bucket.release()
                if left:
                    raise ReleasedError(f"the loader kept {_listed(left)} beyond its call without copying; the views that "
                                        "it is given end with the call, so keep `tensor.clone()` or `array.copy()`")
            empty = assembler.empty()
            if empty:
                run_loader(load_weights, empty)
            report: LoadReport = yield last(self.commit())
        except GeneratorExit:
            raise
        except BaseException as error:
            if isinstance(error, TransferError) and error.code == "busy":
                raise  # somebody else loads it
            self.refuse(words_of(error))
            raise
        return dataclasses.replace(report, assembled=assembler.most) if assembler.most else report


def _looked_at(into: Into) -> Union[Destinations, ShadowDestinations]:
    return into if isinstance(into, (Destinations, ShadowDestinations)) else Destinations(into)


def _listed(names: List[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


class Receiver:
    """Takes versions from the sender on this host. ``async for update in receiver`` (or ``for``, which blocks) gives
    updates until the sender says goodbye.

    Args:
        name: how this receiver is called in the sender's reports.
        device: where updates will be loaded: ``"host"`` (or ``"cpu"``) or ``"cuda:N"``.
        group, group_size: the receivers that must all hold the same version (tensor-parallel ranks).
        connect_limit: how long `connect` waits for a sender to listen, in seconds (10).
        handshake_limit, silence_limit, lease_limit, close_limit: seconds; see ``receiver_options`` in options.hpp.
        route: which ways updates may come: ``automatic``, ``mapped``, ``staged`` or ``host``.
        idle_mapping_limit: seconds for which what no update uses of the sender's memory stays mapped (600);
            ``math.inf`` keeps it.
        most_blocks, bytes_per_second: how much of the device and its memory a mapped update may take; 0 for no limit.
        demand_digests: refuses updates that carry none (``digest_missing``); those that do are always compared.
        max_manifest_bytes: the largest list of tensors that is read.
        allowed_users: user numbers, beside our own, whose sender is trusted.
        allow_shared_directory: accepts a socket in a directory that others may write to: for tests only.

    Thread-safety and fork: as for `Sender`. After the session has ended, `connect` again on the same object. End it with
    `close`, or as a context manager.
    """

    def __init__(self, *, name: Optional[str] = None, device: Optional[Any] = None, group: Optional[str] = None,
                 group_size: Optional[int] = None, connect_limit: Optional[float] = None,
                 handshake_limit: Optional[float] = None, silence_limit: Optional[float] = None,
                 lease_limit: Optional[float] = None, close_limit: Optional[float] = None, route: Optional[str] = None,
                 idle_mapping_limit: Optional[float] = None, most_blocks: Optional[int] = None, bytes_per_second: Optional[int] = None,
                 demand_digests: Optional[bool] = None, max_manifest_bytes: Optional[int] = None,
                 allowed_users: Optional[Sequence[int]] = None,
                 allow_shared_directory: Optional[bool] = None) -> None:
        word = None if device is None else str(device)
        knobs: Dict[str, Any] = {
            "name": name, "device": word, "group": group, "group_size": group_size, "connect_limit": connect_limit,
            "handshake_limit": handshake_limit, "silence_limit": silence_limit, "lease_limit": lease_limit,
            "close_limit": close_limit, "route": route, "idle_mapping_limit": idle_mapping_limit,
            "most_blocks": most_blocks, "bytes_per_second": bytes_per_second,
            "demand_digests": demand_digests, "max_manifest_bytes": max_manifest_bytes, "allowed_users": allowed_users,
            "allow_shared_directory": allow_shared_directory,
        }
        self._core = _core.Receiver({knob: value for knob, value in knobs.items() if value is not None})
        self._device = int(word.partition(":")[2] or 0) if word is not None and word.startswith("cuda") else -1
        self._unclaimed: List[Optional[Update]] = []  # came just as the waiting for it was cancelled
        _open.add(self)

    def connect(self, path: "Union[str, os.PathLike[str]]") -> Operation[None]:
        """Connects to the sender at `path`, waiting for it to appear until the connect limit.

        Raises TransferError: ``connect_timeout``, ``bad_path``, ``not_permitted``, ``peer_refused``, ``version_mismatch``,
        ``handshake_timeout``, ``peer_gone``, ``no_device``, ``busy`` (a session exists)."""
        self._unclaimed.clear()
        return Single(self._core.connect(os.fspath(path)), of=self)

    def next_update(self) -> Operation[Optional[Update]]:
        """Waits for the next update, without limit; None when the sender has closed gracefully. Raises TransferError:
        ``not_open``, ``busy``, and why the session ended. Cancelling stops this wait only, and loses no update."""
        if self._unclaimed:
            return Ready(self._unclaimed.pop(0))
        return Single(self._core.next_update(), lambda core: None if core is None else Update(core, self._device, self),
                      self._unclaimed.append, self)

    def load_next(self, into: Into, *, after: Any = None) -> Operation[Optional[LoadReport]]:
        """Waits for the next update, without limit, and loads it as soon as it is announced, with no turn through Python
        in between: a few tenths of a millisecond less than `next_update` and `Update.load_into`, for servers that take
        every update as it comes. None when the sender has closed gracefully.

        From this call until it has ended, `into` may be written to: nobody may read plain destinations meanwhile, while
        `ShadowDestinations` may be read under a lease at any time. `after` is what it is for `Update.load_into`, as of
        this call. Raises as `next_update` and `Update.load_into` do: an update that does not fit is refused, and ends
        this operation. Cancelling stops the waiting, or gives the update up that has come.
        """
        into = _looked_at(into)
        if self._unclaimed:
            update = self._unclaimed[0]
            loading: Operation[Any] = Ready(None) if update is None else update.load_into(into, after=after)
            del self._unclaimed[0]
            return loading
        return Single(self._core.load_next(into._core, _tensors.ready_after(after, into._devices)), of=self)

    def __aiter__(self) -> "Receiver":
        return self

    async def __anext__(self) -> Update:
        update = await self.next_update()
        if update is None:
            raise StopAsyncIteration
        return update

    def __iter__(self) -> "Receiver":
        return self

    def __next__(self) -> Update:
        update = self.next_update().wait()
        if update is None:
            raise StopIteration
        return update

    @property
    def version(self) -> Optional[int]:
        """The version that this receiver committed last, in any session."""
        version: Optional[int] = self._core.version
        return version

    def status(self) -> ReceiverStatus:
        """Where the session is, since when, and with whom."""
        status: ReceiverStatus = self._core.status()
        return status

    def close(self) -> Operation[None]:
        """Says goodbye; a running update is given up. No error, also when it is closed already."""
        return Steps(self._close())

    def _close(self) -> "Generator[Operation[Any], Any, None]":
        self._unclaimed.clear()
        if self._core.is_open:
            try:
                yield Single(self._core.close())
            finally:
                self._core.destroy()

    def __enter__(self) -> "Receiver":
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        self.close().wait()

    async def __aenter__(self) -> "Receiver":
        return self

    async def __aexit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException],
                        trace: Optional[TracebackType]) -> None:
        await self.close()
