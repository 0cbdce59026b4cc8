"""verl's bucketed weight transfer through ropeway: `BucketedWeightSender` and `BucketedWeightReceiver`, with the arguments
and methods that verl's own have.

In verl's rollout, in the place of the import from ``bucketed_weight_transfer``:

    from ropeway.adapters.verl import BucketedWeightReceiver, BucketedWeightSender

What is different: a tensor may be larger than a bucket, the next bucket is packed while one is loaded, an error on
either side is an error on the other, and both end when the other dies. And all tensors that are sent exist at once: the
iterator is run to its end before the first of them goes, where verl's holds one of them beside its bucket. A trainer that
gathers whole tensors as it goes, and has no room for all of them, can't use this (`ropeway.Source` is for it). The socket
is where ``zmq_handle`` says, in a folder beside it (``ipc:///tmp/x.sock`` becomes ``/tmp/x.sock.ropeway/w.sock``), which
belongs to this user alone and goes with the sender. Nothing of verl is imported.
"""
from __future__ import annotations

import contextlib
import inspect
import os
from typing import Any, Callable, Dict, List, Optional, Tuple

from .._errors import words_of
from .._operation import Operation
from .._sender import Sender
from .._reports import SendReport
from ._server import Taker


def socket_path(zmq_handle: str) -> str:
    """Where sender and receiver of a handle meet."""
    kind, colon, place = zmq_handle.partition("://")
    if not colon or kind != "ipc" or not place.startswith("/"):
        raise ValueError(f"{zmq_handle!r} is no path of this host: ropeway connects processes of one host, and takes "
                         "handles like ipc:///tmp/NAME.sock")
    return os.path.join(place + ".ropeway", "w.sock")


class BucketedWeightSender:
    """Sends weights to the `BucketedWeightReceiver` of the same handle. Made anew for each update, or kept.

    Args:
        zmq_handle: as verl makes it.
        bucket_size_mb: of a bucket of the ring, in MiB; there are two.
        use_shm: sends through host memory also where a device's could be mapped.
        limit: how long a receiver may take to connect, in seconds.
    """

    def __init__(self, zmq_handle: str, bucket_size_mb: int = 512, use_shm: bool = False, limit: float = 600.0) -> None:
        self.zmq_handle = zmq_handle
        self.bucket_size_mb = bucket_size_mb
        self.use_shm = use_shm
        self._limit = limit
        self._version = 0
        self.report: Optional[SendReport] = None
        """Of the last send."""

    async def async_send_weights(self, weights: Any) -> None:
        """Sends (name, tensor) pairs, from an iterable or an async iterable, and returns when the receiver has them.

        They are run to their end first, and all kept until they were read. Raises TransferError, with the receiver's own
        words."""
        path = socket_path(self.zmq_handle)
        try:
            async with Sender(path, bucket_bytes=self.bucket_size_mb << 20, decide_limit=self._limit,
                              route="host" if self.use_shm else "automatic") as sender:
                await sender.wait_for_receivers(1, limit=self._limit)
                self._version += 1
                sending: Operation[SendReport] = sender.send_weights(self._version, weights)
                self.report = await sending
        finally:
            with contextlib.suppress(OSError):  # it is not empty where another listens
                os.rmdir(os.path.dirname(path))


class BucketedWeightReceiver:
    """Takes weights from the `BucketedWeightSender` of the same handle.

    Args:
        zmq_handle: as the sender's.
        device: where the tensors will lie, a torch.device.
        use_shm: for the signature's sake: the sender says which way they go.
        limit: how long the sender may take to appear, and to send, in seconds.
    """

    def __init__(self, zmq_handle: str, device: Any, use_shm: bool = False, limit: float = 600.0) -> None:
        self.zmq_handle = zmq_handle
        self.device = device
        self.use_shm = use_shm
        self._limit = limit

    def receive_weights(self, on_bucket_received: Callable[..., Any]) -> None:
        """Calls ``on_bucket_received(weights)``, or ``on_bucket_received(weights, is_last)`` if it takes two, for each
        bucket, and returns when all of them are loaded. `is_last` is true in the call that brings the last tensors.

        The tensors are views that end with the call, on `device` if the sender's memory could be reached from there; a
        callback that keeps one must clone it. What it raises is raised here, and at the sender in its words."""
        device = self.device
        knobs: Dict[str, Any] = {"name": "verl rollout", "connect_limit": self._limit}
        if getattr(device, "type", "cpu") == "cuda":
            index = device.index
            if index is None:
                import torch

                index = torch.cuda.current_device()
            knobs["device"] = f"cuda:{index}"
        taker = Taker(socket_path(self.zmq_handle), **knobs)
        two = _takes_two(on_bucket_received)
        left = 0

        def give(tensors: List[Tuple[str, Any]]) -> None:
            nonlocal left
            left -= len(tensors)
            moved = [(name, tensor.to(device)) for name, tensor in tensors]
            if two:
                on_bucket_received(moved, left == 0)
            else:
                on_bucket_received(moved)

        try:
            update = taker.next(None, self._limit)
            left = len(update.tensors)
            if left == 0:  # no bucket comes
                try:
                    give([])
                except BaseException as error:
                    update.refuse(words_of(error))
                    raise
            taker.load(update, give)
        finally:
            taker.close()


def _takes_two(call: Callable[..., Any]) -> bool:
    try:
        inspect.signature(call).bind([], True)
    except TypeError:
        return False
    except ValueError:  # of something compiled: nobody knows
        return False
    return True
