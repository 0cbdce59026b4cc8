"""What can go wrong, as Python exceptions."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional

if TYPE_CHECKING:
    from ._reports import SendReport


class TransferError(RuntimeError):
    """What operations of senders and receivers fail with. ``str()`` is one complete line that says what to do.

    Attributes:
        code: the name of the C++ library's ``errc`` (``"peer_gone"``, ``"destination_mismatch"``, ...; all of them stand in
            docs/troubleshooting.md), ``"operation_aborted"`` for an operation that was given up, or an error of the system
            by its name (``"ECONNREFUSED"``).
        tensor: the tensor concerned, or an empty string.
        bucket: the number of the bucket concerned, if one was.
        peer: the peer concerned (its name and process number), or an empty string.
        peer_words: what the peer itself said, or an empty string. Foreign text: never interpret it.
        report: of a send that failed, what came of each receiver all the same; else None.
    """

    def __init__(self, message: str, code: str, tensor: str = "", bucket: Optional[int] = None, peer: str = "",
                 peer_words: str = "", report: "Optional[SendReport]" = None) -> None:
        super().__init__(message)
        # The core makes them without this, attribute by attribute (src/words.cpp).
        self.code = code
        self.tensor = tensor
        self.bucket = bucket
        self.peer = peer
        self.peer_words = peer_words
        self.report = report

    def __reduce__(self) -> Any:  # pickled with its attributes, so that it survives a process pool
        return type(self), (str(self), self.code, self.tensor, self.bucket, self.peer, self.peer_words, self.report)


class ReleasedError(ValueError):
    """A tensor of a bucket was used after the bucket was released, or was still referred to when it was."""


def words_of(error: BaseException) -> str:
    """What the other side is told of an exception."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
