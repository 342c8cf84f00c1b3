import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lowrank_d2.errors import DeltaError
from lowrank_d2.peft import Adapter, LoRA, inject, merge
from lowrank_d2.peft.trainable import added_names


def test_a_plain_model_with_the_merged_weights_computes_the_same(make_toy, train_steps, images):
    model = train_steps(inject(make_toy(), [LoRA(rank=2, alpha=5)], "embeddings"), n=10)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merged, plain = merge(model), make_toy(seed=9).eval()
    assert list(merged) == list(plain.state_dict())
    plain.load_state_dict(merged)
    torch.testing.assert_close(plain(images), model(images), rtol=1e-5, atol=1e-6)
    assert not torch.equal(merged["pixel_decoder.qkv.weight"], before["pixel_decoder.qkv.weight"])
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


@settings(max_examples=25, deadline=None)
@given(
    width=st.integers(1, 8),
    rank=st.integers(1, 4),
    alpha=st.floats(0.1, 30),
    rows=st.sampled_from(["", "[q]", "[q,v]"]),
    seed=st.integers(0, 99),
)
def test_merging_is_exact_for_any_shape(width, rank, alpha, rows, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(width, 3 * width)).double()
    inject(model, [LoRA(rank, alpha, targets=(f"0{rows}",))])
    for name in added_names(model):
        nn.init.normal_(model.get_parameter(name))
    plain = nn.Sequential(nn.Linear(width, 3 * width)).double()
    plain.load_state_dict(merge(model))
    x = torch.randn(4, width, dtype=torch.float64)
    torch.testing.assert_close(plain(x), model(x), rtol=1e-12, atol=1e-12)


def test_dropout_does_not_disturb_the_comparison(make_toy):
    model = inject(make_toy(), [LoRA(rank=2, dropout=0.9)]).train()
    nn.init.normal_(model.pixel_decoder.value_proj.lora_B)
    merge(model)
    assert model.pixel_decoder.value_proj.training


def test_adapters_cannot_be_merged(make_toy):
    with pytest.raises(DeltaError, match=r"3 adapters \(pixel_decoder.adapter, ...\) stand between layers"):
        merge(inject(make_toy(), [LoRA(), Adapter()]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_merge_that_differs_is_an_error(make_toy, value):
    model = inject(make_toy(), [LoRA(rank=2)])
    nn.init.constant_(model.decoder[1].value_proj.lora_B, value)
    with pytest.raises(DeltaError, match="The merged decoder.1.value_proj differs from the adapted one by nan"):
        merge(model)
