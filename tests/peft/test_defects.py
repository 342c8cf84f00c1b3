"""The six defects of the published code, each excluded by the test that would have shown it."""
import copy

import pytest
import torch
from torch import nn

from lowrank_d2.errors import CheckpointError, DeltaError
from lowrank_d2.peft import Adapter, DeltaSet, LoRA, PeftConfig, apply_peft, inject, load_delta, save_delta
from lowrank_d2.peft.trainable import added_names, eval_frozen, freeze


def frozen_state(model):
    names = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if name in names}


def test_1_the_initialisation_is_not_overwritten(make_toy, images):
    base, model = make_toy().eval(), inject(make_toy(), [LoRA(rank=4)]).eval()
    for name in added_names(model):
        assert name.count("lora_B") == (not model.get_parameter(name).any())
    torch.testing.assert_close(model(images), base(images), rtol=1e-6, atol=1e-6)
    adapters = inject(make_toy(), [Adapter(reduction=1)])
    names = [name for name in added_names(adapters) if name.endswith("weight")]
    weights = torch.cat([adapters.get_parameter(name).flatten() for name in names])
    assert weights.std().item() == pytest.approx(0.02, rel=0.15)


def test_2_q_and_v_are_adapted_separately_and_k_is_not(make_toy):
    torch.manual_seed(0)
    width, rank = 12, 2
    qkv = nn.Linear(width, 3 * width)
    model = inject(nn.Sequential(qkv), [LoRA(rank, targets=("0[q,v]",))])
    stored = qkv.weight.detach().clone()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(20, width)).square().sum().backward()
        optimizer.step()
    change = (qkv.weight - stored).detach()
    q, k, v = change.chunk(3)
    assert not k.any()
    assert not torch.equal(qkv.lora_A_q, qkv.lora_A_v)
    assert torch.linalg.matrix_rank(torch.cat([q, v]), rtol=1e-4) == 2 * rank
    assert q.abs().sum(0).min() > 0 and v.abs().sum(0).min() > 0  # no input column is cut off


@pytest.mark.parametrize("tokens", [5, 500], ids=["factored", "merged"])
def test_3_the_input_gradient_goes_through_the_updated_weight(tokens):
    torch.manual_seed(0)
    linear = nn.Linear(16, 24)
    model = inject(nn.Sequential(linear), [LoRA(rank=4, alpha=8, targets=("0",))])
    nn.init.normal_(linear.lora_B)
    x, target = torch.randn(tokens, 16, requires_grad=True), torch.randn(tokens, 24)
    want_x = x.detach().clone().requires_grad_()
    weight = linear.stored_weight + 2 * linear.lora_B @ linear.lora_A
    factors = [linear.lora_A, linear.lora_B]
    want = torch.autograd.grad(((want_x @ weight.t() + linear.bias) * target).sum(), [want_x, *factors])
    got = torch.autograd.grad((model(x) * target).sum(), [x, *factors])
    for ours, autograd in zip(got, want):
        torch.testing.assert_close(ours, autograd, rtol=1e-5, atol=1e-6 * autograd.abs().max().item())


def test_4_base_weights_stay_in_the_module_bit_for_bit(make_toy, train_steps, images, tmp_path):
    model = inject(make_toy(), [LoRA(rank=2), Adapter()], "embeddings")
    keys, before = list(model.state_dict()), frozen_state(model)
    paths = []
    for n in (1, 2):
        train_steps(model, n=n)(images)  # train, then eval
        paths.append(tmp_path / f"{n}.safetensors")
        save_delta(model, paths[-1], class_names=["a", "b", "c"])
    deltas = DeltaSet(model)
    for path in paths:
        deltas.add(path.stem, path)
        deltas.switch(path.stem)
        model(images)
    deltas.switch("1")
    train_steps(model)
    assert list(model.state_dict()) == keys
    assert {name for name, _ in model.named_parameters()} <= set(keys) and len(frozen_state(model)) == len(before)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    twin = copy.deepcopy(model).to(torch.float64)
    assert {p.dtype for p in twin.parameters()} == {torch.float64} and list(twin.state_dict()) == keys
    torch.testing.assert_close(twin(images.double()).float(), model(images))


def test_5_a_tuned_file_is_complete_and_checked(make_toy, train_steps, tmp_path):
    base = make_toy(seed=4).state_dict()
    model = train_steps(inject(make_toy(base=base), [LoRA(rank=2)], "embeddings", train_label_embedding=True))
    assert not torch.equal(model.label_embedding.weight, base["label_embedding.weight"])  # it trains
    frozen = inject(make_toy(base=base), [LoRA(rank=2)], "embeddings", train_label_embedding=False)
    for kind in (model, frozen):  # and is in the file, trained or not
        assert "label_embedding.weight" in save_delta(kind, tmp_path / "d.safetensors", class_names=list("abc")).tensors
    save_delta(model, tmp_path / "d.safetensors", class_names=list("abc"))
    for options in ({"rank": 4}, {"rank": 2, "alpha": 1}):
        with pytest.raises(DeltaError, match="this model has"):
            load_delta(inject(make_toy(base=base), [LoRA(**options)], "embeddings"), tmp_path / "d.safetensors")
    with pytest.raises(DeltaError, match="3 classes"):
        load_delta(inject(make_toy(classes=4), [LoRA(rank=2)], "embeddings"), tmp_path / "d.safetensors")
    with pytest.raises(DeltaError, match="another base"):
        load_delta(inject(make_toy(seed=5), [LoRA(rank=2)], "embeddings"), tmp_path / "d.safetensors")
    plain = apply_peft(make_toy(), PeftConfig())
    with pytest.raises(CheckpointError, match="delta file"):
        plain.load_state_dict({"lowrank_d2.delta": torch.empty(0)}, strict=False)


def test_6_what_trains_is_known_by_the_model_alone_and_frozen_parts_are_still(make_toy):
    model = make_toy()
    freeze(model, "decoder", False)  # "pixel_decoder" also contains the word
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not any(name.startswith("pixel_decoder") for name in trained) and "decoder.0.qkv.weight" in trained
    model.train()
    eval_frozen(model)
    x = torch.randn(6, 4)
    assert torch.equal(model.backbone(x), model.backbone(x))  # dropout and batch statistics stand still
