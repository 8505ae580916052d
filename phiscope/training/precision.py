"""Which type matrices are multiplied in: bf16 where the machine is quicker in it, else fp32.

A CPU may have bf16 instructions and still be twice as quick in fp32, so `auto` tries.
"""

from __future__ import annotations

import time

import torch

from phiscope.training.options import Precision

PRODUCTS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def select_precision(name: Precision) -> torch.dtype:
    """The type of a precision; for `auto`, the one in which a product takes less time here."""
    if name == "auto":
        return min(PRODUCTS.values(), key=_seconds)
    if name not in PRODUCTS:
        raise ValueError(f"no precision {name!r}; choose from auto, {', '.join(PRODUCTS)}")
    return PRODUCTS[name]


def _seconds(dtype: torch.dtype) -> float:
    x, y = torch.ones(2048, 512, dtype=dtype), torch.ones(512, 1024, dtype=dtype)
    times = []
    for _ in range(6):
        begin = time.perf_counter()
        torch.mm(x, y)
        times.append(time.perf_counter() - begin)
    return min(times)
