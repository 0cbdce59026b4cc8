"""Loaders that are run once and then replayed: each must leave what running it would have left."""
from __future__ import annotations

import itertools
import random

import pytest

from ropeway import _boxes

torch = pytest.importorskip("torch", reason="torch is not installed")

import ropeway  # noqa: E402


class Engine:
    """A model with the layout of an inference engine, and the loader that fills it from a trainer's names."""

    def __init__(self, device="cpu"):
        def zeros(*shape, dtype=torch.float32):
            return torch.zeros(*shape, dtype=dtype, device=device)

        self.weights = {
            "qkv": zeros(32, 16), "gate_up": zeros(2, 24, 16), "down": zeros(16, 12), "experts": zeros(4, 8, 16),
            "norm": zeros(16), "scale": zeros(()), "turned": zeros(16, 24), "half": zeros(24, 16, dtype=torch.bfloat16),
            "joined": zeros(40, 16), "sum": zeros(16), "reversed": zeros(16), "repeated": zeros(3, 16),
        }
        self.calls = 0

    def load_weights(self, tensors):
        own = self.weights
        self.calls += 1
        for name, tensor in tensors:
            if name in ("q", "k", "v"):  # fused, of which this rank has the second half
                start, size = {"q": (0, 16), "k": (16, 8), "v": (24, 8)}[name]
                own["qkv"].narrow(0, start, size).copy_(tensor.chunk(2, dim=0)[1])
            elif name == "gate":
                own["gate_up"][0].copy_(tensor)
            elif name == "up":
                own["gate_up"].data[1] = tensor
            elif name == "down":  # columns
                own["down"].copy_(tensor[:, 12:24])
            elif name.startswith("expert."):
                own["experts"][int(name[7:])].copy_(tensor.t())
            elif name == "all_experts":  # split, and turned, where they stand
                for at, part in enumerate(tensor.view(4, 16, 8).unbind(0)):
                    own["experts"][at].copy_(part.transpose(0, 1).contiguous())
            elif name == "norm":
                own["norm"].copy_(tensor.view(1, -1).squeeze(0).to(own["norm"].device))
            elif name == "scale":
                own["scale"].copy_(tensor)
            elif name == "turned":
                own["turned"].copy_(tensor.t().contiguous().reshape(4, 4, 24).flatten(0, 1))
            elif name == "half":
                own["half"].copy_(tensor.to(torch.bfloat16))
            elif name == "repeated":
                own["repeated"].copy_(tensor)
            elif name == "sum":
                own["sum"].copy_(tensor + 1)
            elif name == "looked":
                if tensor.item() > 0:
                    own["scale"].fill_(tensor.item())
            elif name == "reversed":
                own["reversed"].copy_(tensor.flip(0))
            else:
                assert name == "ignored"


SHAPES = {"q": (32, 16), "k": (16, 16), "v": (16, 16), "gate": (24, 16), "up": (24, 16), "down": (16, 24), "norm": (16,),
          "scale": (), "turned": (24, 16), "half": (24, 16), "repeated": (16,), "ignored": (5,),
          **{f"expert.{at}": (16, 8) for at in range(4)}}


def made(shapes, version, device="cpu"):
    words = torch.Generator().manual_seed(version)
    return {name: torch.randn(shape, generator=words).to(device) for name, shape in shapes.items()}


DEVICES = ["cpu"] + (["cuda:0"] if torch.cuda.is_available() else [])


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture
def pair(address, device):
    with ropeway.Sender(address, bucket_bytes=1024) as sender, ropeway.Receiver(device=device) as receiver:
        receiver.connect(address).wait()
        yield sender, receiver


def replay(pair, shapes, device, engine=None, versions=(1, 2)):
    """Sends versions through a captured loader, and compares with one that is run."""
    sender, receiver = pair
    engine, ran = engine or Engine(device), Engine(device)
    loader = ropeway.CapturedLoader(engine.load_weights, engine.weights)
    for version in versions:
        weights = made(shapes, version, device)
        sending = sender.send_weights(version, weights)
        report = loader.load(receiver.next_update().wait(60)).wait(60)
        assert sending.wait(60).count("committed") == 1 and not loader.torn
        ran.load_weights(weights.items())
        for name, wanted in ran.weights.items():
            assert torch.equal(engine.weights[name], wanted), name
    return loader, engine, report


