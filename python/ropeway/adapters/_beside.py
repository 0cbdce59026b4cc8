"""What the adapters' trainer sides share: a sender, and calls to the server that last as long as the sends they are about."""
from __future__ import annotations

import os
import threading
from typing import Any, Callable, List, Optional

from .._errors import TransferError
from .._operation import Operation
from .._sender import Sender

MOMENT = 1.0
"""Seconds that a send has to fail by itself after its call has failed: what it says of each rank says more."""


class Publisher:
    """A sender whose sessions end when a version has failed, so that no worker goes on to wait for it.

    Args:
        path: of the socket.
        receivers: how many there must be before a version is sent.
        limit: how long they may take to connect, in seconds.
        knobs: as for `Sender`.
    """

    def __init__(self, path: str, receivers: int, limit: float, **knobs: Any) -> None:
        self.path = path
        self._receivers = receivers
        self._limit = limit
        self._knobs = knobs
        self._sender: Optional[Sender] = None
        self.session = 0
        """Another number for each sender: the server is told, whose workers may not know yet that the last one's sessions
        have ended."""
        self._listen()

    def wait_for_receivers(self) -> None:
        """Returns when all are connected."""
        self._listen().wait_for_receivers(self._receivers, self._limit).wait()

    def send(self, name: str, version: int, tensors: Callable[[], Any], call: Callable[[], Any]) -> Any:
        """Sends what `tensors` gives, and returns what `call` returns, which runs on a thread called `name` meanwhile.

        When the send fails, the server's workers are told by the end of their sessions (they come back by themselves),
        and so the call ends. When the call fails, the send is given up. Returns when both have ended; raises what either
        has raised, and if that is both the send's, unless it was given up."""
        answers: List[Any] = []
        failures: List[BaseException] = []
        ended, given_up, lock = threading.Event(), threading.Event(), threading.Lock()
        running: List[Operation[Any]] = []  # one at most

        def run() -> None:
            try:
                answers.append(call())
            except BaseException as error:
                failures.append(error)
                if not ended.wait(MOMENT):
                    with lock:
                        given_up.set()
                        for operation in running:
                            operation.cancel()

        def wait(operation: Operation[Any]) -> None:
            with lock:
                running[:] = [operation]
                if given_up.is_set():
                    operation.cancel()
            operation.wait()

        sender = self._listen()
        server = threading.Thread(target=run, name=name, daemon=True)
        server.start()
        try:
            wait(sender.wait_for_receivers(self._receivers, self._limit))
            wait(sender.send_weights(version, tensors()))
        except BaseException as error:
            ended.set()
            self._end_sessions(server)
            if failures and isinstance(error, TransferError):
                if given_up.is_set() and error.code == "operation_aborted":
                    raise failures[0] from None
                if error.code == "too_few_receivers":  # anything else is no fault of the server
                    raise error from failures[0]
            raise
        ended.set()
        server.join()
        if failures:
            raise failures[0]
        return answers[0]

    def close(self) -> None:
        """Says goodbye to the server's ranks."""
        sender, self._sender = self._sender, None
        if sender is not None:
            sender.close().wait()

    def _listen(self) -> Sender:
        if self._sender is None:
            self._sender = Sender(self.path, **self._knobs)
            self.session = int.from_bytes(os.urandom(6), "little")  # a double holds it
        return self._sender

    def _end_sessions(self, server: threading.Thread) -> None:
        """Of workers that wait for the version, and of those that come for it only now, until the call has ended."""
        self.close()
        while server.is_alive():
            if self._listen().receivers().wait():
                self.close()
            server.join(0.1)
        self._listen()
