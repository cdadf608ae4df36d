"""What torch's functions do to channels: the rules by which `supernet.channels` follows a forward pass.

A rule takes the tracer, the result of a call and its arguments. It ties and fixes labels, and returns the labels of the
result, or a list of them for several results; None where it cannot tell, which fixes the labels of all arguments.
A function without a rule is one that cannot be told. A function that multiplies and accumulates says what its MACs are
proportional to; if it does not, they are the same at all widths.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from supernet.channels import shapes
from supernet.channels.labels import FIXED, Follower, Labels

# B batch, C channels, O output channels, I input channels, K kernel size


def channel_rule(name: str, result: object, args: tuple, kwargs: dict) -> Callable | None:
    """The rule for a call of the function `name`; None for an unknown function, or an unknown way of calling it."""
    rule = _RULES.get(name)
    if rule is not None:
        try:
            inspect.signature(rule).bind(None, result, *args, **kwargs)
        except TypeError:
            return None
    return rule


def adds(name: str) -> bool:
    """Whether a function of two tensors is their sum."""
    return name in ("add", "iadd", "radd")


def changes_one(name: str) -> bool:
    """Whether a function only changes the values of its first tensor, element by element or by normalisation, or only
    its shape."""
    return _RULES.get(name) in _OF_ONE


def convolution(
    t: Follower, result: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, *args, **options
) -> Labels | None:
    groups = options.get("groups", args[3] if len(args) > 3 else 1)
    outputs, inputs, *kernel = t.labels(weight)
    if x.dim() != len(kernel) + 2:
        return None  # without a batch
    rows, channels, *places = t.labels(x)
    t.fix((*kernel, *places))
    if groups == 1:
        t.tie(inputs, channels)
        t.produce(weight, outputs)
    elif groups == x.shape[1]:  # depthwise
        outputs = t.tie(outputs, t.set.compose(1, channels, result.shape[1] // groups))
    else:
        t.tie(inputs, t.set.split(channels, groups))
        outputs = t.set.compose(groups, t.set.split(outputs, groups), 1)
        t.produce(weight, outputs)
    t.costs(rows, outputs, inputs)
    if bias is not None:
        t.tie(t.labels(bias)[0], outputs)
    return (rows, outputs, *(FIXED for _ in kernel))


def transposed_convolution(
    t: Follower, result: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, *args, **options
) -> Labels | None:
    groups = options.get("groups", args[3] if len(args) > 3 else 1)
    inputs, outputs, *kernel = t.labels(weight)
    if groups != 1 or x.dim() != len(kernel) + 2:
        return None
    rows, channels, *places = t.labels(x)
    t.fix((*kernel, *places))
    t.tie(inputs, channels)
    t.produce(weight, outputs)
    t.costs(rows, outputs, inputs)
    if bias is not None:
        t.tie(t.labels(bias)[0], outputs)
    return (rows, outputs, *(FIXED for _ in kernel))


def linear(t: Follower, result: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Labels | None:
    if weight.dim() != 2:
        return None
    outputs, inputs = t.labels(weight)
    *rows, channels = t.labels(x)
    t.tie(inputs, channels)
    t.produce(weight, outputs)
    t.costs(*rows, outputs, inputs)
    if bias is not None:
        t.tie(t.labels(bias)[0], outputs)
    return (*rows, outputs)


def embedding(t: Follower, result: Tensor, x: Tensor, weight: Tensor, *args, **options) -> Labels:
    entries, outputs = t.labels(weight)
    t.fix((entries,))
    t.produce(weight, outputs)
    return (*t.labels(x), outputs)


def batch_norm(t: Follower, result: Tensor, x: Tensor, *args, **options) -> Labels:
    """Also `instance_norm` and `prelu`: of [B, C, ...], each channel on its own, with vectors [C]."""
    channels = t.labels(x)[1] if x.dim() > 1 else FIXED
    for vector in [*args, *options.values()]:
        if isinstance(vector, Tensor) and vector.numel() > 1:
            t.tie(t.labels(vector)[0], channels)
    t.scale(options.get("weight", args[2] if len(args) > 2 else None), channels)
    return t.labels(x)


def prelu(t: Follower, result: Tensor, x: Tensor, weight: Tensor) -> Labels:
    if weight.numel() > 1:
        t.tie(t.labels(weight)[0], t.labels(x)[1])
    return t.labels(x)


def layer_norm(
    t: Follower, result: Tensor, x: Tensor, shape: Sequence[int], weight: Tensor | None = None, *args, **options
) -> Labels | None:
    if weight is None or len(shape) > 1:
        return None
    channels = t.labels(x)[-1]
    for vector in [weight, *args, *options.values()]:
        if isinstance(vector, Tensor):
            t.tie(t.labels(vector)[0], channels)
    return t.labels(x)


def group_norm(
    t: Follower, result: Tensor, x: Tensor, num_groups: int, weight: Tensor | None = None, bias=None, *args, **options
) -> Labels | None:
    if weight is None:
        return None  # nothing is there that the layer's number of channels could follow
    channels = t.labels(x)[1]
    if num_groups > 1:
        t.set.split(channels, num_groups)
    for vector in (weight, bias):
        if vector is not None:
            t.tie(t.labels(vector)[0], channels)
    return t.labels(x)


def matmul(t: Follower, result: Tensor, a: Tensor, b: Tensor) -> Labels | None:
    if a.dim() < 2 or b.dim() < 2:
        return None
    *first, inner = t.labels(a)
    *second, also_inner, outputs = t.labels(b)
    t.tie(inner, also_inner)
    leading = shapes.broadcast(t, result.dim() - 2, [(first[:-1], a.shape[:-2]), (second, b.shape[:-2])])
    t.costs(*leading, first[-1], inner, outputs)
    return (*leading, first[-1], outputs)


def einsum(t: Follower, result: Tensor, equation: str, *operands: Tensor) -> Labels | None:
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    letters = inputs.split(",")
    if not arrow or "." in equation or len(operands) > 2 or any(len(set(those)) < len(those) for those in letters):
        return None
    found: dict[str, int] = {}
    for those, operand in zip(letters, operands):
        for letter, label in zip(those, t.labels(operand)):
            found[letter] = t.tie(found[letter], label) if letter in found else label
    t.costs(*found.values())
    return tuple(found[letter] for letter in output)


def elementwise(t: Follower, result: Tensor, *args, **options) -> Labels:
    tensors = [a for a in [*args, *options.values()] if isinstance(a, Tensor)]
    return shapes.broadcast(t, result.dim(), [(t.labels(tensor), tensor.shape) for tensor in tensors])


def along(t: Follower, result: Tensor, x: Tensor, *args, **options) -> Labels:
    """A function that mixes entries along a dimension but treats all of them alike, such as softmax."""
    return t.labels(x)


def channelwise(t: Follower, result: Tensor, x: Tensor, *args, **options) -> Labels | None:
    """A function of every channel of [B, C, ...] on its own."""
    if result.dim() != x.dim() or x.dim() < 3:
        return None
    t.fix(t.labels(x)[2:])
    return (*t.labels(x)[:2], *(FIXED for _ in result.shape[2:]))


_NAMES: Mapping[Callable, Sequence[str]] = {
    convolution: ("conv1d", "conv2d", "conv3d"),
    transposed_convolution: ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    linear: ("linear",),
    embedding: ("embedding",),
    batch_norm: ("batch_norm", "instance_norm"),
    prelu: ("prelu",),
    layer_norm: ("layer_norm", "rms_norm"),
    group_norm: ("group_norm",),
    elementwise: (
        *("add", "radd", "iadd", "sub", "rsub", "isub", "mul", "rmul", "imul", "div", "truediv", "itruediv"),
        *("addcmul", "addcdiv", "lerp", "maximum", "minimum", "where", "masked_fill"),
        *("relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max", "silu", "gelu", "elu", "selu", "celu"),
        *("leaky_relu", "mish", "softplus", "tanh", "logsigmoid", "softsign", "log", "log1p", "cos", "sin"),
        *("sigmoid", "hardsigmoid", "hardswish", "neg", "abs", "exp", "sqrt", "rsqrt", "pow", "square", "reciprocal"),
        *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout"),
        *("contiguous", "clone", "detach", "to", "float", "half", "bfloat16", "double", "type_as", "requires_grad"),
        *("zeros_like", "ones_like", "data"),
    ),
    along: ("softmax", "log_softmax", "normalize"),
    channelwise: (
        *("avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d", "max_pool2d", "max_pool3d", "lp_pool2d"),
        *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
        *("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "interpolate", "upsample"),
    ),
    matmul: ("matmul", "bmm", "rmatmul"),
    einsum: ("einsum",),
    **shapes.NAMES,
}
_RULES = {name: rule for rule, names in _NAMES.items() for name in names}
_OF_ONE = {elementwise, batch_norm, prelu, layer_norm, group_norm, shapes.reshape, shapes.permute, shapes.transpose}