def test_a_whole_loader_is_replayed(pair, device):
    loader, engine, report = replay(pair, SHAPES, device)
    assert engine.calls == 1  # to record
    plan = loader.plan
    assert not plan.by_tensor and report.by_tensor == ()
    assert plan.converted == ("half",) and plan.unused == ("ignored",)
    assert set(plan.replayed) == set(SHAPES) - {"half", "ignored"}
    assert plan.extra_bytes == 24 * 16 * 4


def test_split_and_turned_where_they_stand(pair, device):
    loader, engine, _ = replay(pair, {"all_experts": (64, 8)}, device)
    assert engine.calls == 1 and loader.plan.replayed == ("all_experts",)


def test_what_cannot_be_replayed_falls_back_and_is_named(pair, device):
    shapes = {"norm": (16,), "sum": (16,), "reversed": (16,), "looked": (), "gate": (24, 16)}
    loader, engine, report = replay(pair, shapes, device)
    assert report.by_tensor == ("sum", "reversed", "looked") and loader.plan.replayed == ("norm", "gate")
    assert "computes" in loader.plan.by_tensor["sum"] and loader.plan.extra_bytes == 33 * 4
    assert all(loader.plan.by_tensor[name] for name in report.by_tensor)


def test_other_tensors_are_captured_anew(pair, device):
    sender, receiver = pair
    engine = Engine(device)
    loader = ropeway.CapturedLoader(engine.load_weights, engine.weights)
    for version, shapes in enumerate(({"norm": (16,)}, {"norm": (16,), "scale": ()}, {"norm": (16,)}), 1):
        weights = made(shapes, version, device)
        sending = sender.send_weights(version, weights)
        loader.load(receiver.next_update().wait(60)).wait(60)
        sending.wait(60)
        assert torch.equal(engine.weights["norm"], weights["norm"])
    assert engine.calls == 3


def test_tensors_that_are_put_together(pair, device):
    """A loader that needs several at once: they are stacked and joined on the way."""
    class Joining(Engine):
        def load_weights(self, tensors):
            self.calls += 1
            given = dict(tensors)
            self.weights["joined"].copy_(torch.cat([given["a"], given["b"].t(), given["c"][2:10]]))
            self.weights["experts"].copy_(torch.stack([given[f"e{at}"] for at in range(4)]).transpose(1, 2))
            stacked = torch.stack([given["g"], given["u"]], dim=1).flatten(0, 1).view(24, 2, 16)
            self.weights["gate_up"].copy_(stacked.permute(1, 0, 2))

    shapes = {"a": (16, 16), "b": (16, 16), "c": (16, 16), "g": (24, 16), "u": (24, 16),
              **{f"e{at}": (16, 8) for at in range(4)}}
    sender, receiver = pair
    engine, ran = Joining(device), Joining(device)
    loader = ropeway.CapturedLoader(engine.load_weights, engine.weights)
    for version in (1, 2):
        weights = made(shapes, version, device)
        sending = sender.send_weights(version, weights)
        loader.load(receiver.next_update().wait(60)).wait(60)
        sending.wait(60)
        ran.load_weights(weights.items())
        for name in ("joined", "experts", "gate_up"):
            assert torch.equal(engine.weights[name], ran.weights[name]), name
    assert not loader.plan.by_tensor and engine.calls == 1


def test_a_loader_that_keeps_a_tensor_gets_it_itself(pair, device):
    class Keeping(Engine):
        def load_weights(self, tensors):
            for name, tensor in tensors:
                if name == "norm":
                    self.kept = tensor[3:]
                else:
                    super().load_weights([(name, tensor)])

    engine = Keeping(device)
    sender, receiver = pair
    loader = ropeway.CapturedLoader(engine.load_weights, engine.weights)
    plan = loader.capture([ropeway.TensorInfo("norm", "F32", (16,)), ropeway.TensorInfo("gate", "F32", (24, 16))])
    assert plan.replayed == ("gate",) and "keeps" in plan.by_tensor["norm"]
    weights = made({"norm": (16,), "gate": (24, 16)}, 1, device)
    sending = sender.send_weights(1, weights)
    loader.load(receiver.next_update().wait(60)).wait(60)
    sending.wait(60)
    assert torch.equal(engine.kept, weights["norm"][3:]) and torch.equal(engine.weights["gate_up"][0], weights["gate"])


