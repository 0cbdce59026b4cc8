"""Operations: what is awaited, or waited for."""
from __future__ import annotations

import asyncio
import copy
import time
import weakref
from typing import Any, Awaitable, Callable, Dict, Generator, Generic, List, Optional, TypeVar, cast

from . import _core
from ._errors import TransferError

T = TypeVar("T")


class _Box:
    """Where the ends of operations arrive on one asyncio loop: a descriptor that the loop reads."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.core = _core.Mailbox()
        self._waiting: Dict[int, List["asyncio.Future[None]"]] = {}  # by operation
        loop.add_reader(self.core.fileno(), self._drain)

    def _drain(self) -> None:
        for ended in self.core.take():
            for future in self._waiting.pop(ended, ()):
                if not future.done():
                    future.set_result(None)

    def _wait_for(self, core: _core.Operation) -> "asyncio.Future[None]":
        future: "asyncio.Future[None]" = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(core.id, []).append(future)
        return future

    async def until_ended(self, core: _core.Operation) -> None:
        """Returns, or raises CancelledError, only when the operation has ended: its copies touch no memory then."""
        # One telling wakes all who wait here for it.
        if core.id not in self._waiting and not core.tell(self.core):
            return
        future = self._wait_for(core)
        try:
            await future
            return
        except asyncio.CancelledError as error:
            cancelled = error
        core.stop()
        while not core.ended():
            future = self._wait_for(core)
            try:
                await future
            except asyncio.CancelledError:
                pass  # it was told to stop, and can't be told twice
        raise cancelled


_boxes: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Box]" = weakref.WeakKeyDictionary()


def _box() -> _Box:
    loop = asyncio.get_running_loop()
    box = _boxes.get(loop)
    if box is None:
        for old in list(_boxes):
            if old.is_closed():  # it may never go by itself: who waited on it is part of its box
                del _boxes[old]
        box = _boxes[loop] = _Box(loop)
    return box


def _to_keep(error: BaseException) -> BaseException:
    """What an operation keeps of an error that it raises. With the frames that it came through, which have the
    operation, both would stay until the collector runs."""
    try:
        kept = copy.copy(error)
    except Exception:
        return error
    return kept if type(kept) is type(error) else error


class Operation(Generic[T]):
    """An operation that was started by the call which returned it.

    ``await`` it on an asyncio loop (uvloop's too), or `wait` for it on a thread that has none. Both return the result,
    or raise what went wrong, and both end only when no copy touches the caller's memory any more, also when they are
    cancelled. An operation that nobody waits for goes on by itself, and keeps what it needs.

    Thread-safety: may be started on one thread and waited for on another; by one at a time, or by several tasks of one
    loop, which all get what comes of it.
    """

    _last = False

    def __await__(self) -> Generator[Any, None, T]:
        return self._run().__await__()

    def wait(self, timeout: Optional[float] = None) -> T:
        """Blocks this thread, with the GIL released. After `timeout` seconds the operation is given up, and
        TimeoutError is raised once it has ended; so is KeyboardInterrupt, or what another signal's handler raises.
        Don't call it on the thread of a running asyncio loop: that loop stands still meanwhile."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Gives the operation up; whoever waits for it gets TransferError (``operation_aborted``), unless it was
        too late. Any thread."""
        raise NotImplementedError

    def done(self) -> bool:
        """Whether it has ended."""
        raise NotImplementedError

    async def _run(self) -> T:
        raise NotImplementedError


def last(step: Operation[T]) -> Operation[T]:
    """Of several steps: what comes of it is what came of them all, and not to be forgotten for a late cancellation."""
    step._last = True
    return step


class Single(Operation[T]):
    """One operation of the library."""

    def __init__(self, core: _core.Operation, convert: Optional[Callable[[Any], T]] = None,
                 unclaimed: Optional[Callable[[T], None]] = None, of: object = None) -> None:
        self._core = core
        self._of = of  # what it is an operation of lives as long
        self._convert = convert
        self._unclaimed = unclaimed  # takes the result if the waiting was cancelled when there was one
        self._finished = False
        self._value: Any = None
        self._error: Optional[BaseException] = None

    def done(self) -> bool:
        return self._core.ended()

    def cancel(self) -> None:
        self._core.stop()

    def wait(self, timeout: Optional[float] = None) -> T:
        if not self._core.ended():
            try:
                ended = self._core.wait(-1.0 if timeout is None else max(timeout, 0.0))
            except BaseException:  # and so it was given up, and has ended
                self._hand_over()
                raise
            if not ended:
                self._core.give_up()
                try:
                    return self._result()
                except TransferError as error:
                    if error.code == "operation_aborted":
                        raise TimeoutError(f"not done within {timeout:g} s, and given up") from None
                    raise
        return self._result()

    async def _run(self) -> T:
        if not self._core.ended():
            try:
                box = _box()
            except BaseException:  # no descriptor is left
                self._core.give_up()
                raise
            try:
                await box.until_ended(self._core)
            except asyncio.CancelledError:
                self._hand_over()
                raise
        return self._result()

    def _hand_over(self) -> None:
        if self._unclaimed is not None:
            try:
                value = self._result()
            except BaseException:
                return
            self._unclaimed(value)

    def _result(self) -> T:
        if not self._finished:
            self._finished = True
            try:
                value = self._core.result()
                self._value = self._convert(value) if self._convert is not None else value
            except BaseException as error:
                self._error = error
        if self._error is not None:
            raised, self._error = self._error, _to_keep(self._error)
            try:
                raise raised
            finally:
                del raised
        return cast(T, self._value)


class Ready(Operation[T]):
    """A result that is there already."""

    def __init__(self, value: T) -> None:
        self._value = value

    def done(self) -> bool:
        return True

    def cancel(self) -> None:
        pass

    def wait(self, timeout: Optional[float] = None) -> T:
        return self._value

    async def _run(self) -> T:
        return self._value


class Foreign(Operation[T]):
    """Something of asyncio's, as a step; there is nobody to await it in the blocking form."""

    def __init__(self, what: Awaitable[T]) -> None:
        self._what = what

    def done(self) -> bool:
        return False

    def cancel(self) -> None:
        pass

    def wait(self, timeout: Optional[float] = None) -> T:
        close = getattr(self._what, "close", None)
        if close is not None:
            close()  # a coroutine that is never awaited would say so
        raise TypeError("an async iterator of tensors can only be sent with `await`, not with .wait()")

    async def _run(self) -> T:
        return await self._what


class Steps(Operation[T]):
    """Several operations, one after the other, with Python between them: a generator that yields operations and is
    given their results, on the thread that waits. Its first step is started at once. Once it was cancelled no step
    follows another; the result of one that is the `last` counts."""

    def __init__(self, steps: "Generator[Operation[Any], Any, T]") -> None:
        self._steps = steps
        self._step: Optional[Operation[Any]] = None
        self._given_up = False
        self._finished = False
        self._running: Optional["asyncio.Future[None]"] = None  # of the task that goes through them
        self._value: Any = None
        self._error: Optional[BaseException] = None
        self._advance(lambda: steps.send(None))

    def done(self) -> bool:
        return self._finished

    def cancel(self) -> None:
        self._given_up = True  # also if Python runs between two steps
        step = self._step
        if step is not None:
            step.cancel()

    def wait(self, timeout: Optional[float] = None) -> T:
        limit = None if timeout is None else time.monotonic() + timeout
        while not self._finished:
            step = cast("Operation[Any]", self._step)
            try:
                value = step.wait(None if limit is None else max(limit - time.monotonic(), 0.0))
            except TimeoutError as error:  # the step says how long it had itself
                self._throw(self._too_late(timeout, limit) or error)
            except BaseException as error:
                self._throw(error)
            else:
                self._send(value)
        try:
            return self._result()
        except TransferError as error:
            # The step that was given up may have had a result all the same.
            late = self._too_late(timeout, limit) if error.code == "operation_aborted" else None
            if late is not None:
                raise late from None
            raise

    @staticmethod
    def _too_late(timeout: Optional[float], limit: Optional[float]) -> Optional[TimeoutError]:
        if limit is None or time.monotonic() < limit:
            return None
        return TimeoutError(f"not done within {timeout:g} s, and given up")

    async def _run(self) -> T:
        if self._running is not None and not self._running.done():  # another task goes through them
            cancelled: Optional[asyncio.CancelledError] = None
            while not self._running.done():
                try:
                    await asyncio.shield(self._running)
                except asyncio.CancelledError as error:
                    cancelled = error
                    self.cancel()
            if cancelled is not None:
                raise cancelled
            return self._result()
        self._running = asyncio.get_running_loop().create_future()
        try:
            while not self._finished:
                step = cast("Operation[Any]", self._step)
                try:
                    value = await step
                except BaseException as error:
                    self._throw(error)
                else:
                    self._send(value)
        finally:
            self._running.set_result(None)
        return self._result()

    def _send(self, value: Any) -> None:
        if self._given_up and not cast("Operation[Any]", self._step)._last:
            self._throw(TransferError("the operation was given up", "operation_aborted"))
        else:
            self._advance(lambda: self._steps.send(value))

    def _throw(self, error: BaseException) -> None:
        self._advance(lambda: self._steps.throw(error))

    def _advance(self, resume: "Callable[[], Operation[Any]]") -> None:
        try:
            step = self._step = resume()
            if self._given_up:
                step.cancel()
        except StopIteration as stop:
            self._value = stop.value
        except BaseException as error:
            self._error = error
        else:
            return
        self._finished = True
        self._step = None

    def _result(self) -> T:
        if self._error is not None:
            raised, self._error = self._error, _to_keep(self._error)
            try:
                raise raised
            finally:
                del raised
        return cast(T, self._value)
