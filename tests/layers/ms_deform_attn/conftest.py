"""Inputs of the operator, and its compiled form where this machine can have one."""
from dataclasses import dataclass, replace
from typing import Optional

import pytest
import torch

from lowrank_d2.layers.ms_deform_attn import _locations, backend
from lowrank_d2.layers.ms_deform_attn.torch_impl import by_grid_sample


@dataclass(frozen=True)
class Case:
    """Arguments of torch.ops.lowrank_d2.ms_deform_attn, with the sizes in pairs."""

    value: torch.Tensor
    shapes: tuple[tuple[int, int], ...]
    places: torch.Tensor
    weights: torch.Tensor
    reference: Optional[torch.Tensor] = None

    @property
    def arguments(self):
        return self.value, [size for shape in self.shapes for size in shape], self.places, self.weights, self.reference

    @property
    def differentiable(self):
        return self.value, self.places, self.weights

    def of(self, value, places, weights):
        return replace(self, value=value, places=places, weights=weights)

    def compiled(self):
        return torch.ops.lowrank_d2.ms_deform_attn(*self.arguments)

    def expected(self):
        places, weights = self.places, self.weights
        if self.reference is not None:
            places = _locations(self.reference, places, self.shapes)
            weights = weights.flatten(-2).softmax(-1).view_as(weights)
        return by_grid_sample(self.value, self.shapes, places, weights)

    def gradients(self, out, grad_out):
        return torch.autograd.grad(out, self.differentiable, grad_out)

    def with_gradients(self):
        return self.of(*(x.detach().clone().requires_grad_() for x in self.differentiable))


def _case(
    shapes=((6, 5), (3, 4)), n=2, q=7, m=3, d=4, p=2, form="locations", per_level=False, dtype=torch.float64, seed=0
):
    """`form` is locations, points or boxes. Some points lie outside."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    def uniform(*size):
        return torch.rand(size, generator=generator, dtype=torch.float64).to(dtype)

    levels = len(shapes)
    value = normal(n, sum(h * w for h, w in shapes), m, d)
    if form == "locations":
        return Case(value, shapes, 1.4 * uniform(n, q, m, levels, p, 2) - 0.2, uniform(n, q, m, levels, p))
    reference = uniform(n, q, levels if per_level else 1, 2 if form == "points" else 4)
    return Case(value, shapes, 2 * normal(n, q, m, levels, p, 2), normal(n, q, m, levels, p), reference)


@pytest.fixture(scope="session")
def make_case():
    """A function: sizes -> Case."""
    return _case


@pytest.fixture(scope="session")
def compiled():
    """The back end in use, which has kernels for the CPU."""
    chosen = backend.current()
    if chosen.name == "torch":
        pytest.skip(f"no compiled operator: {chosen.reason}")
    return chosen


@pytest.fixture(params=["avx512", "avx2", "baseline"])
def instruction_set(request, compiled):
    usual = compiled.instruction_set()
    if not compiled.use_instruction_set(request.param):
        pytest.skip(f"this machine has no {request.param}")
    yield request.param
    compiled.use_instruction_set(usual)
