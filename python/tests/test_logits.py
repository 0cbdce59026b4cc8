"""A trainer's model and a server's, in two processes on one device: the same logits after every version, bit by bit; also when
the server's forward pass is a CUDA graph, and whichever kind of memory each side has."""
from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import models  # noqa: E402
import ropeway  # noqa: E402
from device import CUDA, DEVICE, ROUTE, Other, content, is_expandable, segments  # noqa: E402

if not DEVICE:
    pytest.skip("no CUDA device: NO LOGITS were compared on one", allow_module_level=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    one = Other(tmp_path_factory.mktemp("other"))
    yield one
    one.close()


@pytest.mark.parametrize("graph", [False, pytest.param(True, marks=pytest.mark.skipif(not CUDA, reason="no CUDA device"))])
@pytest.mark.parametrize("ours, theirs", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("kind", ["plain", "llama"])
def test_both_sides_compute_the_same_logits(address, server, kind, ours, theirs, graph):
    if kind == "llama":
        pytest.importorskip("transformers", reason="transformers is not installed")
    with segments(ours):
        model = models.make(kind, 1, DEVICE)
        prompt = models.tokens(DEVICE)
    if CUDA:
        assert is_expandable(next(model.parameters())) == ours
    assert server("make_model", kind, theirs, graph) == theirs
    seen = set()
    try:
        with ropeway.Sender(address) as sender:
            server("connect", address)
            sender.wait_for_receivers(1, limit=30).wait(40)
            for version in range(1, 5):
                models.step(model, version)
                server.start("logits")
                assert sender.send_weights(version, model).wait(60).count("committed") == 1
                route, theirs_now = server.result()
                assert theirs_now == content({"logits": models.logits_of(model, prompt)})["logits"]
                assert route in ((ROUTE, "staged") if ours else (ROUTE,))
                seen.add(theirs_now)
            server("close")
    finally:
        server("forget")
    assert len(seen) == 4  # each version said something else
