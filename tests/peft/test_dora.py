import pytest
import torch
from torch import nn

from lowrank_d2.peft import DoRA, PeftConfig, apply_peft, inject, merge, save_delta


def adapted(linear=None, **options):
    torch.manual_seed(0)
    return inject(nn.Sequential(linear or nn.Linear(5, 7)), [DoRA(2, targets=("0",), **options)])


def test_rows_keep_their_direction_s_length_at_the_trained_magnitude():
    model = adapted(alpha=3)
    linear = model[0]
    nn.init.normal_(linear.lora_B)
    with torch.no_grad():
        linear.lora_magnitude_vector.copy_(torch.arange(1.0, 8.0))
    rows = linear.stored_weight + 1.5 * linear.lora_B @ linear.lora_A
    torch.testing.assert_close(linear.weight.norm(dim=1), torch.arange(1.0, 8.0))
    torch.testing.assert_close(nn.functional.cosine_similarity(linear.weight, rows), torch.ones(7))


def test_the_magnitude_s_gradient_is_along_the_row():
    model = adapted()
    linear, x, target = model[0], torch.randn(9, 5), torch.randn(9, 7)
    nn.init.normal_(linear.lora_B)
    (model(x) * target).sum().backward()
    direction = nn.functional.normalize(linear.stored_weight + linear.lora_B @ linear.lora_A)
    torch.testing.assert_close(linear.lora_magnitude_vector.grad, (target * (x @ direction.t())).sum(0))


@pytest.mark.parametrize("kind", [nn.Linear(5, 6), nn.Conv2d(4, 6, 3)], ids=["linear", "conv"])
def test_a_base_that_is_loaded_later_sets_the_magnitudes(kind):
    torch.manual_seed(0)
    model = inject(nn.Sequential(kind), [DoRA(2, targets=("0",))])
    base = {name: 3 * tensor for name, tensor in model.state_dict().items() if "lora" not in name}
    model.load_state_dict(base)
    torch.testing.assert_close(model[0].lora_magnitude_vector.detach(), base["0.weight"].flatten(1).norm(dim=1))
    torch.testing.assert_close(model[0].weight.detach(), base["0.weight"])


def test_trained_magnitudes_stay_when_a_base_is_loaded(tmp_path, make_toy, train_steps, images):
    base = make_toy(seed=3).state_dict()
    model = train_steps(inject(make_toy(base=base), [DoRA(2)], "embeddings"))
    magnitude = model.pixel_decoder.value_proj.lora_magnitude_vector.detach().clone()
    assert not torch.allclose(magnitude, base["pixel_decoder.value_proj.weight"].norm(dim=1))
    want = model(images)
    save_delta(model, tmp_path / "d.safetensors", class_names=list("abc"))
    through_delta = apply_peft(make_toy(seed=8), PeftConfig(delta=str(tmp_path / "d.safetensors"))).eval()
    through_delta.load_state_dict(base)
    assert torch.equal(through_delta(images), want)
    resumed = inject(make_toy(seed=8), [DoRA(2)], "embeddings").eval()
    resumed.load_state_dict(model.state_dict())
    assert torch.equal(resumed(images), want)
    model.load_state_dict(base, strict=False)
    assert torch.equal(model.pixel_decoder.value_proj.lora_magnitude_vector, magnitude)


def test_rows_of_zeros_start_as_zeros_and_learn():
    linear = nn.Linear(5, 3)
    nn.init.zeros_(linear.weight)
    model = adapted(linear)
    x, target = torch.randn(20, 5), torch.randn(20, 3)
    assert torch.equal(model(x), linear.bias.expand(20, 3))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
    assert all(tensor.isfinite().all() for tensor in merge(model).values())
