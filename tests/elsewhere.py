"""A device that computes on the CPU and is none, for tests of what is to run on a GPU.

As on a GPU, tensors of two devices do not meet in one operation, and NumPy does not see into them; but values are those
of the CPU bit for bit. `torch.tensor` cannot make tensors there, nor is there `tensor.data = ...`, by which a training
changes the memory format.
"""

from collections import Counter

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map_only

NAME = "elsewhere"
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
RAN = Counter()  # the operations that ran there, by name
INDEXED = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default)  # also by indices on the CPU


class Elsewhere(Tensor):
    """A tensor on that device; `here` is what it holds."""

    here: Tensor

    @staticmethod
    def __new__(cls, here):
        made = Tensor._make_wrapper_subclass(
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            layout=here.layout,
            device=torch.device(NAME, 0),
        )
        made.here = here
        return made

    def tolist(self):
        return self.here.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Module:
    """What torch asks of `torch.elsewhere`: none is there for whoever takes all that there are."""

    def is_available(self):
        return False

    def is_initialized(self):
        return True

    def device_count(self):
        return 0

    def current_device(self):
        return 0

    def manual_seed_all(self, seed):
        """There are no generators."""

    def _is_in_bad_fork(self):
        return False


def register():
    """Make the device known to torch, once in a process; it is known as long as what this gives is kept."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
    library = torch.library.Library("_", "IMPL")
    library.fallback(lambda func, *args, **kwargs: _run(func, args, kwargs), "PrivateUse1")  # what has no tensors yet
    return library


def _run(func, args, kwargs):
    """`func` on the CPU, its result on the device where it belongs."""
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        return func.decompose(*args, **kwargs)
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    own = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
    if func not in (*COPIES, *INDEXED) and own and any(t.dim() and not isinstance(t, Elsewhere) for t in tensors):
        raise RuntimeError(f"{func}: tensors are on several devices: {[(t.shape, t.device) for t in tensors]}")
    RAN[func.name()] += 1
    device = kwargs.get("device") or tensors[0].device
    args, kwargs = tree_map_only(Elsewhere, lambda tensor: tensor.here, (args, kwargs))
    result = func(*args, **kwargs | ({"device": "cpu", "pin_memory": False} if "device" in kwargs else {}))
    known = {id(tensor.here): tensor for tensor in own}  # of operations in place

    def placed(tensor):
        return known[id(tensor)] if id(tensor) in known else Elsewhere(tensor)

    return tree_map_only(Tensor, placed, result) if torch.device(device).type == NAME else result
