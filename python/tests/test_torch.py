"""torch's tensors, modules and loaders, on the host and, where there is one, on a CUDA device."""
from __future__ import annotations

import gc

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.multiprocessing.reductions import StorageWeakRef  # noqa: E402

import ropeway  # noqa: E402

DEVICES = ["cpu", pytest.param("cuda:0", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))]


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


class Model(torch.nn.Module):
    def __init__(self, device, dtype=torch.float32, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = torch.nn.Embedding(50, 16, device=device, dtype=dtype)
        self.up = torch.nn.Linear(16, 40, device=device, dtype=dtype)
        self.head = torch.nn.Linear(40, 50, bias=False, device=device, dtype=dtype)
        self.tied = torch.nn.Linear(16, 50, bias=False, device=device, dtype=dtype)
        self.tied.weight = self.embed.weight
        self.norm = torch.nn.BatchNorm1d(40, device=device, dtype=dtype)

    def forward(self, tokens):
        return self.head(self.norm(torch.relu(self.up(self.embed(tokens)))))


@pytest.fixture
def pair(address, device):
    with ropeway.Sender(address, bucket_bytes=4096) as sender, ropeway.Receiver(device=device) as receiver:
        receiver.connect(address).wait()
        yield sender, receiver


def send(pair, version, tensors, into, **how):
    sender, receiver = pair
    sending = sender.send_weights(version, tensors, **how)
    report = receiver.next_update().wait().load_into(into).wait()
    assert sending.wait().count("committed") == 1
    return report


def test_a_module_gives_and_takes_its_weights(pair, device):
    source, into = Model(device, seed=1).eval(), Model(device, seed=2).eval()
    places = ropeway.Destinations(into)
    tokens = torch.arange(8, device=device)
    for version in (1, 2, 3):
        with torch.no_grad():
            for parameter in source.parameters():
                parameter.mul_(1.01).add_(0.001)
        send(pair, version, source, places)
        with torch.no_grad():
            assert torch.equal(source(tokens), into(tokens))  # bit by bit


AS_IT_IS = {"module": lambda module: module, "state dict": lambda module: module.state_dict()}


@pytest.mark.parametrize("taken", AS_IT_IS)
@pytest.mark.parametrize("sent", AS_IT_IS)  # a module's tied weights go once, a state dict's twice
def test_tied_weights_on_both_sides(pair, device, sent, taken):
    source, into = Model(device, seed=1), Model(device, seed=2)
    places = ropeway.Destinations(AS_IT_IS[taken](into))
    for version in (1, 2):
        with torch.no_grad():
            source.embed.weight.add_(version)
        send(pair, version, AS_IT_IS[sent](source), places)
        wanted = source.state_dict()
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in into.state_dict().items())
        assert into.tied.weight is into.embed.weight and not places.torn


class Scaled(torch.nn.Linear):
    """Has something in its state dict that is no tensor."""

    def get_extra_state(self):
        return {"scale": 3.0}

    def set_extra_state(self, state):
        raise AssertionError("nobody sends it")


def test_extra_state_is_left_out_of_modules_and_named_elsewhere(pair, device):
    source, into = (torch.nn.Sequential(Scaled(4, 4, device=device)) for _ in range(2))
    send(pair, 1, source, into)
    assert torch.equal(source[0].weight, into[0].weight)
    for refused in (lambda: pair[0].send_weights(2, source.state_dict()), lambda: pair[0].prepare(source.state_dict()),
                    lambda: ropeway.Destinations(into.state_dict())):
        with pytest.raises(TypeError, match="'0._extra_state' is a module's extra state.*leave it out"):
            refused()


