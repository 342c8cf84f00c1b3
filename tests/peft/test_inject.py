import logging

import pytest
import torch
from torch import nn

from lowrank_d2.errors import ConfigError
from lowrank_d2.peft import Adapter, LoRA, PeftConfig, apply_peft, inject
from lowrank_d2.peft.trainable import added_names


def lora_modules(model):
    return sorted({name.rsplit(".", 1)[0] for name in added_names(model) if "lora" in name})


@pytest.mark.parametrize(
    "target, modules",
    [
        ("value_proj", ["decoder.0.value_proj", "decoder.1.value_proj", "pixel_decoder.value_proj"]),
        ("0.value_proj", ["decoder.0.value_proj"]),
        ("pixel_decoder.value_proj", ["pixel_decoder.value_proj"]),
        (r"re:decoder\.[01]\.(qkv|norm)", ["decoder.0.qkv", "decoder.1.qkv"]),
        (r"re:.*value_pro.", ["decoder.0.value_proj", "decoder.1.value_proj", "pixel_decoder.value_proj"]),
    ],
)
def test_a_target_is_a_name_an_ending_or_a_full_match(make_toy, target, modules):
    assert lora_modules(inject(make_toy(), [LoRA(targets=(target,))])) == modules


@pytest.mark.parametrize("target", ["alue_proj", "decoder", "norm", r"re:value_proj", "label_embedding"])
def test_a_target_that_matches_no_linear_is_an_error_that_lists_them(make_toy, target):
    model = make_toy()
    with pytest.raises(ConfigError, match="matches no Linear, Conv2d or packed MultiheadAttention of Toy") as caught:
        inject(model, [LoRA(targets=("qkv", target))])
    assert f"TARGETS: {target!r}" in str(caught.value) and "decoder.*.value_proj" in str(caught.value)
    assert not added_names(model) and all(parameter.requires_grad for parameter in model.parameters())


def test_a_misspelt_target_gets_a_hint(make_toy):
    with pytest.raises(ConfigError, match=r"nearest: 'value_proj'"):
        inject(make_toy(), [LoRA(targets=("valu_proj",))])


@pytest.mark.parametrize(
    "target, words",
    [
        ("re:(", "no regular expression"),
        ("qkv[x]", "row block is 'x'. Use one of 'q', 'k', 'v'"),
        ("class_embed[q]", "no three equal blocks"),
    ],
)
def test_unusable_targets(make_toy, target, words):
    with pytest.raises(ConfigError, match=words):
        inject(make_toy(classes=4), [LoRA(targets=(target,))])


@pytest.mark.parametrize(
    "module, words",
    [
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), "'0' computes its weight from other tensors"),
        (nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 1)), "'0' computes its weight from other tensors"),
        (nn.LazyLinear(4), "'0' is lazy and has no shape yet"),
    ],
)
def test_a_module_whose_weight_is_no_parameter_is_refused(module, words):
    with pytest.raises(ConfigError, match=words):
        inject(nn.Sequential(module), [LoRA(targets=("0",))])


@pytest.mark.parametrize("methods", [LoRA(), [LoRA], ["lora"], "lora", {"lora": LoRA()}])
def test_what_is_no_list_of_methods_is_refused(make_toy, methods):
    with pytest.raises(ConfigError, match=r"The methods are .*Pass a list of method objects, for example \[LoRA\(rank=8\)\]"):
        inject(make_toy(), methods)


def test_two_entries_may_overlap_but_not_contradict(make_toy):
    model = inject(make_toy(), [LoRA(targets=("value_proj", "decoder.0.value_proj"))])
    assert len(lora_modules(model)) == 3
    with pytest.raises(ConfigError, match="takes other rows"):
        inject(make_toy(), [LoRA(targets=("qkv[q]", "decoder.0.qkv"))])


def test_a_model_without_own_targets_needs_some():
    with pytest.raises(ConfigError, match="Sequential has no targets of its own. Fill MODEL.PEFT.LORA.TARGETS from: 0"):
        inject(nn.Sequential(nn.Linear(2, 2)), [LoRA()])


def test_methods_combine_and_leave_the_base_where_it_was(make_toy):
    plain, model = make_toy(), make_toy()
    inject(model, [Adapter(), LoRA(rank=2)])
    ours = model.state_dict()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, ours[name])
    assert set(ours) - set(plain.state_dict()) == added_names(model)
    assert not any("adapter" in name and "lora" in name for name in added_names(model))


def test_an_adapted_model_is_not_adapted_again(make_toy):
    model = inject(make_toy(), [LoRA()])
    with pytest.raises(ConfigError, match="adapted already"):
        inject(model, [Adapter()])


def test_no_method_leaves_a_model_byte_for_byte(make_toy):
    model, plain = make_toy(), make_toy()
    plain.backbone[0].weight.requires_grad_(False), model.backbone[0].weight.requires_grad_(False)
    random = torch.random.get_rng_state()
    apply_peft(model, PeftConfig())
    assert torch.equal(random, torch.random.get_rng_state())
    assert str(model) == str(plain) and list(model.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), plain.state_dict().values()))
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in plain.parameters()]
    assert lora_modules(inject(model, [LoRA()]))  # and it can be adapted later


def test_training_everything_beside_a_method_is_said_aloud(make_toy, caplog):
    with caplog.at_level(logging.WARNING):
        apply_peft(make_toy(), PeftConfig((LoRA(),), train="all"))
    assert "100.0 % of the parameters train" in caplog.text


def test_it_works_on_the_meta_device(make_toy):
    with torch.device("meta"):
        model = inject(make_toy(), [LoRA(rank=2), Adapter()])
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_a_linear_under_two_names_is_adapted_once():
    shared = nn.Linear(3, 3)
    model = inject(nn.ModuleDict({"a": shared, "b": shared}), [LoRA(rank=1, targets=("b",))])
    assert added_names(model) == {f"{name}.lora_{x}" for name in "ab" for x in "AB"}
    assert sum(parameter.requires_grad for parameter in model.parameters()) == 2
