"""ropeway carries new model weights from a trainer to the inference servers on the same host.

    async with ropeway.Sender("/run/job/weights.sock") as sender:              # the trainer
        await sender.send_weights(version, model.named_parameters())

    async with ropeway.Receiver(name="server", device="cuda:0") as receiver:   # a server
        await receiver.connect("/run/job/weights.sock")
        async for update in receiver:
            await update.load_into(destinations)

Every operation is started by its call and can be awaited on an asyncio loop, or waited for with ``.wait()``.
"""
from __future__ import annotations

import atexit as _atexit

from ._bucket import Bucket, Loader, Piece
from ._capture import CapturedLoader, CapturedPlan
from ._destinations import Destinations, Lease, ShadowDestinations
from ._errors import ReleasedError, TransferError
from ._operation import Operation
from ._receiver import Receiver, Update
from ._reports import (ConnectedReceiver, LoadReport, ReceiverReport, ReceiverStatus, SendReport, TensorInfo,
                       WeightsStatus)
from ._sender import Held, Prepared, Sender, Sending, SharedMemory, Source, _open, gathered

__version__ = "0.1.0"

__all__ = [
    "Bucket", "CapturedLoader", "CapturedPlan", "ConnectedReceiver", "Destinations", "Held", "Lease",
    "LoadReport", "Loader", "Operation", "Piece", "Prepared", "Receiver", "ReceiverReport",
    "ReceiverStatus", "ReleasedError", "SendReport", "Sender", "Sending", "ShadowDestinations",
    "SharedMemory", "Source", "TensorInfo", "TransferError", "Update", "WeightsStatus", "gathered",
]


@_atexit.register
def _end() -> None:
    """The library's threads end before the interpreter does: what they would touch is torn down after it."""
    for one in list(_open):
        one._core.destroy()
