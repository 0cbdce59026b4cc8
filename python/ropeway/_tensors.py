"""How tensors of other libraries are looked at: a dtype, a shape, strides, an address, a device, and what keeps the
memory. Nothing is copied, and no library is imported that the caller has not imported already."""
from __future__ import annotations

import sys
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple, Union

from . import _core

NAMES: Tuple[str, ...] = tuple(name for name, _ in _core.dtypes)
"""The spellings of safetensors, in the order of the library's enumeration."""
BITS: Tuple[int, ...] = tuple(bits for _, bits in _core.dtypes)
_NUMBER: Dict[str, int] = {name: number for number, name in enumerate(NAMES)}

# How numpy, torch, ml_dtypes and people spell them.
_ALIASES: Dict[str, str] = {
    "bool": "BOOL", "boolean": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "uint32": "U32",
    "int32": "I32", "uint64": "U64", "int64": "I64", "float16": "F16", "half": "F16", "bfloat16": "BF16",
    "float32": "F32", "float": "F32", "float64": "F64", "double": "F64", "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float4_e2m1fn": "F4", "float4_e2m1fn_x2": "F4",
}
_TORCH: Dict[str, str] = {  # what torch.dtype objects are called, where it differs from the safetensors spelling
    number: name for name, number in {
        "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "uint32": "U32", "int32": "I32",
        "uint64": "U64", "int64": "I64", "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64",
        "complex64": "C64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
        "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ",
    }.items()
}
_FLOATS = frozenset(("F16", "BF16", "F32", "F64"))

Cast = Union[None, str, Any, Callable[[str, str], Any]]
"""What receivers are to see: a dtype for every floating-point tensor, or a function of (name, dtype) that gives one or
None. Dtypes may be torch's, numpy's, or words."""


class Described(NamedTuple):
    """What the library's core is told of one tensor."""

    dtype: int
    shape: Tuple[int, ...]
    strides: Optional[Tuple[int, ...]]  # in elements; None: row-major
    address: int
    ordinal: int  # of a CUDA device; -1: host
    owner: object  # keeps the memory
    stream: Optional[int] = None  # where a producer that is not torch says its work is queued


def dtype_name(what: Any) -> str:
    """The safetensors spelling of a dtype of torch, numpy or ml_dtypes, or of a word for one.

    Raises TypeError for one that ropeway does not carry."""
    word = what if isinstance(what, str) else str(getattr(what, "name", None) or what)
    if not isinstance(what, str) and isinstance(what, type):  # numpy.float32 itself
        word = what.__name__
    word = word.rsplit(".", 1)[-1]
    if word.upper() in _NUMBER:
        return word.upper()
    found = _ALIASES.get(word.lower())
    if found is None:
        raise TypeError(f"ropeway carries no tensors of dtype {what}; it knows {', '.join(NAMES)}")
    return found


def dtype_number(what: Any) -> int:
    return _NUMBER[dtype_name(what)]


def torch_dtype(number: int) -> Any:
    """torch's own, for a number of ours; TypeError if this torch has none."""
    import torch

    found = getattr(torch, _TORCH.get(NAMES[number], "no such"), None)
    if found is None:
        raise TypeError(f"torch {torch.__version__} has no dtype for {NAMES[number]}")
    return found


