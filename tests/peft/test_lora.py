import copy
import pickle

import pytest
import torch
from torch import nn

from lowrank_d2.errors import ConfigError
from lowrank_d2.peft import LoRA, inject


def adapted(linear=None, **options):
    model = nn.Sequential(linear or nn.Linear(5, 7))
    inject(model, [LoRA(targets=("0",), **options)])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.normal_()
    return model


def test_alpha_defaults_to_the_rank_and_integers_are_fine():
    assert LoRA(rank=4).scale == 1 and LoRA(rank=4, alpha=2).scale == 0.5
    assert isinstance(LoRA(rank=4, alpha=2).alpha, float) and LoRA(dropout=0).dropout == 0.0


def test_a_linear_keeps_its_class_names_and_stored_weight():
    class Special(nn.Linear):
        pass

    linear = Special(5, 7)
    stored = linear.weight
    model = adapted(linear, rank=2)
    assert model[0] is linear and isinstance(linear, Special)
    assert list(model.state_dict()) == ["0.weight", "0.bias", "0.lora_A", "0.lora_B"]
    assert linear._parameters["weight"] is stored and torch.equal(model.state_dict()["0.weight"], stored)


def test_the_weight_reads_as_stored_plus_update_and_forward_agrees():
    model = adapted(rank=3, alpha=6)
    linear = model[0]
    want = linear.stored_weight + 2 * linear.lora_B @ linear.lora_A
    torch.testing.assert_close(linear.weight, want)
    x = torch.randn(2, 3, 5)
    torch.testing.assert_close(model(x), x @ want.t() + linear.bias)


def test_the_start_is_the_base():
    torch.manual_seed(0)
    linear, x = nn.Linear(5, 7), torch.randn(3, 5)
    want = linear(x)
    model = inject(nn.Sequential(linear), [LoRA(4, targets=("0",))])
    assert torch.equal(model(x), want) and not linear.lora_B.any() and linear.lora_A.abs().min() > 0


def test_dropout_acts_on_the_branch_in_training_only():
    model = adapted(rank=2, dropout=0.5)
    x = torch.ones(2000, 5)
    base = nn.functional.linear(x, model[0].stored_weight, model[0].bias)
    want = model.eval()(x)
    assert torch.equal(want, model(x))
    noisy = model.train()(x)
    assert not torch.equal(noisy, want)
    torch.testing.assert_close((noisy - base).mean(0), (want - base).mean(0), atol=0.3, rtol=0.1)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_compute_the_same_and_stand_alone(copied):
    model, x = adapted(rank=2), torch.randn(3, 5)
    twin = copied(model)
    assert type(twin[0]) is type(model[0]) and torch.equal(twin(x), model(x))
    with torch.no_grad():
        twin[0].lora_B.zero_()
    assert not torch.equal(twin(x), model(x))


def test_to_moves_everything():
    model = adapted(rank=2).to(torch.float64)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float64}
    assert model(torch.randn(2, 5, dtype=torch.float64)).dtype == torch.float64
    assert {tensor.device.type for tensor in adapted(rank=2).to("meta").state_dict().values()} == {"meta"}


def test_packed_projections_adapt_the_named_thirds_only():
    torch.manual_seed(0)
    qkv = nn.Linear(4, 12)
    stored = qkv.weight.detach().clone()
    model = inject(nn.Sequential(qkv), [LoRA(rank=2, targets=("0[v,q]",))])
    assert [name for name in qkv._parameters if "lora" in name] == ["lora_A_q", "lora_B_q", "lora_A_v", "lora_B_v"]
    nn.init.normal_(qkv.lora_B_q), nn.init.normal_(qkv.lora_B_v)
    change = (qkv.weight - stored).detach()
    assert not change[4:8].any() and change[:4].abs().min() > 0
    torch.testing.assert_close(change[8:], (qkv.lora_B_v @ qkv.lora_A_v).detach())
    x = torch.randn(3, 4)
    torch.testing.assert_close(model(x), nn.functional.linear(x, qkv.weight, qkv.bias))


@pytest.mark.parametrize("rows", ["q", "k", "v", "q,k", "k,v", "q,k,v"])
def test_every_choice_of_thirds_computes_with_its_effective_weight(rows):
    model = inject(nn.Sequential(nn.Linear(4, 6, bias=False)), [LoRA(rank=1, targets=(f"0[{rows}]",))])
    for name, parameter in model.named_parameters():
        if "lora" in name:
            nn.init.normal_(parameter)
    x = torch.randn(5, 4)
    torch.testing.assert_close(model(x), x @ model[0].weight.t())
    assert sum("lora" in name for name, _ in model.named_parameters()) == 2 * len(rows.split(","))


def test_a_weight_that_is_read_without_a_call_is_adapted_too():
    torch.manual_seed(0)
    model = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2, batch_first=True)})
    x = torch.randn(1, 3, 8)
    before, _ = model.attn(x, x, x)
    inject(model, [LoRA(rank=2, targets=("out_proj",))])
    nn.init.normal_(model.attn.out_proj.lora_B)
    after, _ = model.attn(x, x, x)
    assert (after - before).abs().max() > 0.1
    after.sum().backward()
    assert model.attn.out_proj.lora_A.grad.abs().sum() > 0
    with torch.no_grad():
        torch.testing.assert_close(model.eval().attn(x, x, x)[0], after)


def test_a_half_precision_base_gets_float32_factors():
    model = adapted(nn.Linear(4, 4).bfloat16(), rank=2)
    assert model[0].lora_A.dtype == model[0].lora_B.dtype == torch.float32
    assert model(torch.randn(2, 4).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "options, words",
    [
        ({"rank": 0}, "RANK is 0. Use an integer of 1 or more"),
        ({"rank": 2.5}, "RANK is 2.5"),
        ({"rank": True}, "RANK is True"),
        ({"alpha": 0}, "ALPHA is 0. Use a number above 0"),
        ({"alpha": float("nan")}, "ALPHA is nan"),
        ({"dropout": 1.0}, "DROPOUT is 1.0. Use a number from 0"),
        ({"targets": "qkv"}, r"TARGETS is the text 'qkv', not a list. Write \['qkv'\]"),
        ({"targets": (1,)}, r"TARGETS is \(1,\)"),
    ],
)
def test_a_wrong_value_names_its_key(options, words):
    with pytest.raises(ConfigError, match=f"MODEL.PEFT.LORA.{words}"):
        LoRA(**options)