def test_a_loader_that_fails_after_the_commit_leaves_the_model_torn(pair, device):
    engine = Engine(device)
    sender, receiver = pair
    fails = [True]

    def load_weights(tensors):
        for name, tensor in tensors:
            if tensor.sum() > -1e9 and fails[0]:
                raise RuntimeError("no memory for this")

    loader = ropeway.CapturedLoader(load_weights, engine.weights)
    for version in (1, 2):
        sending = sender.send_weights(version, made({"norm": (16,)}, version, device))
        loading = loader.load(receiver.next_update().wait(60))
        if fails[0]:
            with pytest.raises(RuntimeError, match="no memory"):
                loading.wait(60)
            assert loader.torn
            fails[0] = False
        else:
            loading.wait(60)
        sending.wait(60)
    assert not loader.torn


def test_nothing_is_written_while_it_is_recorded(device):
    engine = Engine(device)
    loader = ropeway.CapturedLoader(engine.load_weights, engine.weights)
    loader.capture([ropeway.TensorInfo(name, "F32", shape) for name, shape in SHAPES.items()])
    assert not any(tensor.any() for tensor in engine.weights.values())


def test_memory_that_is_not_the_models_is_not_taken_for_it(pair, device):
    engine = Engine(device)

    def load_weights(tensors):
        for name, tensor in tensors:
            buffer = torch.empty(tensor.shape, device=device)
            buffer.copy_(tensor)
            engine.weights[name].copy_(buffer)

    loader = ropeway.CapturedLoader(load_weights, engine.weights)
    sender, receiver = pair
    weights = made({"norm": (16,)}, 1, device)
    sending = sender.send_weights(1, weights)
    loader.load(receiver.next_update().wait(60)).wait(60)
    sending.wait(60)
    assert "not the model's" in loader.plan.by_tensor["norm"]
    assert torch.equal(engine.weights["norm"], weights["norm"])


# What a loader does beside copying: (what it does, dtype of the tensors sent, of the model's "w", and why it is not replayed).
# "w" has eight elements and "x" four; sent are "a", of as many as "w", and "b" of two. Shapes of one dimension.
BESIDE = {
    "changes it afterwards": (lambda w, x, a, b: w.copy_(a).mul_(2), "float32", "float32", "changes the model"),
    "copies on within the model": (lambda w, x, a, b: (w.copy_(a), x.copy_(w[:4])), "float32", "float32", "changes the model"),
    "computes from what it has copied": (lambda w, x, a, b: (w.copy_(a), x.copy_(-torch.exp(w[:4]))), "float32", "float32",
                                         "looks at what it has copied"),
    "writes twice to a place": (lambda w, x, a, b: (w.copy_(a), w[1:3].copy_(b)), "float32", "float32", "writes to twice"),
    "and converts once of these": (lambda w, x, a, b: (w.copy_(a), w[1:3].copy_(b.to(torch.bfloat16))), "float32", "float32",
                                   "converted twice"),
    "fills, and copies into that": (lambda w, x, a, b: (w.fill_(7), w[1:3].copy_(b)), "float32", "float32", "writes to twice"),
    "sees bytes as other ones": (lambda w, x, a, b: w.copy_(a.view(torch.float8_e4m3fn)), "uint8", "float32",
                                 "as something else"),
    "writes other ones": (lambda w, x, a, b: w.view(torch.int32).copy_(a), "int32", "float32", "as another dtype"),
    "turns signs": (lambda w, x, a, b: w.copy_(a.conj()), "complex64", "complex64", "as something else"),
    "takes a part of each": (lambda w, x, a, b: w.copy_(a.imag), "complex64", "float32", "as something else"),
}


@pytest.mark.parametrize("what", BESIDE)
def test_what_a_loader_does_beside_copying_is_not_lost(pair, device, what):
    load, sent, held, why = BESIDE[what]
    sender, receiver = pair

    def model():
        return {"w": torch.ones(8, dtype=getattr(torch, held), device=device), "x": torch.ones(4, device=device)}

    def loader_of(own):
        def load_weights(tensors):
            given = dict(tensors)
            if len(given) < 2:  # not all at once: what it is given is looked at by itself
                given = {"a": next(iter(given.values())), "b": next(iter(given.values()))[:2]}
            load(own["w"], own["x"], given["a"], given["b"])
        return load_weights

    own, ran = model(), model()
    loader = ropeway.CapturedLoader(loader_of(own), own)
    spelling = {"float32": "F32", "uint8": "U8", "int32": "I32", "complex64": "C64"}[sent]
    loader.capture([ropeway.TensorInfo(name, spelling, (size,)) for name, size in (("a", 8), ("b", 2))])
    assert all(torch.equal(own[name], fresh) for name, fresh in model().items()), "capturing wrote to the model"
    for version in (1, 2):
        words = torch.Generator().manual_seed(version)
        weights = {name: (torch.randint(1, 90, (size,), generator=words).to(getattr(torch, sent))
                          if not sent.startswith("complex") else torch.randn(size, generator=words, dtype=torch.complex64)
                          ).to(device) for name, size in (("a", 8), ("b", 2))}
        sending = sender.send_weights(version, weights)
        loader.load(receiver.next_update().wait(60)).wait(60)
        assert sending.wait(60).count("committed") == 1 and not loader.torn
        loader_of(ran)(list(weights.items()))
        for name, wanted in ran.items():
            assert torch.equal(own[name].view(torch.uint8), wanted.view(torch.uint8)), name
    assert why in " ".join(loader.plan.by_tensor.values())


