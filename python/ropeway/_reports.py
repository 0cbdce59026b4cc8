"""What came of an update, and what a server holds: plain values, safe to keep, compare and pickle."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, Optional, Tuple


@dataclass(frozen=True)
class TensorInfo:
    """A tensor without its bytes."""

    name: str
    dtype: str
    """Of an element, in the spelling of safetensors: ``"BF16"``, ``"F32"``, ``"BOOL"``, ..."""
    shape: Tuple[int, ...]
    """Outermost dimension first; empty for a scalar."""


@dataclass(frozen=True)
class ReceiverReport:
    """One receiver's part of a `SendReport`."""

    name: str
    """As it called itself, with its process number."""
    outcome: str
    """``committed``, ``refused``, ``skipped``, ``failed``, ``dropped`` or ``unconfirmed``."""
    code: Optional[str]
    """Why it is not ``committed``, as `TransferError.code`; else None."""
    text: str
    """The same in words, the receiver's own where it said any; else empty."""
    route: str
    """How its bytes went: ``mapped``, ``staged`` or ``host``."""
    route_reason: str
    """Why that way and no faster one, in words; empty if none is faster."""
    copied: int
    """Bytes that it copied, as its own `LoadReport` has them: a shard counts for itself. 0 if it never had all."""
    after: float
    """Seconds from the call until this was known."""
    stages: Dict[str, float] = field(default_factory=dict)
    """What that time went into, in seconds: ``announce``, ``load``, ``wait``, ``commit``."""


@dataclass(frozen=True)
class SendReport:
    """What a send gives; one that failed has it in `TransferError.report`."""

    version: int
    bytes: int
    """Of all tensors, counted once."""
    tensors: int
    buckets: int
    """How many slots' worth they fill."""
    total: float
    """Seconds from the call until every outcome was known."""
    source_free: float
    """Seconds from the call until the tensors' memory was no longer read; 0 if never."""
    stages: Dict[str, float]
    """What this side's time went into, in seconds. Stages overlap, so they need not add up."""
    receivers: Tuple[ReceiverReport, ...]
    """One for each that was connected when the send began."""
    digest: Optional[str] = None
    """Of all tensors as they are delivered, 32 hexadecimal digits; None without digests."""

    def count(self, outcome: str) -> int:
        """How many receivers ended so."""
        return sum(one.outcome == outcome for one in self.receivers)


@dataclass(frozen=True)
class LoadReport:
    """What loading an update gives."""

    version: int
    """Which is held now."""
    bytes: int
    """Of all tensors of the update."""
    tensors: int
    buckets: int
    """How many came through the ring."""
    copied: int
    """Bytes written to destinations, or lying in buckets that were taken by hand."""
    total: float
    """Seconds from the acceptance until the commit."""
    stages: Dict[str, float]
    route: str
    """``mapped``, ``staged`` or ``host``."""
    route_reason: str
    """Why that way and no faster one, as the sender says; empty if none is faster."""
    digest: Optional[str] = None
    """The sender's, with which all that was taken here agrees; None without digests."""
    assembled: int = 0
    """`Update.load_with`: the most bytes that were held at once to put tensors together that span buckets."""
    by_tensor: Tuple[str, ...] = ()
    """`CapturedLoader.load`: the tensors that the loader was given itself, because they can't be replayed."""


@dataclass(frozen=True)
class WeightsStatus:
    """What memory that takes weights holds."""

    holding: str
    """``nothing``, ``committed``, ``loading`` or ``torn``."""
    version: Optional[int]
    """Committed last; partly overwritten while ``holding`` is ``loading`` or ``torn``."""
    arriving: Optional[int]
    """What is being written now, or was when it failed."""
    since: float
    """When that began, in seconds since the epoch."""
    sender: str
    """Who sent it."""

    @property
    def whole(self) -> bool:
        """Whether the memory may be read as one version."""
        return self.holding == "committed"


@dataclass(frozen=True)
class ReceiverStatus:
    """Where a receiver's session is."""

    phase: str
    """``closed``, ``connecting``, ``idle``, ``offered``, ``loading`` or ``committing``."""
    version: Optional[int]
    """Committed last, in any session."""
    arriving: Optional[int]
    since: float
    """When the phase began, in seconds since the epoch."""
    sender: str
    """Whom the session is, or last was, with."""
    error: str
    """Why the last session ended, in words; empty while there is one."""


@dataclass(frozen=True)
class ConnectedReceiver:
    """What `Sender.receivers` tells of one of them."""

    name: str
    version: Optional[int]
    """Which version of this sender it holds, if any."""