def test_all_dtypes(pair, device):
    names = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64", "complex64",
             "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float8_e4m3fnuz"]
    dtypes = [getattr(torch, name) for name in names if hasattr(torch, name)]
    source = {str(dtype): torch.randint(0, 2, (31 * dtype.itemsize,), dtype=torch.uint8, device=device).view(dtype)
              for dtype in dtypes}
    into = {name: torch.zeros(tensor.numel() * tensor.itemsize, dtype=torch.uint8, device=device).view(tensor.dtype)
            for name, tensor in source.items()}
    send(pair, 1, source, into)
    held = {}

    def load_weights(tensors):
        for name, tensor in tensors:
            held[name] = tensor.clone()

    sender, receiver = pair
    sending = sender.send_weights(2, source)
    receiver.next_update().wait().load_with(load_weights, tensors="torch").wait()
    sending.wait()
    for taken in (into, held):
        for name, tensor in source.items():
            assert taken[name].dtype == tensor.dtype and taken[name].device == tensor.device
            assert torch.equal(taken[name].view(torch.uint8), tensor.view(torch.uint8)), name


def test_strides_views_and_large_tensors(pair, device):
    whole = torch.randn(20, 30, 40, device=device)
    source = {"permuted": whole.permute(2, 0, 1), "rows": whole[::2], "expanded": whole[:1].expand(5, 30, 40),
              "scalar": whole[0, 0, 0], "empty": whole[:0], "grad": whole.clone().requires_grad_()}
    into = {name: torch.zeros(tensor.shape, device=device) for name, tensor in source.items()}
    into["permuted"] = torch.zeros(30, 20, 40, device=device).permute(2, 1, 0)
    send(pair, 1, source, into)
    assert all(torch.equal(into[name], tensor.detach()) for name, tensor in source.items())


def test_casts(pair, device):
    source = {"w": torch.cat([torch.randn(1000, device=device), torch.tensor([float("inf"), float("nan")], device=device)])}
    into = {"w": torch.zeros(1002, dtype=torch.bfloat16, device=device)}
    send(pair, 1, source, into, cast=torch.bfloat16)
    assert torch.equal(into["w"][:1001].view(torch.int16), source["w"][:1001].bfloat16().view(torch.int16))
    assert bool(into["w"][1001].isnan())
    back = {"w": torch.zeros(1002, device=device)}
    send(pair, 2, into, back, cast="float32")
    assert torch.equal(back["w"][:1001], into["w"][:1001].float())


def test_memory_that_a_parameter_had_is_kept_until_it_was_read(address):
    with ropeway.Sender(address) as sender, ropeway.Receiver() as receiver:
        receiver.connect(address).wait()
        parameter = torch.nn.Parameter(torch.ones(100000))
        sending = sender.send_weights(1, {"w": parameter})
        parameter.data = torch.zeros(100000)
        into = {"w": torch.zeros(100000)}
        receiver.next_update().wait().load_into(into).wait()
        sending.wait()
        assert (into["w"] == 1).all()


def test_a_parameter_that_moved_is_sent_from_where_it_is(pair, device):
    parameter = torch.nn.Parameter(torch.ones(1000, device=device))
    into = {"w": torch.zeros(1000, device=device)}
    places = ropeway.Destinations(into)
    for version in range(1, 5):
        send(pair, version, {"w": parameter}, places)
        assert (into["w"] == version).all()
        parameter.data = torch.full((1000,), version + 1.0, device=device)


class Spied:
    """A sender's core, and how many sends recognised their tensors."""

    def __init__(self, core):
        self._core, self.again, self.anew = core, 0, 0

    def __getattr__(self, name):
        return getattr(self._core, name)

    def send_again(self, *arguments):
        found = self._core.send_again(*arguments)
        self.again += found is not None
        return found

    def prepare(self, sources):
        self.anew += 1
        return self._core.prepare(sources)


