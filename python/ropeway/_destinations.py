"""Where a server wants an update's tensors to end up."""
from __future__ import annotations

from types import TracebackType
from typing import Any, Iterable, List, Mapping, Optional, Sequence, Set, Tuple, Type, Union

from . import _core, _tensors
from ._reports import WeightsStatus


class Destinations:
    """Memory for an update's tensors, or for parts of them, and what it holds now. Made once, used for every update:
    names are resolved once.

    A load writes in place. When it fails after the first write, everything that it would have written is *torn* until a
    later load commits it: check `torn` before serving. An update must send every tensor named here, and no other,
    unless `allow_unsent` and `allow_unplaced` lift that; every difference is reported before a byte moves
    (``destination_mismatch``).

    Args:
        tensors: a torch module (its state dict, but for ``_extra_state``, which has no memory of its own), a mapping, or
            (name, tensor) pairs, each for the whole tensor of that name; more can be added. Tensors are torch's, numpy's,
            or writable ones with ``__cuda_array_interface__`` or the buffer protocol. They are kept. Names for one memory
            (tied weights) may stand here, and need not all be sent: see `allow_tied`.

    Thread-safety: `torn`, `torn_tensors`, `version` and `status` may be asked from any thread; nothing may be added
    while a load runs.
    """

    def __init__(self, tensors: "Union[None, Mapping[str, Any], Iterable[Tuple[str, Any]], Any]" = None) -> None:
        self._core = _core.Destinations()
        self._devices: Set[int] = set()
        if tensors is not None:
            self.allow_tied()
            for name, tensor in _tensors.items(tensors, tied=True):
                self.add(name, tensor)

    def add(self, name: str, tensor: Any) -> "Destinations":
        """The whole tensor of that name, which must have this one's dtype and shape."""
        self._core.add(name, self._look(name, tensor))
        return self

    def add_part(self, name: str, tensor: Any, start: Sequence[int]) -> "Destinations":
        """The box of that tensor which starts at `start` (one number a dimension, in elements) and has this one's
        shape."""
        self._core.add_part(name, self._look(name, tensor), tuple(start))
        return self

    def add_shard(self, name: str, tensor: Any, dimension: int, rank: int, ranks: int) -> "Destinations":
        """The shard of `rank` of a tensor that is split evenly along `dimension` among `ranks` (tensor parallelism);
        this one has the shard's shape."""
        self._core.add_shard(name, self._look(name, tensor), dimension, rank, ranks)
        return self

    def allow_unsent(self, on: bool = True) -> "Destinations":
        """Destinations whose tensor is not sent stay as they are."""
        self._core.allow_unsent(on)
        return self

    def allow_unplaced(self, on: bool = True) -> "Destinations":
        """Tensors that are sent and have no destination are ignored."""
        self._core.allow_unplaced(on)
        return self

    def allow_tied(self, on: bool = True) -> "Destinations":
        """Several names may be for exactly the same memory (tied weights: one dtype, shape and strides). One of them must
        be sent; of those that are, the first that was added is copied, and the others only have to fit. Who sends different
        bytes under tied names is not found out. Set where tensors are given to the constructor."""
        self._core.allow_tied(on)
        return self

    def __len__(self) -> int:
        return len(self._core)

    @property
    def torn(self) -> bool:
        """Whether some destination holds parts of different versions, or of none."""
        return bool(self._core.torn)

    def torn_tensors(self) -> List[str]:
        """The names of the tensors of torn destinations."""
        return list(self._core.torn_tensors())

    @property
    def version(self) -> Optional[int]:
        """The version of the last load that committed; None before the first."""
        version: Optional[int] = self._core.version
        return version

    def status(self) -> WeightsStatus:
        """What they hold: which version, since when, from whom."""
        status: WeightsStatus = self._core.status()
        return status

    def _look(self, name: str, tensor: Any) -> _tensors.Described:
        found = _tensors.described(name, tensor, writable=True)
        self._devices.add(found.ordinal)
        return found


class Lease:
    """The right to read the set that was live when it was given: it stays as it is until the lease ends. A context
    manager; true if there is anything to read. Any thread."""

    def __init__(self, core: _core.Lease) -> None:
        self._core = core
        self._set = int(core.set)
        self._version = int(core.version)

    def __bool__(self) -> bool:
        return bool(self._core.held)

    @property
    def set(self) -> int:
        """Which set it is for: 0 for the first, 1 for the second."""
        return self._set

    @property
    def version(self) -> int:
        """The version that the set holds, whole."""
        return self._version

    def end(self) -> None:
        """Nothing of the set may be read any more. Nothing happens the second time."""
        self._core.end()

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        self.end()


class ShadowDestinations:
    """Two sets of destinations for one model: one is served, whole, under leases, while the next version arrives in the
    other.

    Args:
        first, second: the same places (names, dtypes, shapes, in the same order) in memory of their own. They belong to
            this object from then on.
        form: ``"swap"``: the sets change places at the commit, and readers find the weights at other addresses;
            ``"copy_at_commit"``: updates are copied into the first set at the commit, for readers that have addresses
            in them (CUDA graphs, compiled kernels).

    A set that readers still hold is not written: a load waits for their leases (`Receiver`'s ``lease_limit``), and
    fails with ``leased`` after that, having told the sender "not now". Thread-safety: any thread.
    """

    def __init__(self, first: Destinations, second: Destinations, form: str = "swap") -> None:
        if form not in ("swap", "copy_at_commit"):
            raise ValueError(f"no form is called {form!r}; there are swap and copy_at_commit")
        self._core = _core.ShadowDestinations(first._core, second._core, form == "swap")
        self._devices = first._devices | second._devices

    def lease(self) -> Lease:
        """The live set, to read from; false before the first commit, and while a commit copies."""
        return Lease(self._core.lease())

    @property
    def version(self) -> Optional[int]:
        """The live set's version; None before the first commit."""
        version: Optional[int] = self._core.version
        return version

    def status(self) -> WeightsStatus:
        """The live set's version, what is arriving, since when and from whom."""
        status: WeightsStatus = self._core.status()
        return status
