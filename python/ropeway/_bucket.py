"""Buckets that are taken by hand, and loaders that are given whole tensors from them."""
from __future__ import annotations

import inspect
import math
import sys
from types import TracebackType
from typing import Any, Callable, Dict, List, Optional, Tuple, Type

from . import _core, _tensors
from ._errors import ReleasedError
from ._reports import TensorInfo

Loader = Callable[[List[Tuple[str, Any]]], Any]
"""``load_weights`` as engines have it: takes a list of (name, tensor)."""

_U8 = _tensors.dtype_number("U8")
# What DLPack has a word for; the rest travels as bytes, and is viewed as what it is.
_DLPACK = frozenset(("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F16", "BF16", "F32", "F64", "C64"))


class _Exporter:
    """What numpy.from_dlpack and torch.from_dlpack ask: a piece as elements, or as bytes."""

    def __init__(self, piece: "Piece", dtype: int, shape: Tuple[int, ...]) -> None:
        self._piece = piece
        self._dtype = dtype
        self._shape = shape

    def __dlpack__(self, **_: Any) -> Any:  # the data is ready, and is never copied
        return self._piece._capsule(self._dtype, self._shape)

    def __dlpack_device__(self) -> Tuple[int, int]:
        return self._piece.__dlpack_device__()


class Piece:
    """A tensor, or a part of one, as it lies in a bucket: a read-only view of the sender's ring.

    `numpy`, `torch` and DLPack show its memory without copying it. They raise `ReleasedError` once the bucket was
    released. Arrays made before are counted: as long as one lives, its slot is not used again, so that it never shows
    other bytes; but the sender waits for it, so drop them soon.
    """

    def __init__(self, bucket: _core.Bucket, index: int, info: TensorInfo, place: Tuple[int, int, int, int]) -> None:
        self._bucket = bucket
        self._index = index
        self._info = info
        self._dtype = _tensors.dtype_number(info.dtype)
        self.tensor: int = place[0]
        """The position of the tensor in `Update.tensors`."""
        self.offset: int = place[1]
        """Of its first byte in the tensor's contiguous image."""
        self.nbytes: int = place[2]
        """How many bytes lie here."""
        self._ordinal = place[3]

    @property
    def name(self) -> str:
        """The tensor's."""
        return self._info.name

    @property
    def dtype(self) -> str:
        """The tensor's, in the spelling of safetensors."""
        return self._info.dtype

    @property
    def shape(self) -> Tuple[int, ...]:
        """The whole tensor's."""
        return self._info.shape

    @property
    def whole(self) -> bool:
        """Whether the tensor lies here from its first byte to its last."""
        return self.nbytes * 8 == math.prod(self.shape) * _tensors.BITS[self._dtype]

    def numpy(self) -> Any:
        """As a numpy array: the tensor, read-only, or its bytes if it is not whole. Host memory only."""
        import numpy

        if self._ordinal >= 0:
            raise TypeError(f"{self.name!r} lies on a CUDA device: take it as torch's")
        if self.whole and self.dtype in _DLPACK and self.dtype != "BF16":
            return numpy.from_dlpack(_Exporter(self, self._dtype, self.shape))
        array = numpy.from_dlpack(_Exporter(self, _U8, (self.nbytes,)))
        return array.view(_tensors.numpy_dtype(self._dtype)).reshape(self.shape) if self.whole else array

    def torch(self) -> Any:
        """As a torch tensor, on its device: the tensor, or its bytes if it is not whole. Not to be written to."""
        import torch

        if self.whole and self.dtype in _DLPACK:
            return torch.utils.dlpack.from_dlpack(self._capsule(self._dtype, self.shape))
        flat = torch.utils.dlpack.from_dlpack(self._capsule(_U8, (self.nbytes,)))
        return flat.view(_tensors.torch_dtype(self._dtype)).reshape(self.shape) if self.whole else flat

    def __dlpack__(self, **_: Any) -> Any:
        if self.whole and self.dtype in _DLPACK:
            return self._capsule(self._dtype, self.shape)
        return self._capsule(_U8, (self.nbytes,))

    def __dlpack_device__(self) -> Tuple[int, int]:
        return (1, 0) if self._ordinal < 0 else (2, self._ordinal)

    def _capsule(self, dtype: int, shape: Tuple[int, ...]) -> Any:
        capsule = self._bucket.capsule(self._index, dtype, shape)
        if capsule is None:
            raise ReleasedError(f"tensor {self.name!r}: its bucket was released; copy what is kept longer")
        return capsule


