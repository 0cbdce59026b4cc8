"""Arithmetic on copies between strided memory: how one falls apart into boxes. Pure: knows neither tensors nor torch."""
from __future__ import annotations

import math
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

MOST_BOXES = 4096
"""Of one copy; what would need more is not worth a plan."""


class TooMany(Exception):
    """A copy that falls apart into more boxes than is worth a plan."""


class Copy(NamedTuple):
    """Elements that are copied: the same shape on both sides, offsets and strides in elements."""

    shape: Tuple[int, ...]
    to: int
    to_strides: Tuple[int, ...]
    of: int
    of_strides: Tuple[int, ...]

    def fixed(self, dimension: int, index: int) -> "Copy":
        """The slice at one index, which keeps the dimension as one of size 1."""
        shape = self.shape[:dimension] + (1,) + self.shape[dimension + 1:]
        return self._replace(shape=shape, to=self.to + index * self.to_strides[dimension],
                             of=self.of + index * self.of_strides[dimension])

    def split(self, dimension: int, inner: int) -> "Copy":
        """The same elements, with one dimension written as two, the inner one of that size."""
        def two(strides: Tuple[int, ...]) -> Tuple[int, ...]:
            return strides[:dimension] + (strides[dimension] * inner, strides[dimension]) + strides[dimension + 1:]

        shape = self.shape[:dimension] + (self.shape[dimension] // inner, inner) + self.shape[dimension + 1:]
        return Copy(shape, self.to, two(self.to_strides), self.of, two(self.of_strides))


class Box(NamedTuple):
    """A copy out of a box of a row-major tensor, dimension by dimension of that tensor."""

    start: Tuple[int, ...]
    shape: Tuple[int, ...]
    to: int
    to_strides: Tuple[int, ...]


def row_major(shape: Sequence[int]) -> Tuple[int, ...]:
    strides: List[int] = []
    step = 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))


def boxes(frame: Tuple[int, ...], copy: Copy) -> List[Box]:
    """The boxes of a row-major tensor of shape `frame` that a copy reads. Raises TooMany."""
    found: List[Box] = []
    steps = row_major(frame)

    def add(part: Copy) -> None:
        start = _coordinates(frame, part.of)
        used: Dict[int, int] = {}  # the copy's dimension, by the frame's
        for dimension, extent in enumerate(part.shape):
            if extent == 1:
                continue
            match = next((at for at, step in enumerate(steps) if step == part.of_strides[dimension] and frame[at] > 1
                          and at not in used), None)
            if match is None:
                return each(part, dimension)
            if start[match] + extent > frame[match]:
                if start[match] == 0 and extent % frame[match] == 0:
                    return add(part.split(dimension, frame[match]))
                return each(part, dimension)
            used[match] = dimension
        shape = tuple(part.shape[used[at]] if at in used else 1 for at in range(len(frame)))
        strides = tuple(part.to_strides[used[at]] if at in used else 1 for at in range(len(frame)))
        found.append(Box(start, shape, part.to, strides))
        if len(found) > MOST_BOXES:
            raise TooMany
        return None

    def each(part: Copy, dimension: int) -> None:
        if part.shape[dimension] > MOST_BOXES:
            raise TooMany
        for index in range(part.shape[dimension]):
            add(part.fixed(dimension, index))

    if math.prod(copy.shape):
        add(copy)
    return found


def _coordinates(frame: Tuple[int, ...], offset: int) -> Tuple[int, ...]:
    found: List[int] = []
    for step in row_major(frame):
        found.append(offset // step)
        offset %= step
    return tuple(found)


class Piece(NamedTuple):
    """A box of a tensor that was made of others, and where its elements come from; strides as of the box."""

    start: Tuple[int, ...]
    shape: Tuple[int, ...]
    source: str
    of: int
    of_strides: Tuple[int, ...]


def through(frame: Tuple[int, ...], pieces: Sequence[Piece], copy: Copy) -> Iterator[Tuple[str, Copy]]:
    """A copy out of a tensor that was made of others, as copies out of those."""
    for box in boxes(frame, copy):
        for piece in pieces:
            cut = common(box, piece)
            if cut is None:
                continue
            start, shape = cut
            to = box.to + sum((at - begin) * stride for at, begin, stride in zip(start, box.start, box.to_strides))
            of = piece.of + sum((at - begin) * stride for at, begin, stride in zip(start, piece.start, piece.of_strides))
            yield piece.source, Copy(shape, to, box.to_strides, of, piece.of_strides)


def common(box: Box, piece: Union[Box, Piece]) -> Optional[Tuple[Tuple[int, ...], Tuple[int, ...]]]:
    """Start and shape of what two boxes of a tensor share, if anything."""
    start = tuple(map(max, box.start, piece.start))
    end = tuple(min(a + m, b + n) for a, m, b, n in zip(box.start, box.shape, piece.start, piece.shape))
    shape = tuple(last - first for first, last in zip(start, end))
    return (start, shape) if all(extent > 0 for extent in shape) else None