_NUMPY: Dict[str, str] = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "F32": "float32", "F64": "float64", "C64": "complex64",
}
_ML_DTYPES: Dict[str, str] = {
    "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}


def numpy_dtype(number: int) -> Any:
    """numpy's, or ml_dtypes' for what numpy itself lacks."""
    import numpy

    name = NAMES[number]
    if name in _NUMPY:
        return numpy.dtype(_NUMPY[name])
    if name in _ML_DTYPES:
        try:
            import ml_dtypes
        except ImportError:
            raise TypeError(f"numpy has no dtype for {name}: install ml_dtypes, or take the tensors as torch's") from None
        return numpy.dtype(getattr(ml_dtypes, _ML_DTYPES[name]))
    raise TypeError(f"numpy has no dtype for {name}")


def _row_major(shape: Tuple[int, ...]) -> Tuple[int, ...]:
    strides: List[int] = []
    step = 1
    for extent in reversed(shape):
        strides.append(step)
        step *= max(extent, 1)
    return tuple(reversed(strides))


def _strides_or_none(shape: Tuple[int, ...], strides: Tuple[int, ...]) -> Optional[Tuple[int, ...]]:
    """None for what is row-major; a dimension of one element may have any stride."""
    plain = _row_major(shape)
    if all(extent <= 1 or stride == usual for extent, stride, usual in zip(shape, strides, plain)):
        return None
    return strides


def _of_torch(tensor: Any, torch: Any) -> Described:
    if hasattr(tensor, "full_tensor"):
        raise TypeError("a DTensor holds only a shard; send it through ropeway.gathered(...), which makes it whole when "
                        "its turn comes")
    if tensor.layout is not torch.strided:
        raise TypeError(f"a tensor of layout {tensor.layout} has no memory of its own shape; make it dense first")
    if tensor.is_conj() or tensor.is_neg():
        raise TypeError("its values are conjugated or negated only when they are read: call resolve_conj().resolve_neg()")
    kind = tensor.device.type
    if kind == "cpu":
        ordinal = -1
    elif kind == "cuda":
        ordinal = tensor.device.index
    else:
        raise TypeError(f"its memory lies on {tensor.device}; ropeway reads and writes host and CUDA memory")
    shape = tuple(tensor.shape)
    strides = None if tensor.is_contiguous() else _strides_or_none(shape, tensor.stride())
    # An alias keeps the storage, also when a parameter is given other memory meanwhile (`parameter.data = ...`).
    return Described(dtype_number(tensor.dtype), shape, strides, tensor.data_ptr(), ordinal, tensor.detach())


def _of_numpy(array: Any, writable: bool) -> Described:
    if writable and not array.flags.writeable:
        raise TypeError("this array is read-only")
    if not array.dtype.isnative:
        raise TypeError(f"its elements ({array.dtype}) are not in this machine's byte order")
    size = array.dtype.itemsize
    if any(stride % size for stride in array.strides):
        raise TypeError("its strides are no whole numbers of elements")
    strides = None if array.flags.c_contiguous else _strides_or_none(
        array.shape, tuple(stride // size for stride in array.strides))
    return Described(dtype_number(array.dtype), array.shape, strides, array.ctypes.data, -1, array)


def _of_cuda_array(tensor: Any, writable: bool) -> Described:
    shown = tensor.__cuda_array_interface__
    address, read_only = shown["data"]
    if writable and read_only:
        raise TypeError("this array is read-only")
    if shown.get("mask") is not None:
        raise TypeError("a masked array can't be carried")
    typestr = shown["typestr"]
    number = {"f2": "F16", "f4": "F32", "f8": "F64", "c8": "C64", "b1": "BOOL"}.get(typestr[1:])
    if number is None and typestr[1] in "iu":
        number = typestr[1].upper() + str(8 * int(typestr[2:]))
    if number not in _NUMBER or typestr[0] == ">":
        raise TypeError(f"ropeway carries no elements of {typestr}")
    size = int(typestr[2:])
    shape = tuple(shown["shape"])
    strides = shown.get("strides")
    if strides is not None:
        if any(stride % size for stride in strides):
            raise TypeError("its strides are no whole numbers of elements")
        strides = _strides_or_none(shape, tuple(stride // size for stride in strides))
    ordinal = _ordinal_of(tensor)
    return Described(_NUMBER[number], shape, strides, address, ordinal, tensor, shown.get("stream"))


def _ordinal_of(tensor: Any) -> int:
    where = getattr(tensor, "__dlpack_device__", None)
    if where is not None:
        return int(where()[1])
    device = getattr(tensor, "device", None)
    ordinal = getattr(device, "id", None)
    if ordinal is None:
        raise TypeError(f"{type(tensor).__name__} does not say on which CUDA device it lies: neither by __dlpack_device__ "
                        "nor by device.id")
    return int(ordinal)


def _of_dlpack(tensor: Any) -> Described:
    kind, ordinal = tensor.__dlpack_device__()
    if int(kind) in (2, 13):
        # The producer lets the legacy default stream wait for its work, and the library waits for that stream.
        return Described(*_core.from_dlpack(tensor.__dlpack__(stream=1)))._replace(stream=1)
    return Described(*_core.from_dlpack(tensor.__dlpack__()))


def _of_buffer(tensor: Any, writable: bool) -> Described:
    view = memoryview(tensor)
    if writable and view.readonly:
        raise TypeError("this buffer is read-only")
    name = {"?": "BOOL", "B": "U8", "b": "I8", "H": "U16", "h": "I16", "I": "U32", "i": "I32", "L": "U64", "l": "I64",
            "Q": "U64", "q": "I64", "e": "F16", "f": "F32", "d": "F64", "c": "U8"}.get(view.format.lstrip("@="))
    if name is None:
        raise TypeError(f"ropeway carries no elements of format {view.format!r}")
    if not view.c_contiguous:
        raise TypeError("a strided buffer needs to be a numpy array")
    return Described(_NUMBER[name], tuple(view.shape or ()), None, _core.buffer_address(view), -1, view)


def describe(tensor: Any, writable: bool = False) -> Described:
    """Looks at a tensor. Raises TypeError, saying what to do, for what can't be carried, or not written to."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(tensor, torch.Tensor):
        return _of_torch(tensor, torch)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(tensor, (numpy.ndarray, numpy.generic)):
        if isinstance(tensor, numpy.generic):  # a scalar: a value, not memory
            if writable:
                raise TypeError("a numpy scalar is a value: use an array of no dimension, numpy.zeros(())")
            tensor = numpy.asarray(tensor)
        return _of_numpy(tensor, writable)
    if hasattr(tensor, "__cuda_array_interface__"):
        return _of_cuda_array(tensor, writable)
    if hasattr(tensor, "__dlpack__"):
        if writable:
            raise TypeError(f"whether a {type(tensor).__name__} may be written to can't be seen: give a torch tensor, a "
                            "numpy array, or something with __cuda_array_interface__")
        return _of_dlpack(tensor)
    try:
        return _of_buffer(tensor, writable)
    except TypeError as error:
        if "bytes-like" not in str(error):
            raise
    raise TypeError(f"{type(tensor).__name__} is no tensor: it has neither __dlpack__, __cuda_array_interface__ nor the "
                    "buffer protocol")


def described(name: str, tensor: Any, writable: bool = False) -> Described:
    """The same, with the name in the error."""
    try:
        return describe(tensor, writable)
    except TypeError as error:
        if name.rpartition(".")[2] == EXTRA_STATE:
            raise TypeError(f"{name!r} is a module's extra state, and no tensor ({error}): leave it out, or give the module "
                            "itself, of which it is left out") from None
        raise TypeError(f"tensor {name!r}: {error}") from None


EXTRA_STATE = "_extra_state"
"""How torch calls what a module adds to its state dict beside tensors of its own."""


def items(tensors: Any, tied: bool = False) -> Iterator[Tuple[str, Any]]:
    """The (name, tensor) pairs of a torch module, a mapping, or an iterable of pairs.

    Of a module: its state dict without extra state, in which a tensor that has several names (tied weights) stands under
    the first, or, if `tied`, under each."""
    if hasattr(tensors, "state_dict") and hasattr(tensors, "named_parameters"):
        seen: Dict[int, Any] = {}
        for name, tensor in tensors.state_dict(keep_vars=True).items():
            if name.rpartition(".")[2] != EXTRA_STATE and (tied or id(tensor) not in seen):
                seen[id(tensor)] = tensor
                yield name, tensor
        return
    for pair in tensors.items() if hasattr(tensors, "items") else tensors:
        yield _pair(pair)


def _pair(pair: Any) -> Tuple[str, Any]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[0], str):
        raise TypeError("tensors are a torch module, a mapping, or (name, tensor) pairs; this is "
                        f"{type(pair).__name__}: {str(pair)[:80]}")
    return pair[0], pair[1]


def pairs_of(tensors: Any) -> List[Any]:
    """What `items` gives, as a list in which not every pair was looked at yet."""
    if hasattr(tensors, "state_dict") and hasattr(tensors, "named_parameters"):
        return list(items(tensors))
    return list(tensors.items() if hasattr(tensors, "items") else tensors)


def core_types() -> Tuple[Any, ...]:
    """The types of tensors that the core looks at by itself, beside whatever has a buffer."""
    torch = sys.modules.get("torch")
    return (torch.Tensor, torch.nn.Parameter) if torch is not None else ()


def plain_wire(cast: Cast) -> Optional[int]:
    """The dtype that every floating-point tensor is sent as, -1 for its own, or None if each is asked about."""
    if cast is None:
        return -1
    return None if callable(cast) and not isinstance(cast, type) else dtype_number(cast)


def wire_number(cast: Cast, name: str, dtype: int) -> int:
    """The number of the dtype that receivers see, or -1: as it is."""
    if cast is None:
        return -1
    if callable(cast) and not isinstance(cast, type):
        wanted = cast(name, NAMES[dtype])
        if wanted is None:
            return -1
    elif NAMES[dtype] in _FLOATS:
        wanted = cast
    else:
        return -1
    number = dtype_number(wanted)
    return -1 if number == dtype else number


def sources(pairs: List[Any], cast: Cast) -> Tuple[_core.Sources, List[Described]]:
    """Looks at all of them; also gives those that the core could not look at by itself."""
    found = _core.Sources()
    looked: List[Described] = []
    # What the core knows it looks at without a call into Python for each.
    types, wire = core_types(), plain_wire(cast)
    at = 0
    while at < len(pairs):
        if wire is not None:
            at = found.take(pairs, at, types, wire)
            if at == len(pairs):
                break
        name, tensor = _pair(pairs[at])
        one = described(name, tensor)
        found.add(name, one, wire_number(cast, name, one.dtype))
        looked.append(one)
        at += 1
    return found, looked


When = Optional[Tuple[bool, int, int, object]]
"""(whether it is an event, its handle, its device, what keeps it), or None: nothing to wait for."""


def ready_after(after: Any, devices: Iterable[int]) -> When:
    """What to wait for before memory on `devices` (ordinals; -1 is the host) is touched.

    `after` is what the caller said: None for torch's current streams, a stream or an event."""
    found = sorted({ordinal for ordinal in devices if ordinal >= 0})
    if after is not None:
        return _explicit(after, found)
    if not found:
        return None
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    if all(_core.is_idle(_current_stream(torch, one), one) for one in found):
        return None  # an event would have to wait until the GPU turns to this process
    first = torch.cuda.current_stream(found[0])
    for other in found[1:]:
        first.wait_stream(torch.cuda.current_stream(other))
    # An event and not the stream: work that is queued behind it meanwhile, or a capture, is not waited for.
    with torch.cuda.device(found[0]):
        event = torch.cuda.Event()
        event.record(first)
    return True, event.cuda_event, found[0], event


def _current_stream(torch: Any, ordinal: int) -> int:
    # What torch's own compiler calls: no Stream is made, which takes ten times as long.
    quick = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    return int(quick(ordinal) if quick is not None else torch.cuda.current_stream(ordinal).cuda_stream)


def _explicit(after: Any, found: List[int]) -> When:
    if hasattr(after, "cuda_event"):
        if not after.cuda_event:
            raise ValueError("this event was never recorded")
        return True, int(after.cuda_event), _index(after, found), after
    if hasattr(after, "cuda_stream"):
        return False, int(after.cuda_stream), _index(after, found), after
    if hasattr(after, "__cuda_stream__"):
        shown = after.__cuda_stream__
        return False, int((shown() if callable(shown) else shown)[1]), _index(after, found), after
    if isinstance(after, int):
        return False, after, found[0] if found else 0, None
    raise TypeError(f"`after` is a CUDA stream or event, or a stream's handle; this is {type(after).__name__}")


def _index(after: Any, found: List[int]) -> int:
    device = getattr(after, "device", None)
    index = getattr(device, "index", None)
    if index is None:
        index = getattr(after, "device_index", None)
    if index is None:
        index = found[0] if found else 0
    return int(index)


def streams_of(all_described: Iterable[Described], after: Any) -> Any:
    """`after`, or the one stream that producers which are not torch have named."""
    if after is not None:
        return after
    named = {one.stream for one in all_described if one.stream is not None}
    if not named:
        return None
    if len(named) > 1:
        raise TypeError("these tensors were made on different CUDA streams: say with `after=` what to wait for")
    stream = named.pop()
    return 0 if stream == 1 else stream  # 1 is the interface's word for the legacy default stream
