"""The weight-transfer files that vLLM and verl publish, as a benchmark meets them: without their engines.

Either package is taken from where it is installed, or else its files from a folder that has them in their places
(vllm/distributed/weight_transfer/ipc_engine.py, base.py and packed_tensor.py; verl/workers/rollout/vllm_rollout/
bucketed_weight_transfer.py). Files from a folder run as they are; what they import beside torch and zmq is replaced by the
few names below, none of which does any work: layerwise reloading, in vLLM, is left out, and no RPC framework is in
between. Both are faster here than where they come from.
"""
import base64
import contextlib
import functools
import hashlib
import importlib
import importlib.util
import pathlib
import re
import sys
import types

VLLM_FILES = ("base", "packed_tensor", "ipc_engine")
VERL_FILE = "verl/workers/rollout/vllm_rollout/bucketed_weight_transfer.py"


class Missing(Exception):
    """A peer's files are neither installed nor in the folder."""


def _module(name, **names):
    module = types.ModuleType(name)
    module.__path__ = []  # a package, for what is in it
    vars(module).update(names)
    sys.modules[name] = module
    return module


def _file(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _installed(package):
    """Its version, if it is there by itself."""
    if importlib.util.find_spec(package) is None:
        return None
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _words(path):
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _said(package, version, modules, shim):
    """What ran, for people and for lines of JSON: files as they lie in the package, with the start of their SHA-256."""
    files = {}
    for module in modules:
        path = pathlib.Path(module.__file__)
        name = "/".join(module.__name__.split(".")[:-1] + [path.name])
        files[name] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return {"package": package, "version": version, "shim": shim, "files": files}


@functools.cache
def vllm(folder):
    """(the module ipc_engine, what ran)."""
    name = "vllm.distributed.weight_transfer"
    version = _installed("vllm") if folder is None else None
    if version is not None:
        engine = importlib.import_module(f"{name}.ipc_engine")
        return engine, _said("vllm", version, [engine], False)
    place = pathlib.Path(folder or ".", *name.split("."))
    if folder is None or not (place / "ipc_engine.py").is_file():
        raise Missing(f"vLLM is not installed, and {place}/ipc_engine.py is not there: give --peers FOLDER")
    for package in ("vllm", "vllm.distributed", name, "vllm.model_executor", "vllm.model_executor.model_loader"):
        _module(package)
    _module("vllm.envs", VLLM_ALLOW_INSECURE_SERIALIZATION=False)
    sys.modules["vllm"].envs = sys.modules["vllm.envs"]
    _module("vllm.config", VllmConfig=object)
    _module("vllm.config.parallel", ParallelConfig=object)
    _module("vllm.config.weight_transfer", WeightTransferConfig=object)
    _module("vllm.platforms", current_platform=None)  # older files ask it for streams, for NCCL alone
    _module("vllm.model_executor.model_loader.reload", initialize_layerwise_reload=lambda model: None,
            finalize_layerwise_reload=lambda model, config: None)
    _module("vllm.model_executor.model_loader.mtp_validation",
            disable_mtp_completeness_check=contextlib.nullcontext)
    if importlib.util.find_spec("pybase64") is None:
        sys.modules["pybase64"] = base64
    loaded = [_file(f"{name}.{file}", place / f"{file}.py") for file in VLLM_FILES if (place / f"{file}.py").is_file()]
    words = _words(place.parents[1] / "_version.py")
    version = re.search(r"__version__ = version = '([^']*)'", words)
    commit = re.search(r"__commit_id__ = commit_id = '([^']*)'", words)
    said = f"{version[1] if version else 'unknown'}{f' ({commit[1]})' if commit else ''}"
    return loaded[-1], _said("vllm", said, loaded, True)


async def _ensure_async_iterator(iterable):
    if hasattr(iterable, "__aiter__"):
        async for one in iterable:
            yield one
    else:
        for one in iterable:
            yield one


@functools.cache
def verl(folder, kind="cuda"):
    """(the module bucketed_weight_transfer, what ran); `kind` is that of torch's devices."""
    name = VERL_FILE[:-3].replace("/", ".")
    version = _installed("verl") if folder is None else None
    if version is not None:
        module = importlib.import_module(name)
        return module, _said("verl", version, [module], False)
    place = pathlib.Path(folder or ".", VERL_FILE)
    if folder is None or not place.is_file():
        raise Missing(f"verl is not installed, and {place} is not there: give --peers FOLDER")
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # where zmq may lie
    import torch

    cuda = kind == "cuda"
    nothing = types.SimpleNamespace(synchronize=lambda: None, ipc_collect=lambda: None, empty_cache=lambda: None)
    parts = name.split(".")
    for depth in range(1, len(parts)):
        _module(".".join(parts[:depth]))
    _module("verl.utils")
    _module("verl.utils.device", get_device_id=torch.cuda.current_device if cuda else lambda: 0,
            get_device_name=lambda: kind, get_torch_device=lambda: torch.cuda if cuda else nothing,
            is_support_ipc=lambda: cuda)
    _module("verl.workers.rollout.utils", ensure_async_iterator=_ensure_async_iterator)
    module = _file(name, place)
    version = _words(pathlib.Path(folder, "verl", "version", "version")).strip() or "unknown"
    return module, _said("verl", version, [module], True)


class _Shared:
    """A tensor in shared host memory, where a CUDA IPC handle would be."""

    def __init__(self, tensor):
        self.tensor = tensor.share_memory_()


def _rebuilt(shared, *_):
    return shared.tensor


def ipc_on_the_host():
    """Replaces CUDA IPC by shared host memory, so that the program can be tried where no GPU is."""
    import torch
    from torch.multiprocessing import reductions

    reductions.reduce_tensor = lambda tensor: (_rebuilt, (_Shared(tensor), 0, 0, 0, 0, 0, 0))
    reductions.rebuild_cuda_tensor = _rebuilt
    torch.cuda.get_device_properties = lambda _: types.SimpleNamespace(uuid="host")
    torch.cuda.ipc_collect = lambda: None
    empty = torch.empty
    torch.empty = lambda *size, **how: empty(*size, **{**how, "device": "cpu"} if how.get("device") == "cuda" else how)
    torch.accelerator.current_device_index = lambda: 0
    torch.accelerator.synchronize = lambda: None
    torch.accelerator.current_stream = lambda: types.SimpleNamespace(synchronize=lambda: None)