def test_what_a_loader_fills_is_filled_at_each_update(pair, device):
    sender, receiver = pair
    own = {"w": torch.ones(2, 6, device=device)}

    def load_weights(tensors):
        for _, tensor in tensors:
            own["w"][:, :4].copy_(tensor)
            own["w"][:, 4:].fill_(7)  # padding

    loader = ropeway.CapturedLoader(load_weights, own)
    loader.capture([ropeway.TensorInfo("a", "F32", (2, 4))])
    assert torch.equal(own["w"].cpu(), torch.ones(2, 6)) and loader.plan.replayed == ("a",)
    for version in (1, 2):
        own["w"][:, 4:] = 0
        weights = {"a": torch.full((2, 4), float(version), device=device)}
        sending = sender.send_weights(version, weights)
        loader.load(receiver.next_update().wait(60)).wait(60)
        sending.wait(60)
        assert own["w"].tolist() == [[version] * 4 + [7, 7]] * 2


def test_a_loader_that_keeps_what_it_made_of_a_tensor_gets_it_itself(pair, device):
    sender, receiver = pair
    kept = {}

    def load_weights(tensors):
        kept.update((name, tensor.clone()) for name, tensor in tensors)

    loader = ropeway.CapturedLoader(load_weights, {"w": torch.zeros(4, device=device)})
    sending = sender.send_weights(1, {"a": torch.arange(4.0, device=device)})
    loader.load(receiver.next_update().wait(60)).wait(60)
    sending.wait(60)
    assert loader.plan.by_tensor == {"a": "the loader keeps it beyond its call"}
    assert kept["a"].tolist() == [0, 1, 2, 3]


# ---- boxes ----

def addresses(shape, offset, strides):
    return [offset + sum(at * stride for at, stride in zip(where, strides))
            for where in itertools.product(*map(range, shape))]


def test_boxes_are_the_copy_they_were_made_of():
    """Random views of random tensors: every element goes from where it was to where it should."""
    words = random.Random(20261126)
    for _ in range(300):
        frame = tuple(words.randint(1, 4) for _ in range(words.randint(1, 4)))
        view = torch.arange(int(torch.tensor(frame).prod())).view(frame)
        for _ in range(words.randint(0, 4)):
            how = words.randrange(5)
            axis = words.randrange(view.dim()) if view.dim() else 0
            if how == 0 and view.dim():
                start = words.randrange(view.shape[axis])
                view = view.narrow(axis, start, words.randint(1, view.shape[axis] - start))
            elif how == 1 and view.dim() > 1:
                view = view.transpose(axis, words.randrange(view.dim()))
            elif how == 2 and view.is_contiguous():
                view = view.flatten()
            elif how == 3:
                view = view.unsqueeze(axis)
            elif how == 4 and view.dim():
                view = view[(slice(None),) * axis + (slice(None, None, 2),)]
        shape = tuple(view.shape)
        strides = _boxes.row_major(shape)
        copy = _boxes.Copy(shape, 7, strides, view.storage_offset(), tuple(view.stride()))
        moved = {}
        for box in _boxes.boxes(frame, copy):
            of = addresses(box.shape, sum(a * b for a, b in zip(box.start, _boxes.row_major(frame))),
                           _boxes.row_major(frame))
            to = addresses(box.shape, box.to, box.to_strides)
            assert all(a + b <= c for a, b, c in zip(box.start, box.shape, frame))
            assert not set(to) & set(moved)
            moved.update(zip(to, of))
        assert moved == dict(zip(addresses(shape, 7, strides), view.flatten().tolist()))


def test_too_many_boxes_are_no_plan():
    copy = _boxes.Copy((5000,), 0, (1,), 0, (2,))
    with pytest.raises(_boxes.TooMany):
        _boxes.boxes((10000,), copy)
