import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from lowrank_d2.layers.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_elements_drop_out_with_p_and_the_rest_keeps_the_mean(p):
    torch.manual_seed(0)
    out = Dropout(p)(torch.ones(1000, 1001))
    assert (out == 0).float().mean() == pytest.approx(p, abs=0.0025)  # five standard deviations
    torch.testing.assert_close(out[out != 0], torch.full_like(out[out != 0], 1 / (1 - p)), atol=0, rtol=1e-4)
    assert out.mean() == pytest.approx(1, abs=0.005 / (1 - p))


def test_elements_drop_out_independently_of_each_other():
    torch.manual_seed(0)
    dropped = (Dropout(0.5)(torch.ones(200_000, 8)) == 0).float()  # two random words a row
    correlation = torch.corrcoef(dropped.t()) - torch.eye(8)
    assert correlation.abs().max() < 0.012
    assert torch.corrcoef(torch.stack((dropped[1:, 0], dropped[:-1, 0])))[0, 1].abs() < 0.012


@pytest.mark.parametrize("shape", [(), (3,), (0, 4), (5, 1, 7)])
def test_the_gradient_passes_where_the_value_did(shape):
    torch.manual_seed(0)
    x = torch.rand(shape).add(1).requires_grad_()
    out = Dropout(0.4)(x)
    out.sum().backward()
    assert out.shape == x.shape
    torch.testing.assert_close(x.grad, out.detach() / x.detach())


def test_a_byte_an_element_is_kept_for_the_backward_pass():
    kept = []
    with saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        Dropout(0.5)(torch.ones(64, requires_grad=True))
    assert sum(x.nbytes for x in kept) <= 64 + 8


def test_a_transposed_input_drops_out_too():
    torch.manual_seed(0)
    x = torch.randn(400, 300).t()
    out = Dropout(0.5)(x)
    torch.testing.assert_close(out[out != 0], 2 * x[out != 0])
    assert (out == 0).float().mean() == pytest.approx(0.5, abs=0.01)


def test_the_seed_decides():
    x, dropout = torch.ones(100), Dropout(0.5)
    torch.manual_seed(1)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(1)
    assert torch.equal(dropout(x), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_type_stays(dtype):
    assert Dropout(0.1)(torch.ones(9, dtype=dtype)).dtype == dtype


def test_nothing_happens_in_evaluation_or_without_probability():
    x = torch.ones(50)
    assert Dropout(0.5).eval()(x) is x
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(Dropout(1.0)(x), torch.zeros(50))
