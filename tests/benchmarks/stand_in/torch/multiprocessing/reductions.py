import torch


def rebuild(path, first, size, dtype):
    return torch.Tensor(torch.Memory(0, path), first, size, getattr(torch, dtype))


def reduce_tensor(tensor):
    if torch.BREAKS == "export" and tensor.dtype is torch.bfloat16:
        raise RuntimeError("the stand-in exports no tensor")
    return rebuild, (tensor.memory.path, tensor.first, tensor.size, tensor.dtype.name)
