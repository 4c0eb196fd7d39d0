"""A second device without hardware: its tensors compute on the CPU, and refuse what CUDA would refuse.

Inside ``with second_device():`` the device "second:0" exists. Every operation runs on the CPU below, so that
results must equal the CPU's to the last bit; but a RuntimeError names the operation in which a tensor of the
device meets one of the CPU (with an axis, or as an index that CUDA takes from its own memory only) or the CPU's
generator. ``READS`` counts, by operation, what makes a host wait for a GPU: values read, shapes that depend on
values, copies to the CPU. Made by PyTorch's hook for backends written in Python. FakeTensorMode finds none of
these faults: it lets a CPU index pass, and cannot run what reads values. There is no autocast here, and rounding
is not a GPU's.
"""

import contextlib
import copy
from collections import Counter

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

_aten = torch.ops.aten
READS: Counter = Counter()
_COPIES = {_aten.copy_.default, _aten._to_copy.default, _aten._foreach_copy_.default}
_CPU_INDEX_ALLOWED = {"index", "index_put", "_index_put_impl"}  # written x[i]
_OWN_INDEX = set(  # of no axis either
    """
    embedding gather index_add index_copy index_fill index_reduce index_select masked_fill masked_scatter
    masked_select scatter scatter_add scatter_reduce take take_along_dim
    """.split()
)
_WAITS = {"_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "unique_dim", "_unique2"}


class SecondTensor(torch.Tensor):
    """A tensor of the second device, beside the CPU tensor that holds its values."""

    @staticmethod
    def __new__(cls, values):
        new = torch.Tensor._make_wrapper_subclass(
            cls, values.size(), strides=values.stride(), storage_offset=values.storage_offset(),
            dtype=values.dtype, device=DEVICE,
        )  # fmt: skip
        new.values_on_cpu = values
        return new

    __torch_function__ = torch._C._disabled_torch_function_impl  # PyTorch asks whether a class has its own

    @property
    def data(self):
        return super().data

    @data.setter
    def data(self, other):
        self.values_on_cpu = other.values_on_cpu
        torch.Tensor.data.__set__(self, other)

    def __repr__(self):
        return f"second {self.values_on_cpu}"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _dispatch(function, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __enter__(self):
        MODULE.active = True
        return super().__enter__()

    def __exit__(self, *error):
        MODULE.active = False
        return super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _dispatch(function, args, kwargs or {})


class _Module(_DummyBackendModule):
    """``torch.second``: a random state of its own, which has to be asked for by the device."""

    active = False  # DataParallel takes any device that is there

    def __init__(self):
        self.state = torch.Generator().manual_seed(0).get_state()

    def is_available(self):
        return self.active

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]

    def get_rng_state(self, device):
        assert torch.device(device) == DEVICE
        return self.state.clone()

    def set_rng_state(self, state, device):
        assert torch.device(device) == DEVICE
        self.state = state.clone()

    @contextlib.contextmanager
    def drawing(self):
        """What is drawn from the CPU's default generator comes from the device's."""
        before = torch.get_rng_state()
        torch.set_rng_state(self.state)
        yield
        self.state = torch.get_rng_state()
        torch.set_rng_state(before)


def _wrapped(tensor):
    return tensor if isinstance(tensor, SecondTensor) else SecondTensor(tensor)


def _on_cpu(tree):
    return tree_map_only(SecondTensor, lambda tensor: tensor.values_on_cpu, tree)


def _refuse(function, name, leaves):
    """Raise RuntimeError for what CUDA does not take beside tensors of its own."""
    for leaf in leaves:
        if isinstance(leaf, torch.Generator):
            raise RuntimeError(f"{function}: a generator of the CPU draws for the device.")
        if not isinstance(leaf, torch.Tensor) or isinstance(leaf, SecondTensor) or function in _COPIES:
            continue
        index = not leaf.is_floating_point()
        allowed = index and name in _CPU_INDEX_ALLOWED
        if (index and name in _OWN_INDEX) or (leaf.ndim and not allowed):
            raise RuntimeError(f"{function}: a CPU tensor {tuple(leaf.shape)} meets tensors of the device.")


def _waits(function, name, args, leaves, on_device):
    """Whether the host waits for the device: it reads a value, or has to know how many there are."""
    to_cpu = function in _COPIES and not (isinstance(args[0], SecondTensor) if name == "copy_" else on_device)
    masks = name in _CPU_INDEX_ALLOWED and any(  # x[mask]
        isinstance(leaf, SecondTensor) and leaf.dtype in (torch.bool, torch.uint8) for leaf in tree_leaves(args[1])
    )
    return name in _WAITS or to_cpu or masks


def _one_by_one(function, args, kwargs):
    """As PyTorch does where a list holds tensors of several devices."""
    outs = []
    for i in range(len(args[0])):
        out = function(*([arg[i]] if isinstance(arg, list | tuple) else arg for arg in args), **kwargs)
        outs += out if isinstance(out, list | tuple) else []
    return outs or None


def _dispatch(function, args, kwargs):
    name = function._schema.name.removeprefix("aten::")
    plain = name.rstrip("_")
    leaves = tree_leaves((args, kwargs))
    if name.startswith("_foreach_") and len({isinstance(tensor, SecondTensor) for tensor in args[0]}) == 2:
        return _one_by_one(function, args, kwargs)
    ours = any(isinstance(leaf, SecondTensor) for leaf in leaves)
    asked = kwargs.get("device")
    on_device = ours if asked is None else torch.device(asked).type == DEVICE.type
    if ours and _waits(function, name, args, leaves, on_device):
        READS[name] += 1
    if on_device:
        _refuse(function, plain, leaves)
    options = _on_cpu(kwargs) | ({} if asked is None else {"device": torch.device("cpu")})
    draws = on_device and torch.Tag.nondeterministic_seeded in function.tags
    with MODULE.drawing() if draws else contextlib.nullcontext():
        out = function(*_on_cpu(args), **options)
    if not on_device:
        return out
    given = {id(_on_cpu(leaf)): leaf for leaf in leaves if isinstance(leaf, torch.Tensor)}
    return tree_map_only(torch.Tensor, lambda tensor: given.get(id(tensor), _wrapped(tensor)), out)


MODULE = _Module()
_setup_privateuseone_for_python_backend("second", backend_module=MODULE)
DEVICE = torch.device("second:0")
_library = torch.library.Library("aten", "IMPL")  # what PyTorch calls below Python to make or fill a tensor


def _implement(name):
    return lambda function: _library.impl(name, function, "PrivateUse1")


@_implement("empty.memory_format")
def _empty(size, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    return SecondTensor(torch.empty(size, dtype=dtype, device="cpu"))


@_implement("empty_strided")
def _empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None):
    return SecondTensor(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))


@_implement("copy_")
def _copy(target, source, non_blocking=False):
    _on_cpu(target).copy_(_on_cpu(source))
    return target


second_device = _Mode


def to_second(tree):
    """Copy tensors, or a module with its ties, to the device. ``module.to`` would give each name its own copy."""
    if not isinstance(tree, nn.Module):
        return tree_map_only(torch.Tensor, lambda tensor: tensor.to(DEVICE), tree)
    model, moved = copy.deepcopy(tree), {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    if id(tensor) not in moved:
                        new = SecondTensor(tensor.detach().clone())
                        parameter = isinstance(tensor, nn.Parameter)
                        moved[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if parameter else new
                    tensors[name] = moved[id(tensor)]
    return model


def to_cpu(tree):
    """Copy tensors back."""
    return tree_map_only(torch.Tensor, lambda tensor: tensor.detach().cpu(), tree)


def reads(function, *args, **options):
    """Count the waits of the host in a call."""
    before = READS.total()
    function(*args, **options)
    return READS.total() - before