def test_tensors_that_are_sent_again_are_recognised(pair, device):
    sender, _ = pair
    sender._core = spied = Spied(sender._core)
    weights = {"w.0": torch.randn(30, 20, device=device), "w.1": torch.randn(30, 20, device=device),
               "turned": torch.randn(8, 6, device=device).t(), "b": torch.nn.Parameter(torch.randn(7, device=device)),
               "empty": torch.zeros(0, device=device)}
    into = {name: torch.zeros(tensor.shape, device=device) for name, tensor in weights.items()}
    version = 0

    def sent(what, again, **how):
        nonlocal version
        version += 1
        before = spied.again, spied.anew
        with torch.no_grad():
            for tensor in weights.values():
                tensor.mul_(2)
        send(pair, version, what, into, **how)
        assert all(torch.equal(into[name], tensor) for name, tensor in weights.items())
        assert (spied.again - before[0], spied.anew - before[1]) == ((1, 0) if again else (0, 1))

    sent(weights, False)
    for what in (weights, list(weights.items()), iter(weights.items()), dict(weights)):
        sent(what, True)
    names = [name.encode().decode() for name in weights]  # other strings that say the same
    assert names[0] is not next(iter(weights))
    sent(dict(zip(names, weights.values())), True)
    # Anything that is not as it was is looked at.
    weights["b"].data = torch.randn(7, device=device)
    sent(weights, False)
    sent(weights, True)
    weights["turned"] = weights["turned"].contiguous()
    sent(weights, False)
    sent(dict(reversed(weights.items())), False)
    sent(weights, False)
    weights["w.0"] = weights["w.0"].view(30, 20)  # another object, of the same memory
    sent(weights, True)
    sent(weights, False, cast=lambda name, dtype: None)
    sent(weights, False)
    names = list(weights)
    weights = dict(zip([names[1], names[0], *names[2:]], weights.values()))  # w.0's memory is w.1's, and the reverse
    sent(weights, False)
    weights["w.0"].resize_(20, 20)
    into["w.0"].resize_(20, 20)
    sent(weights, False)


def test_what_is_recognised_is_read_as_its_memory_is(pair, device):
    """Values that are negated when they are read do not show in the memory."""
    sender, _ = pair
    weights, into = {"w": torch.ones(5, device=device)}, {"w": torch.zeros(5, device=device)}
    send(pair, 1, weights, into)
    negated = {"w": torch._neg_view(weights["w"])}
    assert negated["w"].data_ptr() == weights["w"].data_ptr()
    with pytest.raises(TypeError, match="negated"):
        sender.send_weights(2, negated)
    weights["w"].data = negated["w"]  # the same object
    with pytest.raises(TypeError, match="negated"):
        sender.send_weights(3, weights)


def test_nothing_of_what_was_recognised_is_kept(address):
    with ropeway.Sender(address) as sender, ropeway.Receiver() as receiver:
        receiver.connect(address).wait()
        weights, into = {"w": torch.ones(1000)}, {"w": torch.zeros(1000)}
        for version in (1, 2):
            sending = sender.send_weights(version, weights)
            receiver.next_update().wait().load_into(into).wait()
            sending.wait()
        gone = StorageWeakRef(weights["w"].untyped_storage())
        del weights, sending
        gc.collect()
        assert gone.expired()


def test_memory_that_a_parameter_had_is_kept_also_when_it_was_recognised(address):
    with ropeway.Sender(address) as sender, ropeway.Receiver() as receiver:
        receiver.connect(address).wait()
        parameter, into = torch.nn.Parameter(torch.ones(100000)), {"w": torch.zeros(100000)}
        for version in (1, 2):
            sending = sender.send_weights(version, {"w": parameter})
            if version == 2:
                parameter.data = torch.zeros(100000)
            receiver.next_update().wait().load_into(into).wait()
            sending.wait()
            assert (into["w"] == 1).all()


@pytest.mark.parametrize("make, words", [
    (lambda: torch.zeros(3, dtype=torch.complex64).conj(), "resolve_conj"),
    (lambda: torch.zeros(3, 3).to_sparse(), "layout"),
    (lambda: torch.zeros(3, device="meta"), "meta"),
    (lambda: torch.zeros(3, dtype=torch.complex128), "dtype"),
])
def test_what_cannot_be_carried(address, make, words):
    with ropeway.Sender(address) as sender, pytest.raises(TypeError, match=words):
        sender.send_weights(1, {"w": make()})


def test_numpy_to_torch_and_back(pair, device):
    if device != "cpu":
        pytest.skip("numpy's memory is the host's")
    into = {"w": torch.zeros(3, 4)}
    send(pair, 1, {"w": np.arange(12, dtype=np.float32).reshape(3, 4)}, into)
    taken = {"w": np.zeros((3, 4), np.float32)}
    send(pair, 2, into, taken)
    assert (taken["w"] == np.arange(12).reshape(3, 4)).all()


