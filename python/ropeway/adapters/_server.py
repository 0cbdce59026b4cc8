"""What the adapters' server sides share: a receiver that takes one version when it is told to."""
from __future__ import annotations

from typing import Any, Callable, List, Optional, Tuple

from .._bucket import Loader
from .._capture import CapturedLoader
from .._errors import TransferError
from .._receiver import Receiver, Update
from .._reports import LoadReport

OnBucket = Callable[[List[Tuple[str, Any]]], Any]


class Taker:
    """A receiver and its sender's path. Connects when it is first used, and again after the session has ended."""

    def __init__(self, path: str, **knobs: Any) -> None:
        self.path = path
        self._knobs = knobs
        self.receiver = Receiver(**knobs)
        self._session: Optional[int] = None  # as the trainer has called it
        self._captured: Optional[CapturedLoader] = None
        self._captured_of: Any = None

    def connect(self, session: Optional[int] = None) -> None:
        """Does nothing while there is a session, unless the trainer calls the one that is meant otherwise: the end of the
        last one may still be on its way."""
        if session is not None and session != self._session and self._session is not None:
            self.receiver.close().wait()
            self.receiver = Receiver(**self._knobs)
        if self.receiver.status().phase == "closed":
            self.receiver.connect(self.path).wait()
        self._session = session

    def next(self, version: Optional[int], limit: Optional[float], session: Optional[int] = None) -> Update:
        """The update of this version (None: whichever comes); refuses others that come before. Raises TimeoutError."""
        self.connect(session)
        while True:
            update = self.receiver.next_update().wait(limit)
            if update is None:
                raise TransferError(f"the trainer at {self.path} has closed", "peer_gone")
            if version is None or update.version == version:
                return update
            update.refuse(f"version {version} is being waited for, and not {update.version}")

    def load(self, update: Update, load_weights: Loader, model: Any = None) -> LoadReport:
        """Gives the tensors to `load_weights`; with a model, the loader is captured and replayed."""
        if model is None:
            return update.load_with(load_weights, tensors="torch").wait()
        if self._captured is None or self._captured_of is not model:
            self._captured, self._captured_of = CapturedLoader(load_weights, model), model
        return self._captured.load(update).wait()

    def close(self) -> None:
        self._captured = self._captured_of = None
        self.receiver.close().wait()
