"""An engine's own loader, run once on tensors that record where each byte lands, and then replayed."""
from __future__ import annotations

import dataclasses
import gc
import math
from typing import Any, Dict, Generator, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

from . import _boxes, _tensors
from ._bucket import Loader, run_loader
from ._destinations import Destinations
from ._errors import TransferError
from ._operation import Operation, Steps, last
from ._receiver import Update
from ._reports import LoadReport, TensorInfo


class NotCaptured(Exception):
    """What a loader did with a tensor can't be replayed."""


@dataclasses.dataclass(frozen=True)
class CapturedPlan:
    """What came of running a loader on tensors that record."""

    replayed: Tuple[str, ...]
    """Tensors whose bytes are copied straight to where the loader put them."""
    converted: Tuple[str, ...]
    """Those that the loader converts to another dtype: they land beside, and torch converts them from there."""
    by_tensor: Mapping[str, str]
    """Those that the loader itself is given, each time, and why."""
    unused: Tuple[str, ...]
    """Those that the loader looked at and took nothing of."""
    extra_bytes: int
    """Memory beside the model's, for what is not copied straight to its place."""


class _Write(NamedTuple):
    """What a loader wrote into a tensor of the model: elements of sources, or one value everywhere."""

    into: Any
    copies: List[Tuple[str, _boxes.Copy]]
    convert: bool
    value: Any = None


class _Made(NamedTuple):
    """A tensor that a loader made of others: by a clone, a cast or a concatenation."""

    shape: Tuple[int, ...]
    dtype: Any  # of the sources that it came from
    pieces: List[_boxes.Piece]


