"""What a processor does with 8-bit numbers."""

from __future__ import annotations

import platform

import torch


def products_saturate() -> bool:
    """Whether this processor may add two products of 8-bit numbers to less than their sum: ONNX Runtime goes by 16-bit
    sums on x86 without VNNI, which hold them for weights of 7 bits alone."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return not any(known.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))


def weight_bits(reduce_range: bool | None = None) -> int:
    """The bits that weights get for a processor that needs a reduced range, or for one that does not; by default for
    this one."""
    return 7 if (products_saturate() if reduce_range is None else reduce_range) else 8
