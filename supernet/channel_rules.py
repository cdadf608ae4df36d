"""What torch's functions do to channels: the rules by which `supernet.channels` follows a forward pass.

A rule takes the tracer, the result of a call and its arguments. It ties and fixes labels, and returns the labels of the
result, or a list of them for several results; None where it cannot tell, which fixes the labels of all arguments.
A function without a rule is one that cannot be told.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from supernet.channels import Tracer

# B batch, C channels, O output channels, I input channels, K kernel size

FIXED = 0  # the label of every dimension that stays as it is
Labels = tuple[int, ...]  # a label for every dimension of a tensor


def rule_for(name: str, result: object, args: tuple, kwargs: dict) -> Callable | None:
    """The rule for a call of the function `name`; None for an unknown function, or an unknown way of calling it."""
    rule = _RULES.get(name)
    if rule is not None:
        try:
            inspect.signature(rule).bind(None, result, *args, **kwargs)
        except TypeError:
            return None
    return rule


def convolution(
    t: Tracer, result: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, *args, **options
) -> Labels:
    groups = options.get("groups", args[3] if len(args) > 3 else 1)
    outputs, inputs, *kernel = t.labels(weight)
    t.fix(kernel)
    channels = t.labels(x)[1]
    if groups == 1:
        t.tie(inputs, channels)
        t.use(weight, result[0, 0].numel(), outputs)
    elif groups == x.shape[1] == result.shape[1]:  # depthwise
        t.tie(outputs, channels)
        t.use(weight, result[0, 0].numel())
    else:
        t.fix((inputs, outputs, channels))
        t.use(weight, result[0, 0].numel())
    if bias is not None:
        t.tie(t.labels(bias)[0], outputs)
    return (FIXED, outputs, *(FIXED for _ in kernel))


def linear(t: Tracer, result: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Labels:
    outputs, inputs = t.labels(weight)
    *others, channels = t.labels(x)
    t.tie(inputs, channels)
    t.use(weight, result.numel() // result.shape[0] // result.shape[-1], outputs)
    if bias is not None:
        t.tie(t.labels(bias)[0], outputs)
    return (*others, outputs)


def batch_norm(t: Tracer, result: Tensor, x: Tensor, *args, **options) -> Labels:
    channels = t.labels(x)[1]
    for vector in [*args, *options.values()]:
        if isinstance(vector, Tensor):
            t.tie(t.labels(vector)[0], channels)
    t.scale(options.get("weight", args[2] if len(args) > 2 else None), channels)
    return t.labels(x)


def layer_norm(
    t: Tracer, result: Tensor, x: Tensor, shape: Sequence[int], weight: Tensor | None = None, *args, **options
) -> Labels | None:
    if weight is None or len(shape) > 1:
        return None
    channels = t.labels(x)[-1]
    for vector in [weight, *args, *options.values()]:
        if isinstance(vector, Tensor):
            t.tie(t.labels(vector)[0], channels)
    return t.labels(x)


def elementwise(t: Tracer, result: Tensor, *args, **options) -> Labels:
    labels = [FIXED] * result.dim()
    first = [True] * result.dim()
    for tensor in [a for a in [*args, *options.values()] if isinstance(a, Tensor)]:
        for dim in range(-tensor.dim(), 0):
            if tensor.shape[dim] > 1:
                label = t.labels(tensor)[dim]
                labels[dim] = label if first[dim] else t.tie(label, labels[dim])
                first[dim] = False
    return tuple(labels)


def channelwise(t: Tracer, result: Tensor, x: Tensor, *args, **options) -> Labels:
    """A function of every channel of [B, C, ...] on its own."""
    t.fix(t.labels(x)[2:])
    return (*t.labels(x)[:2], *(FIXED for _ in result.shape[2:]))


def padding(t: Tracer, result: Tensor, x: Tensor, pad: Sequence[int], *args, **options) -> Labels:
    padded = x.dim() - len(pad) // 2
    t.fix(t.labels(x)[padded:])
    return (*t.labels(x)[:padded], *(FIXED for _ in result.shape[padded:]))


def reduction(t: Tracer, result: Tensor, x: Tensor, dim=None, keepdim: bool = False, **options) -> Labels:
    reduced = range(x.dim()) if dim is None else [d % x.dim() for d in ([dim] if isinstance(dim, int) else dim)]
    labels = [FIXED if d in reduced else label for d, label in enumerate(t.labels(x)) if keepdim or d not in reduced]
    return tuple(labels)


def reshape(t: Tracer, result: Tensor, x: Tensor, *args, **options) -> Labels:
    """Where the shapes agree on a dimension, it stays what it is; dimensions that are split or merged are fixed."""
    labels = [FIXED] * result.dim()
    before = [d for d, size in enumerate(x.shape) if size > 1]
    after = [d for d, size in enumerate(result.shape) if size > 1]
    while before and after:
        taken, given = [before.pop(0)], [after.pop(0)]
        while (have := math.prod(x.shape[d] for d in taken)) != (want := math.prod(result.shape[d] for d in given)):
            if have < want:
                taken.append(before.pop(0))
            else:
                given.append(after.pop(0))
        if len(taken) == len(given) == 1:
            labels[given[0]] = t.labels(x)[taken[0]]
        else:
            t.fix(t.labels(x)[d] for d in taken)
    return tuple(labels)


def permute(t: Tracer, result: Tensor, x: Tensor, *dims) -> Labels:
    order = dims[0] if len(dims) == 1 else dims
    return tuple(t.labels(x)[dim] for dim in order)


def transpose(t: Tracer, result: Tensor, x: Tensor, a: int, b: int) -> Labels:
    labels = list(t.labels(x))
    labels[a], labels[b] = labels[b], labels[a]
    return tuple(labels)


def expand(t: Tracer, result: Tensor, x: Tensor, *sizes) -> Labels:
    labels = t.labels(x)
    return (*(FIXED for _ in range(result.dim() - len(labels))), *labels)


def concatenation(t: Tracer, result: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> Labels:
    columns = [list(column) for column in zip(*(t.labels(tensor) for tensor in tensors))]
    for d, column in enumerate(columns):
        for label in column:
            t.tie(label, FIXED if d == dim % result.dim() else column[0])
    return tuple(column[0] for column in columns)


def indexing(t: Tracer, result: Tensor, x: Tensor, index) -> Labels | None:
    indices = list(index) if isinstance(index, tuple) else [index]
    if not all(isinstance(i, int | slice) for i in indices):
        return None
    labels = []
    for d, label in enumerate(t.labels(x)):
        i = indices[d] if d < len(indices) else slice(None)
        if i != slice(None):
            t.fix((label,))
        if isinstance(i, slice):
            labels.append(label)
    return tuple(labels)


def unbind(t: Tracer, result: Sequence[Tensor], x: Tensor, dim: int = 0) -> list[Labels]:
    labels = list(t.labels(x))
    t.fix((labels.pop(dim),))
    return [tuple(labels)] * len(result)


def chunk(t: Tracer, result: Sequence[Tensor], x: Tensor, size, dim: int = 0) -> list[Labels]:
    t.fix((t.labels(x)[dim],))
    return [t.labels(x)] * len(result)


def matmul(t: Tracer, result: Tensor, a: Tensor, b: Tensor) -> None:
    t.use(None, result.numel() // result.shape[0] * a.shape[-1])


def attention(t: Tracer, result: Tensor, q: Tensor, k: Tensor, v: Tensor, *args, **options) -> None:
    t.use(None, q[0].numel() * k.shape[-2] + result[0].numel() * v.shape[-2])


_NAMES: Mapping[Callable, Sequence[str]] = {
    convolution: ("conv1d", "conv2d", "conv3d"),
    linear: ("linear",),
    batch_norm: ("batch_norm",),
    layer_norm: ("layer_norm", "rms_norm"),
    elementwise: (
        *("add", "radd", "iadd", "sub", "rsub", "isub", "mul", "rmul", "imul", "div", "truediv", "itruediv"),
        *("relu", "relu6", "hardtanh", "clamp", "silu", "gelu", "elu", "leaky_relu", "mish", "softplus", "tanh"),
        *("sigmoid", "hardsigmoid", "hardswish", "neg", "abs", "exp", "sqrt", "rsqrt", "pow", "square"),
        *("dropout", "dropout2d", "contiguous", "clone", "detach", "to", "float", "type_as"),
    ),
    channelwise: ("avg_pool2d", "max_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "interpolate"),
    padding: ("pad",),
    reduction: ("mean", "sum", "amax"),
    reshape: ("flatten", "reshape", "view", "unflatten", "squeeze", "unsqueeze"),
    permute: ("permute",),
    transpose: ("transpose", "swapaxes"),
    expand: ("expand",),
    concatenation: ("cat", "concat"),
    indexing: ("getitem",),
    unbind: ("unbind",),
    chunk: ("chunk", "split"),
    matmul: ("matmul", "bmm"),
    attention: ("scaled_dot_product_attention",),
}
_RULES = {name: rule for rule, names in _NAMES.items() for name in names}