class _Recorder:
    """What the recording mode has seen. Sources are tensors on torch's meta device, which have shapes, strides
    and storages, and no memory: a view of one is found by its storage, whatever it was cut and turned with."""

    def __init__(self, infos: Sequence[TensorInfo], model: Any, torch: Any) -> None:
        self.torch = torch
        self.writes: Dict[Tuple[Any, ...], _Write] = {}  # by place
        self._frames: Dict[str, Tuple[int, ...]] = {}
        self._sources: Dict[int, str] = {}  # by storage
        self._made: Dict[int, _Made] = {}
        self.kept: List[Any] = []  # storages that must not be used for anything else meanwhile
        self._model: Dict[int, Any] = {}  # the largest tensor of each storage
        for _, tensor in model:
            known = self._model.get(self._storage(tensor))
            if known is None or known.numel() < tensor.numel():
                self._model[self._storage(tensor)] = tensor
        self.tensors: List[Tuple[str, Any]] = []
        for info in infos:
            dtype = _tensors.torch_dtype(_tensors.dtype_number(info.dtype))
            tensor = torch.empty(info.shape, dtype=dtype, device="meta")
            self._frames[info.name] = info.shape
            self._sources[self._storage(tensor)] = info.name
            self.tensors.append((info.name, tensor))

    def _storage(self, tensor: Any) -> int:
        storage = tensor.untyped_storage()
        return int(storage._cdata)

    def made_of(self, storage: Any) -> Set[str]:
        """The sources of what a loader made."""
        return {piece.source for piece in self._made[int(storage._cdata)].pieces}

    def knows(self, tensor: Any) -> bool:
        if tensor.device.type != "meta":
            return False
        storage = self._storage(tensor)
        return storage in self._sources or storage in self._made

    def origin(self, tensor: Any) -> Any:
        """The dtype of what it came from."""
        made = self._made.get(self._storage(tensor))
        return made.dtype if made else tensor.dtype

    def copies(self, tensor: Any, shape: Sequence[int], to: int, to_strides: Sequence[int]) -> List[Tuple[str, _boxes.Copy]]:
        """The copies out of sources that a read of a tensor is, in the order of its own dimensions."""
        seen = tensor.expand(tuple(shape))
        copy = _boxes.Copy(tuple(seen.shape), to, tuple(to_strides), seen.storage_offset(), tuple(seen.stride()))
        storage = self._storage(tensor)
        if storage in self._sources:
            return [(self._sources[storage], copy)]
        made = self._made[storage]
        return list(_boxes.through(made.shape, made.pieces, copy))

    def is_model(self, tensor: Any) -> bool:
        return tensor.device.type != "meta" and self._storage(tensor) in self._model

    def is_written(self, tensor: Any) -> bool:
        """Whether a loader has written into its memory, where nothing of that is yet."""
        storage = self._storage(tensor)
        return any(place[0] == storage for place in self.writes)

    def fill(self, into: Any, value: Any) -> None:
        """A loader's ``into.fill_(value)``: what no source has, padding say."""
        self._wrote(_Write(into.detach(), [], False, value))

    def write(self, into: Any, tensor: Any) -> None:
        """A loader's ``into.copy_(tensor)``."""
        if not self.is_model(into):
            raise NotCaptured("it is copied into memory that is not the model's")
        origin = self.origin(tensor)
        if tensor.dtype not in (origin, into.dtype):
            raise NotCaptured(f"it is converted twice, from {origin} to {tensor.dtype} to {into.dtype}")
        convert = origin != into.dtype
        if convert:
            copies = self.copies(tensor, into.shape, 0, _boxes.row_major(tuple(into.shape)))
        else:
            copies = self.copies(tensor, into.shape, into.storage_offset(), into.stride())
        self._wrote(_Write(into.detach(), copies, convert))

    def _wrote(self, write: _Write) -> None:
        into = write.into
        if into.dtype != self._model[self._storage(into)].dtype:
            raise NotCaptured("it is written to the model's memory as another dtype")
        place = (self._storage(into), into.storage_offset(), tuple(into.shape), tuple(into.stride()))
        # What is written again counts as it was written last.
        self.writes.pop(place, None)
        self.writes[place] = write

    def overlapping(self) -> List[Tuple[_Write, _Write]]:
        """Pairs of writes that share memory. They would count in the order in which the loader made them."""
        by_storage: Dict[int, List[_Write]] = {}
        for place, write in self.writes.items():
            if write.into.numel():
                by_storage.setdefault(place[0], []).append(write)
        found = []
        for storage, writes in by_storage.items():
            writes.sort(key=lambda write: write.into.storage_offset())
            for at, one in enumerate(writes):
                last = one.into.storage_offset() + sum((extent - 1) * stride for extent, stride
                                                       in zip(one.into.shape, one.into.stride()))
                for other in writes[at + 1:]:
                    if other.into.storage_offset() > last:
                        break
                    if self._share(self._model[storage], one.into, other.into):
                        found.append((one, other))
        return found

    @staticmethod
    def _share(whole: Any, one: Any, other: Any) -> bool:
        """Whether two views of a tensor have an element in common; true where that is not easy to tell."""
        if not whole.is_contiguous():
            return True
        try:
            seen = [_boxes.boxes(tuple(whole.shape),
                                 _boxes.Copy(tuple(view.shape), 0, _boxes.row_major(tuple(view.shape)),
                                             view.storage_offset() - whole.storage_offset(), tuple(view.stride())))
                    for view in (one, other)]
        except _boxes.TooMany:
            return True
        return any(_boxes.common(a, b) is not None for a in seen[0] for b in seen[1])

    def join(self, result: Any, parts: Iterable[Tuple[Any, Tuple[int, ...]]]) -> Any:
        """A loader made `result` of tensors, each with its start in it."""
        pieces: List[_boxes.Piece] = []
        origins = set()
        for part, start in parts:
            if part.numel() == 0:
                continue
            if not self.knows(part):
                raise NotCaptured("it is put together with a tensor that was not sent")
            origin = self.origin(part)
            if part.dtype != origin and result.dtype != part.dtype:
                raise NotCaptured("it is converted twice")
            origins.add(origin)
            # Coordinates of the part take the place of memory here.
            for source, copy in self.copies(part, part.shape, 0, _boxes.row_major(tuple(part.shape))):
                for box in _boxes.boxes(tuple(part.shape), _boxes.Copy(copy.shape, copy.of, copy.of_strides, copy.to,
                                                                      copy.to_strides)):
                    pieces.append(_boxes.Piece(tuple(map(sum, zip(start, box.start))), box.shape, source, box.to,
                                               box.to_strides))
        if len(origins) > 1:
            raise NotCaptured(f"tensors of several dtypes are put together: {', '.join(sorted(map(str, origins)))}")
        self.kept.append(result.untyped_storage())
        self._made[self._storage(result)] = _Made(tuple(result.shape), origins.pop() if origins else result.dtype, pieces)
        return result

    def boxes(self, write: _Write) -> List[Tuple[str, _boxes.Box]]:
        return [(name, box) for name, copy in write.copies for box in _boxes.boxes(self._frames[name], copy)]


