"""Loading through load_state_dict alone, as every checkpointer does."""
import copy
import pickle

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lowrank_d2.errors import CheckpointError, DeltaError
from lowrank_d2.peft import Adapter, LoRA, PeftConfig, apply_peft, inject, save_delta
from lowrank_d2.peft.delta import read_delta
from lowrank_d2.peft.trainable import added_names

NAMES = ["ant", "bee", "cat"]


@pytest.fixture
def base(make_toy):
    return copy.deepcopy(make_toy(seed=11).state_dict())


@pytest.fixture
def trained(make_toy, base, train_steps):
    return train_steps(inject(make_toy(base=base), [LoRA(rank=2)], "embeddings"))


@pytest.fixture
def delta(trained, tmp_path):
    path = str(tmp_path / "delta.safetensors")
    save_delta(trained, path, class_names=NAMES)
    return path


@pytest.mark.parametrize("strict", [True, False])
def test_a_plain_base_misses_nothing_and_keeps_what_was_added(make_toy, base, strict):
    model = inject(make_toy(seed=3), [LoRA(rank=2), Adapter()])
    added = {name: model.state_dict()[name].clone() for name in added_names(model)}
    result = model.load_state_dict(base, strict=strict)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in {**base, **added}.items())


def test_what_is_really_missing_is_still_told(make_toy, base):
    del base["decoder_norm.weight"]
    result = inject(make_toy(), [LoRA(rank=2)]).load_state_dict(base, strict=False)
    assert result.missing_keys == ["decoder_norm.weight"]


def test_the_configured_delta_follows_the_base(make_toy, base, trained, delta, images):
    model = apply_peft(make_toy(seed=5), PeftConfig(delta=delta)).eval()
    assert model.peft_config == PeftConfig((LoRA(rank=2),), "embeddings", True, delta)
    model.load_state_dict(base)
    assert torch.equal(model(images), trained(images))


def test_a_delta_brings_the_classes_that_the_base_has_not(make_toy, base, trained, delta, images):
    model = apply_peft(make_toy(seed=5), PeftConfig(delta=delta)).eval()
    for name in ("class_embed.weight", "class_embed.bias", "label_embedding.weight"):
        del base[name]  # as Detectron2's checkpointer drops what has another shape
    assert model.load_state_dict(base).missing_keys == []
    assert torch.equal(model(images), trained(images))


def test_a_delta_on_another_base_is_refused_while_loading(make_toy, delta):
    model = apply_peft(make_toy(), PeftConfig(delta=delta))
    with pytest.raises(DeltaError, match="trained on another base"):
        model.load_state_dict(make_toy(seed=12).state_dict())


@pytest.mark.parametrize("through", ["memory", "file"])
@pytest.mark.parametrize("methods", [[LoRA(rank=2)], [Adapter()], []])
def test_a_resume_is_not_overwritten_by_the_delta(make_toy, base, train_steps, images, tmp_path, methods, through):
    first = train_steps(inject(make_toy(base=base), methods, "embeddings"))
    path = str(tmp_path / "first.safetensors")
    save_delta(first, path, class_names=NAMES)
    model = apply_peft(make_toy(), PeftConfig(delta=path)).eval()
    model.load_state_dict(base)
    state = train_steps(model, n=5).state_dict()
    if through == "file":
        torch.save(state, tmp_path / "model.pth")
        state = torch.load(tmp_path / "model.pth", weights_only=True)
    resumed = apply_peft(make_toy(seed=8), PeftConfig(delta=path)).eval()
    resumed.load_state_dict(state)
    assert torch.equal(resumed(images), model(images)) and not torch.equal(resumed(images), first(images))


@pytest.mark.parametrize(
    "methods, words",
    [
        ([LoRA(rank=4)], "LORA.RANK 2, this model has 4"),
        ([LoRA(rank=2, alpha=1)], "LORA.ALPHA 2, this model has 1"),
        ([], r"METHODS \['lora'\], this model has \[\]"),
    ],
)
def test_a_checkpoint_of_another_method_is_refused(make_toy, trained, methods, words):
    model = apply_peft(make_toy(), PeftConfig(tuple(methods)))
    with pytest.raises(CheckpointError, match=f"The checkpoint was made with .*{words}. Set MODEL.PEFT as in"):
        model.load_state_dict(trained.state_dict(), strict=False)


def test_a_checkpoint_of_a_newer_method_is_refused(make_toy, trained):
    state = trained.state_dict()
    state._metadata[""]["lowrank_d2_methods"] = [{"name": "newer", "rank": 2}]
    with pytest.raises(CheckpointError, match="'newer', 'rank': 2}, which this version does not know"):
        inject(make_toy(), [LoRA(rank=2)]).load_state_dict(state)


def test_a_checkpoint_that_lost_some_added_tensors_is_refused(make_toy, trained):
    state = dict(trained.state_dict())
    del state["pixel_decoder.value_proj.lora_A"]
    model = inject(make_toy(), [LoRA(rank=2)])
    with pytest.raises(CheckpointError, match="lacks 1 of its 18 added tensors, first pixel_decoder.value_proj.lora_A"):
        model.load_state_dict(state, strict=False)


def test_a_tuned_model_without_methods_is_a_base_for_any_method(make_toy, base, train_steps):
    tuned = train_steps(inject(make_toy(base=base), [], "full_head"))
    model = inject(make_toy(), [LoRA(rank=2)])
    assert model.load_state_dict(tuned.state_dict()).missing_keys == []


@pytest.mark.parametrize("methods", [(), (LoRA(rank=2),)])
def test_a_delta_as_weights_is_refused(make_toy, delta, methods):
    model = apply_peft(make_toy(), PeftConfig(methods))
    with pytest.raises(CheckpointError, match="The weights are a delta file.*MODEL.PEFT.DELTA to this file"):
        model.load_state_dict(load_file(delta), strict=False)


def test_a_wrapped_model_loads_alike(make_toy, base, trained, delta, images):
    class Wrapped(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    model = apply_peft(make_toy(), PeftConfig(delta=delta)).eval()
    result = Wrapped(model).load_state_dict({f"module.{name}": tensor for name, tensor in base.items()})
    assert result.missing_keys == [] and torch.equal(model(images), trained(images))


def test_copies_load_into_themselves(make_toy, base, trained, delta, images):
    original = apply_peft(make_toy(seed=5), PeftConfig(delta=delta)).eval()
    before, twin = original(images), copy.deepcopy(original)
    twin.load_state_dict(base)
    assert torch.equal(twin(images), trained(images)) and torch.equal(original(images), before)


def test_an_adapted_model_survives_pickling():
    model = inject(nn.Sequential(nn.Linear(3, 3)), [LoRA(rank=1, targets=("0",))])
    twin = pickle.loads(pickle.dumps(model))
    twin.load_state_dict({name: torch.ones_like(tensor) for name, tensor in model.state_dict().items()})
    assert twin.peft_config == model.peft_config and not torch.equal(model[0].lora_B, twin[0].lora_B)


def test_read_delta_gives_the_tensors(trained, delta):
    header, tensors = read_delta(delta)
    assert all(torch.equal(trained.state_dict()[name], tensors[name]) for name in header.tensors)
