"""Whether Triton can compile and run a kernel here: it needs a GPU, and often a C compiler."""

from functools import cache

import torch


@cache
def find_obstacle() -> str | None:
    """Why the Triton kernels cannot run here; None if they can. Compiles a small one to know."""
    if not torch.cuda.is_available():
        return "Triton's kernels need a GPU, and torch sees none"
    try:
        _try()
    except ImportError as error:
        return f"Triton is not installed: {error}"
    except Exception as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        return f"Triton cannot run here: {words[-1]}"
    return None


def _try() -> None:
    """Multiply ones, and look at the result."""
    from phiscope.kernels.triton_linear import multiply

    x, weight = torch.ones(1, 64, device="cuda"), torch.ones(8, 64, device="cuda")
    if multiply(x, weight, None, None).tolist() != [[64.0] * 8]:
        raise RuntimeError("a product of ones came out wrong")