def _mode(recorder: _Recorder) -> Any:
    """The dispatch mode that hears of every operation below autograd."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_flatten

    aten = torch.ops.aten
    # Those give a tensor of their own, with the values of what they are given.
    copying = {aten.clone.default, aten._to_copy.default, aten.contiguous.default, aten.lift_fresh_copy.default}
    filling = {aten.fill_.Scalar, aten.zero_.default}

    # Not typed in every torch, and unknown where there is none.
    class Recording(TorchDispatchMode):  # type: ignore[misc, no-untyped-call, unused-ignore]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, torch.Tensor)]
            known = [one for one in tensors if recorder.knows(one)]
            if not known:
                if func in filling and recorder.is_model(args[0]):
                    recorder.fill(args[0], args[1] if len(args) > 1 else 0)
                    return args[0]
                _heed(func, args, kwargs, tensors)
                return func(*args, **kwargs)
            if func is aten.copy_.default and recorder.knows(args[1]) and not recorder.knows(args[0]):
                recorder.write(args[0], args[1])
                return args[0]
            if func in copying:
                # Wherever it was to go, it has no memory.
                dtype = kwargs.get("dtype") or args[0].dtype
                made = torch.empty(args[0].shape, dtype=dtype, device="meta")
                return recorder.join(made, [(args[0], (0,) * args[0].dim())])
            if func is aten.cat.default:
                dimension = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % max(args[0][0].dim(), 1)
                made = func(*[[_meta(one) for one in args[0]], *args[1:]], **kwargs)
                starts, at = [], 0
                for one in args[0]:
                    starts.append((one, tuple(at if axis == dimension else 0 for axis in range(made.dim()))))
                    at += one.shape[dimension] if one.dim() == made.dim() else 0
                return recorder.join(made, starts)
            if func is aten.stack.default:
                made = func(*[[_meta(one) for one in args[0]], *args[1:]], **kwargs)
                dimension = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % made.dim()
                return recorder.join(made, [(one.unsqueeze(dimension), tuple(at if axis == dimension else 0
                                                                            for axis in range(made.dim())))
                                            for at, one in enumerate(args[0])])
            if len(known) == len(tensors):
                result = func(*args, **kwargs)
                views = [one for one in tree_flatten(result)[0] if isinstance(one, torch.Tensor)]
                if func._schema.is_mutable or not all(recorder.knows(one) for one in views):
                    raise NotCaptured(f"the loader computes with it ({func})")
                if any(one.dtype != known[0].dtype or one.is_conj() or one.is_neg() for one in views):
                    raise NotCaptured(f"the loader sees its bytes as something else ({func})")
                return result  # views, sizes and the like
            raise NotCaptured(f"the loader computes with it ({func})")

    def _heed(func: Any, args: Any, kwargs: Any, tensors: List[Any]) -> None:
        """What a loader does beside: it may look at the model, but its memory is not to be changed, and what was
        recorded is not in it yet."""
        returns = func._schema.returns
        if not func._schema.is_mutable and any(one.alias_info is not None for one in returns):
            return  # a view
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            given = args[position] if position < len(args) else kwargs.get(argument.name)
            if any(isinstance(one, torch.Tensor) and recorder.is_model(one) for one in tree_flatten(given)[0]):
                raise NotCaptured(f"the loader changes the model in another way than by copying into it ({func})")
        if any(recorder.is_model(one) and recorder.is_written(one) for one in tensors):
            raise NotCaptured(f"the loader looks at what it has copied into the model ({func})")

    def _meta(one: Any) -> Any:
        return one if one.device.type == "meta" else torch.empty_like(one, device="meta")

    return Recording()  # type: ignore[no-untyped-call, unused-ignore]


def _warm_up() -> None:
    """Has torch import what it needs for a mode, which takes seconds the first time: not while a trainer waits."""
    import torch

    tensor = torch.zeros(1)
    recorder = _Recorder([TensorInfo("", "F32", (1,))], [("", tensor)], torch)
    with torch.no_grad(), _mode(recorder):
        tensor.copy_(recorder.tensors[0][1])


class CapturedLoader:
    """Loads updates as an engine's own loader does, without running it each time.

    At the first update, and whenever other tensors come, `load_weights` is run once on tensors that have shapes but no
    memory and record what becomes of them: views, slices, transposes, concatenations and stacks, casts, and in the end
    the copies into the model. Later updates copy each byte from the sender straight to its place, with the library's
    kernel, and fill what it fills. What can't be replayed (computing with values, looking at them or at what was copied,
    seeing bytes as another dtype, writing twice to a place, keeping a tensor) is received beside the model and given to
    `load_weights` after each update, tensor by tensor; `plan` says which and why.

    Args:
        load_weights: takes a list of (name, tensor). It must do the same with a tensor of that name each time; it is
            run on tensors of the ``meta`` device, and must not hand them on to other threads.
        model: the torch module, mapping or (name, tensor) pairs whose memory it writes to. That memory must stay where it
            is; after it has moved, make a new one.

    What `load_weights` fills or gets itself, and what is converted, is written after the commit: if that fails, the error is
    raised, the sender believes that the version is held, and `torn` is true until a later one is whole.
    """

    def __init__(self, load_weights: Loader, model: Any) -> None:
        self._load_weights = load_weights
        self._model = list(_all_of(model))
        self._infos: Optional[List[TensorInfo]] = None
        self._layout: Optional[bytes] = None  # of an update that had these
        self._places = Destinations()
        self._fills: List[Tuple[Any, Any]] = []  # (into, value)
        self._conversions: List[Tuple[Any, Any]] = []  # (into, from)
        self._beside: Dict[str, Any] = {}
        self._plan: Optional[CapturedPlan] = None
        self._unfinished = False
        _warm_up()

    @property
    def plan(self) -> Optional[CapturedPlan]:
        """What is replayed and what is not; None before the first update."""
        return self._plan

    @property
    def torn(self) -> bool:
        """Whether the model holds parts of different versions."""
        return self._unfinished or self._places.torn

    def capture(self, tensors: Iterable[TensorInfo]) -> CapturedPlan:
        """Runs the loader on tensors that record, without any update: for servers that want to know before. Nothing is
        written to the model."""
        infos = list(tensors)
        self._layout = None
        recorder, missed = self._record(infos)
        self._build(infos, recorder, missed)
        assert self._plan is not None
        return self._plan

    def load(self, update: Update, *, after: Any = None) -> Operation[LoadReport]:
        """As `Update.load_into`; `LoadReport.by_tensor` names what the loader was given itself. Captures first if there is
        need, which the sender's ``decide_limit`` must allow for: a few tenths of a millisecond a tensor."""
        if self._layout != update.layout:
            if self._infos != update.tensors:
                self.capture(update.tensors)
            self._layout = update.layout
        return Steps(self._load(update, after))

    def _load(self, update: Update, after: Any) -> "Generator[Operation[Any], Any, LoadReport]":
        before = self._unfinished
        # Who cancels this too late to stop the commit is not told of it.
        self._unfinished = before or bool(self._fills or self._conversions or self._beside)
        try:
            report: LoadReport = yield last(update.load_into(self._places, after=after))
        except (TransferError, TimeoutError):
            self._unfinished = before  # nothing was committed, and the places know what they hold
            raise
        self._unfinished = True
        import torch

        with torch.no_grad():
            for into, value in self._fills:
                into.fill_(value)
            for into, come in self._conversions:
                into.copy_(come)
            if self._beside:
                run_loader(self._load_weights, list(self._beside.items()))
        self._unfinished = False
        return dataclasses.replace(report, by_tensor=tuple(self._beside))

    def _record(self, infos: List[TensorInfo]) -> Tuple[_Recorder, Dict[str, str]]:
        """All at once, for loaders that put tensors together; if that fails, one by one."""
        import torch

        recorder = _Recorder(infos, self._model, torch)
        try:
            with torch.no_grad(), _mode(recorder):
                run_loader(self._load_weights, list(recorder.tensors))
            return recorder, self._kept_ones(recorder)
        except Exception:
            pass  # the loader says again why, one by one
        recorder = _Recorder(infos, self._model, torch)
        missed: Dict[str, str] = {}
        for name, tensor in list(recorder.tensors):
            before = dict(recorder.writes)
            try:
                with torch.no_grad(), _mode(recorder):
                    run_loader(self._load_weights, [(name, tensor)])
            except Exception as error:
                missed[name] = _why(error)
                recorder.writes = before
        del tensor
        return recorder, {**self._kept_ones(recorder), **missed}

    @staticmethod
    def _kept_ones(recorder: _Recorder) -> Dict[str, str]:
        """The sources that the loader still holds: it will look at them later."""
        from torch.multiprocessing import reductions

        weakly: Any = reductions.StorageWeakRef  # not typed
        watched = [({name}, weakly(tensor.untyped_storage())) for name, tensor in recorder.tensors]
        watched += [(recorder.made_of(storage), weakly(storage)) for storage in recorder.kept]
        recorder.tensors.clear()
        recorder.kept.clear()
        if not all(one.expired() for _, one in watched):
            gc.collect()
        kept = {name for names, one in watched if not one.expired() for name in names}
        return {name: "the loader keeps it beyond its call" for name in kept}

    def _build(self, infos: List[TensorInfo], recorder: _Recorder, missed: Dict[str, str]) -> None:
        import torch

        beside = dict(missed)
        for pair in recorder.overlapping():
            for write in pair:
                for name, _ in write.copies:
                    beside[name] = "it is written to memory that the loader writes to twice"
        planned: List[Tuple[_Write, List[Tuple[str, _boxes.Box]]]] = []
        for write in recorder.writes.values():
            try:
                planned.append((write, recorder.boxes(write)))
            except _boxes.TooMany:
                for name, _ in write.copies:
                    beside[name] = "it is scattered over too many places"
        # A write that has something of a tensor which the loader gets itself is the loader's, with all that it is of.
        changed = True
        while changed:
            changed = False
            for write, found in planned:
                names = {name for name, _ in found}
                if names & set(beside) and not names <= set(beside):
                    for name in names - set(beside):
                        beside[name] = "it is put together with one that the loader gets itself"
                        changed = True
        by_name = {info.name: info for info in infos}
        places, conversions, used, converted = Destinations(), [], set(), set()
        fills = [(write.into, write.value) for write in recorder.writes.values() if write.value is not None]
        extra = 0
        for write, found in planned:
            names = {name for name, _ in found}
            if names & set(beside):
                continue
            target = write.into
            if write.convert:
                dtype = target.dtype
                if names:
                    dtype = _tensors.torch_dtype(_tensors.dtype_number(by_name[next(iter(names))].dtype))
                target = torch.empty(write.into.shape, dtype=dtype, device=write.into.device)
                conversions.append((write.into, target))
                converted |= names
                extra += target.numel() * target.element_size()
            for name, box in found:
                view = torch.as_strided(target, box.shape, box.to_strides, box.to)
                places.add_part(name, view, box.start)
            used |= names
        memory: Dict[str, Any] = {}
        device = next((tensor.device for _, tensor in self._model), "cpu")
        for info in infos:
            if info.name in beside:
                dtype = _tensors.torch_dtype(_tensors.dtype_number(info.dtype))
                memory[info.name] = torch.empty(info.shape, dtype=dtype, device=device)
                places.add(info.name, memory[info.name])
                extra += math.prod(info.shape) * dtype.itemsize
        unused = tuple(info.name for info in infos if info.name not in used and info.name not in beside)
        if unused:
            places.allow_unplaced()
        self._infos, self._places, self._beside = infos, places, memory
        self._fills, self._conversions = fills, conversions
        self._plan = CapturedPlan(tuple(info.name for info in infos if info.name in used - converted),
                                  tuple(info.name for info in infos if info.name in converted), beside, unused, extra)


def _all_of(model: Any) -> Iterable[Tuple[str, Any]]:
    """Every tensor of a module, those that its state dict leaves out included."""
    if hasattr(model, "named_parameters") and hasattr(model, "named_buffers"):
        yield from model.named_parameters(remove_duplicate=False)
        yield from model.named_buffers(remove_duplicate=False)
    else:
        yield from _tensors.items(model)


def _why(error: BaseException) -> str:
    if isinstance(error, NotCaptured):
        return str(error)
    return f"the loader can't be run on it: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