def test_a_loader_that_keeps_a_view_is_told(pair, device):
    sender, receiver = pair
    source = {"first": torch.ones(100, device=device), "second": torch.zeros(2000, device=device)}
    kept = []
    sending = sender.send_weights(1, source)
    update = receiver.next_update().wait()
    with pytest.raises(ropeway.ReleasedError, match="first"):
        update.load_with(lambda tensors: kept.extend(tensor[10:20] for _, tensor in tensors), tensors="torch").wait()
    with pytest.raises(ropeway.TransferError):
        sending.wait(30)
    assert (kept[0] == 1).all()
    kept.clear()
    into = {name: torch.zeros_like(tensor) for name, tensor in source.items()}
    send(pair, 2, source, into)
    assert (into["first"] == 1).all()


def test_a_loader_with_modules_of_its_own(pair, device):
    """As engines do it: names are changed, tensors are stacked and split."""
    sender, receiver = pair
    q, k = torch.randn(16, 16, device=device), torch.randn(8, 16, device=device)
    fused = torch.zeros(24, 16, device=device)

    def load_weights(tensors):
        for name, tensor in tensors:
            fused.narrow(0, 0 if name == "q_proj.weight" else 16, tensor.shape[0]).copy_(tensor)

    for version in (1, 2):
        sending = sender.send_weights(version, {"q_proj.weight": q, "k_proj.weight": k})
        receiver.next_update().wait().load_with(load_weights).wait()
        sending.wait()
        assert torch.equal(fused, torch.cat([q, k]))
        q.add_(1)


# ---- with a CUDA device ----

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@cuda
def test_weights_of_a_slow_kernel_are_waited_for(address):
    with ropeway.Sender(address) as sender, ropeway.Receiver(device="cuda:0") as receiver:
        receiver.connect(address).wait()
        source, into = torch.zeros(1 << 20, device="cuda"), torch.zeros(1 << 20, device="cuda")
        places = ropeway.Destinations({"w": into})
        for side in (torch.cuda.current_stream(), torch.cuda.Stream()):
            for version in (1, 2, 3):
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    torch.cuda._sleep(50_000_000)
                    source.fill_(version)
                    sending = sender.send_weights(version, {"w": source})
                    receiver.next_update().wait().load_into(places).wait()
                    sending.wait()
                    assert bool((into == version).all())


@cuda
def test_a_slow_reader_sees_old_bytes_only(address):
    with ropeway.Sender(address) as sender, ropeway.Receiver(device="cuda:0") as receiver:
        receiver.connect(address).wait()
        source, into = torch.ones(1 << 20, device="cuda"), torch.zeros(1 << 20, device="cuda")
        torch.cuda._sleep(100_000_000)
        seen = into.clone()
        sending = sender.send_weights(1, {"w": source})
        receiver.next_update().wait().load_into({"w": into}).wait()
        sending.wait()
        assert not bool(seen.any()) and bool(into.all())


@cuda
def test_the_callers_device_and_graphs_are_left_alone(address):
    model, into = Model("cuda:0", seed=1).eval(), Model("cuda:0", seed=2).eval()
    tokens = torch.arange(8, device="cuda")
    side = torch.cuda.Stream()
    with torch.no_grad(), torch.cuda.stream(side):
        for _ in range(3):
            into(tokens)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        answer = into(tokens)
    places = ropeway.Destinations(into)
    with ropeway.Sender(address) as sender, ropeway.Receiver(device="cuda:0") as receiver:
        receiver.connect(address).wait()
        before = torch.cuda.current_device(), torch.cuda.current_stream()
        for version in (1, 2):
            with torch.no_grad():
                model.up.weight.mul_(2)
            sending = sender.send_weights(version, model)
            receiver.next_update().wait().load_into(places).wait()
            sending.wait()
            graph.replay()
            with torch.no_grad():
                assert torch.equal(answer, model(tokens))
        assert before == (torch.cuda.current_device(), torch.cuda.current_stream())
