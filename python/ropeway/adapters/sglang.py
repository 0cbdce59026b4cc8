"""SGLang's `update_weights_from_tensor` through ropeway: a loader for the server and a stand-in for the trainer.

The server is started with the loader that this file is (``--custom-weight-loader ropeway.adapters.sglang.load_weights``), and
the trainer wraps the engine, or whatever has `update_weights_from_tensor`, once:

    from ropeway.adapters.sglang import RopewayEngine
    engine = RopewayEngine(engine, path)

What the trainer then gives to ``engine.update_weights_from_tensor`` goes to the server's ranks through ropeway; the call of
the real engine carries a small tensor that says which version to take. One call is one version: a trainer that sends
bucket after bucket sends as many versions. Nothing of SGLang is imported.
"""
from __future__ import annotations

import os
from typing import Any, Dict, List, Optional, Tuple

from ._beside import Publisher
from ._server import Taker

LOADER = "ropeway.adapters.sglang.load_weights"
TICKET = "ropeway.ticket:"
"""How the name of the tensor begins that stands for a version."""

_takers: Dict[str, Taker] = {}


def load_weights(model: Any, named_tensors: Any) -> None:
    """SGLang's custom loader: takes the versions that tickets name, and gives other tensors to the model as they are."""
    for name, tensor in list(named_tensors):
        if not name.startswith(TICKET):
            model.load_weights([(name, tensor)])
            continue
        path = name[len(TICKET):]
        version = int(tensor[0])
        limit = float(tensor[1])
        session = int(tensor[2])
        taker = _takers.get(path)
        if taker is None:
            taker = _takers[path] = Taker(path, name="sglang", device=_device_of(model), connect_limit=limit)
        taker.load(taker.next(version, limit, session), model.load_weights)


def close() -> None:
    """Ends the server's receivers; the process's end does as well."""
    while _takers:
        _takers.popitem()[1].close()


def _device_of(model: Any) -> str:
    parameter = next(iter(model.parameters()), None) if hasattr(model, "parameters") else None
    device = getattr(parameter, "device", None)
    return f"cuda:{device.index or 0}" if device is not None and device.type == "cuda" else "host"


class RopewayEngine:
    """An engine whose tensors go through ropeway; everything else is the engine's own.

    Args:
        engine: has ``update_weights_from_tensor(named_tensors, load_format=..., flush_cache=...)``.
        path: of the socket; its folder must belong to this user.
        receivers: how many ranks the server has.
        limit: how long the ranks may take to connect, and to be sent to, in seconds.
    """

    def __init__(self, engine: Any, path: Optional[str] = None, receivers: int = 1, limit: float = 600.0) -> None:
        self._engine = engine
        self._path = path or f"/tmp/ropeway-{os.getuid()}/sglang.sock"
        self._limit = limit
        self._publisher = Publisher(self._path, receivers, limit, min_receivers=receivers, decide_limit=limit)
        self._version = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def update_weights_from_tensor(self, named_tensors: List[Tuple[str, Any]], load_format: Optional[str] = None,
                                   flush_cache: bool = True) -> Any:
        """Sends the tensors, and gives what the engine answered. `load_format` is ropeway's own here, and can't be
        chosen. Raises TransferError, what the engine raised, or RuntimeError with its words if it answered that it has
        not updated them."""
        if load_format not in (None, LOADER):
            raise ValueError(f"tensors come through ropeway's loader, and not as {load_format!r}")
        import torch

        self._version += 1

        def call() -> Any:
            ticket = torch.tensor([float(self._version), self._limit, float(self._publisher.session)], dtype=torch.float64)
            answer = self._engine.update_weights_from_tensor(
                [(TICKET + self._path, ticket)], load_format=LOADER, flush_cache=flush_cache)
            if isinstance(answer, (tuple, list)) and answer and answer[0] is False:  # no rank will take the version
                raise RuntimeError(f"SGLang has not updated the weights: {answer[1] if len(answer) > 1 else answer}")
            return answer

        return self._publisher.send("ropeway-sglang-update", self._version, lambda: named_tensors, call)

    def close(self) -> None:
        """Says goodbye to the server's ranks; the engine is left alone."""
        self._publisher.close()