class Bucket:
    """A bucket to read from. Its slot stays taken until `release`; dropping it, or leaving its ``with`` block,
    releases it."""

    def __init__(self, core: _core.Bucket, infos: List[TensorInfo]) -> None:
        self._core = core
        self.pieces: List[Piece] = [Piece(core, index, infos[place[0]], place)
                                    for index, place in enumerate(core.pieces())]
        """What lies in it, in the order of the tensors."""

    @property
    def number(self) -> int:
        """Its place in the update, from 0."""
        return int(self._core.number)

    @property
    def released(self) -> bool:
        """Whether its pieces may not be looked at any more."""
        return bool(self._core.released)

    def release(self, after: Any = None) -> List[str]:
        """Ends the use of the pieces now, or after a CUDA stream or event (by default torch's current stream, if
        they lie on a device). Gives the names of tensors that arrays are left of: the slot is then held until the
        last of them is gone. Nothing happens the second time."""
        ordinals = {piece._ordinal for piece in self.pieces}
        left = self._core.release(_tensors.ready_after(after, ordinals))
        return [self.pieces[index].name for index in left]

    def __enter__(self) -> "Bucket":
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        self.release()


def copied(array: Any) -> Any:
    """The same in memory of its own."""
    return array.copy() if hasattr(array, "copy") else array.clone()


def run_loader(load_weights: Loader, tensors: List[Tuple[str, Any]]) -> None:
    """Calls a loader; raises TypeError if that has done nothing yet."""
    answer = load_weights(tensors)
    if inspect.isawaitable(answer):
        if inspect.iscoroutine(answer):
            answer.close()
        raise TypeError("the loader is asynchronous: it would run after the version was committed, when its tensors are "
                        "gone; give a plain function")


def array_kind(wanted: Optional[str]) -> str:
    """``numpy`` or ``torch``: what a loader gets, unless it was said."""
    if wanted is None:
        return "torch" if "torch" in sys.modules else "numpy"
    if wanted not in ("numpy", "torch"):
        raise ValueError(f"tensors can be given as 'numpy' or 'torch', not as {wanted!r}")
    return wanted


class Assembler:
    """Makes whole tensors of the pieces of buckets: a view where a tensor lies in one bucket, a buffer of its own where
    it spans several."""

    def __init__(self, infos: List[TensorInfo], kind: str, device: int = -1) -> None:
        self._infos = infos
        self._kind = kind
        self._ordinal = device
        self._parts: Dict[int, Tuple[Any, int]] = {}  # by tensor: its bytes, and how many have come
        self._held = 0
        self.most = 0
        """The most bytes that were held at once."""

    def whole(self, bucket: Bucket) -> List[Tuple[str, Any]]:
        """The tensors that are complete with this bucket, in order."""
        found = []
        for piece in bucket.pieces:
            if piece.whole:
                found.append((piece.name, getattr(piece, self._kind)()))
                continue
            size = math.prod(piece.shape) * _tensors.BITS[piece._dtype] // 8
            part, come = self._parts.pop(piece.tensor, (None, 0))
            if part is None:
                part = self._bytes(size, piece._ordinal)
                self._held += size
                self.most = max(self.most, self._held)
            part[piece.offset:piece.offset + piece.nbytes] = getattr(piece, self._kind)()
            come += piece.nbytes
            if come < size:
                self._parts[piece.tensor] = (part, come)
            else:
                self._held -= size
                found.append((piece.name, self._seen(part, piece._dtype, piece.shape)))
        return found

    def empty(self) -> List[Tuple[str, Any]]:
        """The tensors without elements, which no bucket carries."""
        return [(info.name, self._seen(self._bytes(0, self._ordinal), _tensors.dtype_number(info.dtype), info.shape))
                for info in self._infos if 0 in info.shape]

    def _bytes(self, size: int, ordinal: int) -> Any:
        if self._kind == "numpy":
            import numpy

            return numpy.empty(size, numpy.uint8)
        import torch

        return torch.empty(size, dtype=torch.uint8, device="cpu" if ordinal < 0 else f"cuda:{ordinal}")

    def _seen(self, flat: Any, dtype: int, shape: Tuple[int, ...]) -> Any:
        seen = _tensors.numpy_dtype(dtype) if self._kind == "numpy" else _tensors.torch_dtype(dtype)
        return flat.view(seen).reshape(shape)
