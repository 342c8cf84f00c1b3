"""Conditions that torch.fx can trace through."""
import torch
from torch.fx._symbolic_trace import is_fx_tracing as _is_fx_tracing


def is_fx_tracing() -> bool:
    """Whether torch.fx is tracing the code that asks."""
    return _is_fx_tracing()


@torch.fx.wrap
def _do_assert_fx_safe(condition: bool, message: str) -> torch.Tensor:
    """Return a tensor, so that the check is a node of the graph rather than a branch in Python."""
    assert condition, message
    return torch.zeros(1)


def assert_fx_safe(condition: bool, message: str) -> torch.Tensor:
    """``assert condition, message`` that does not stop a torch.fx trace, where conditions are proxies."""
    if not is_fx_tracing():
        return _do_assert_fx_safe(condition, message)
    return torch.zeros(1)
