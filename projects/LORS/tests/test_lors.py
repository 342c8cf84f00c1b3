"""What LORS shares, what it adds, and when it is plain AdaMixer."""
import copy

import pytest
import torch
from detectron2.modeling import build_model

from lors.mixing import AdaptiveMixing, MixingSize, Residual, SharedMixing
from lowrank_d2.engine.optimizer import parameter_groups


def losses_of(model, batch):
    return sum(model.train()(batch).values())


def with_private_shares(model):
    """`model`, a plain AdaMixer, as LORS of rank 0 whose stages share nothing: the same tensors in other modules."""
    model = copy.deepcopy(model)
    size, nothing = model.mixing_size, Residual(0, (1,) * len(model.decoder.stages))
    for number, stage in enumerate(model.decoder.stages):
        own, shared = stage.mixing, SharedMixing(size, adaptive=True, static=True)
        for linears, kernels in ((shared.channel, own.channel), (shared.spatial, own.spatial)):
            for linear, kernel in zip(linears, kernels):
                linear.load_state_dict(kernel.generator.state_dict())
        mixing = AdaptiveMixing(size, number, shared=shared, adaptive=nothing, static=nothing)
        with torch.no_grad():
            shared.out_proj.weight.copy_(own.out_proj.weight)
            mixing.out_proj.bias.copy_(own.out_proj.bias)
        mixing.norm = own.norm
        mixing.register_module("private_share", shared)
        stage.mixing = mixing
    return model


@pytest.mark.parametrize("sampling", [(4, 32), (2, 64), (1, 10)], ids=str)
def test_rank_0_and_private_shares_are_adamixer_bit_for_bit(small_model, batch, sampling):
    groups, points = sampling
    plain = small_model(changes={"MODEL.ADAMIXER.SAMPLING_GROUPS": groups, "MODEL.ADAMIXER.IN_POINTS": points})
    other = with_private_shares(plain)
    with torch.no_grad():
        ours, theirs = other.eval()(batch), plain.eval()(batch)
    for mine, true in zip(ours, theirs):
        assert torch.equal(mine["instances"].pred_boxes.tensor, true["instances"].pred_boxes.tensor)
        assert torch.equal(mine["instances"].scores, true["instances"].scores)
    loss, expected = losses_of(other, batch), losses_of(plain, batch)
    assert torch.equal(loss, expected)
    loss.backward()
    expected.backward()
    for mine, true in zip(other.decoder.stages, plain.decoder.stages):
        share = mine.mixing.private_share
        for linear, kernel in zip([*share.channel, *share.spatial], [*true.mixing.channel, *true.mixing.spatial]):
            assert torch.equal(linear.weight.grad, kernel.generator.weight.grad)
            assert torch.equal(linear.bias.grad, kernel.generator.bias.grad)
        assert torch.equal(share.out_proj.weight.grad, true.mixing.out_proj.weight.grad)
        assert torch.equal(mine.mixing.out_proj.bias.grad, true.mixing.out_proj.bias.grad)
    frozen = [p.grad for p in plain.backbone.res2.parameters()]
    assert all(gradient is None for gradient in frozen)
    for mine, true in zip(other.backbone.res5.parameters(), plain.backbone.res5.parameters()):
        assert torch.equal(mine.grad, true.grad)


def test_at_the_start_all_private_parts_are_zero(small_config, batch):
    torch.manual_seed(0)
    model = build_model(small_config("lors_R50")).eval()
    alone = copy.deepcopy(model)
    for stage in alone.decoder.stages:
        for layer in (*stage.mixing.channel, *stage.mixing.spatial, stage.mixing.out_proj):
            layer.A = layer.B = None
    with torch.no_grad():
        for mine, true in zip(model(batch), alone(batch)):
            assert torch.equal(mine["instances"].scores, true["instances"].scores)
            assert torch.equal(mine["instances"].pred_boxes.tensor, true["instances"].pred_boxes.tensor)


def test_shared_tensors_stand_once_and_zeros_learn_first(small_config, batch):
    cfg = small_config("lors_R50")
    torch.manual_seed(0)
    model = build_model(cfg)
    shared = {f"{kind}.{group}.{x}" for kind in ("channel", "spatial") for group in "01" for x in ("weight", "bias")}
    state = model.state_dict()
    assert {name.removeprefix("decoder.shared.") for name in state if "shared" in name} == shared | {"out_proj.weight"}
    assert not any("generator" in name for name in state)
    trained = [p for group in parameter_groups(cfg, model) for p in group["params"]]
    assert len(trained) == len(set(trained)) and set(trained) == {p for p in model.parameters() if p.requires_grad}
    assert sum(p is model.decoder.shared.out_proj.weight for p in trained) == 1

    # The box heads start at zero, and with them what lies before: a second step reaches all.
    optimizer = torch.optim.AdamW(trained, 1e-3)
    for step in range(3):
        optimizer.zero_grad()
        losses_of(model, batch).backward()
        reached = {name for name, p in model.decoder.named_parameters() if p.grad.any()}
        private = {name for name in model.decoder.state_dict() if name.endswith((".A", ".B", "E.weight"))}
        first = {name for name in private if name.endswith("E.weight") or name.endswith("out_proj.A")}
        assert private & reached == (first if step == 0 else private)
        optimizer.step()


def test_the_gradient_of_a_shared_tensor_is_the_sum_over_the_stages(small_model, batch):
    model = small_model("lors_R50")
    losses_of(model, batch).backward()
    total = model.decoder.shared.channel[1].weight.grad.clone()
    separate = copy.deepcopy(model)
    separate.zero_grad()
    copies = []
    for stage in separate.decoder.stages:
        copies.append(copy.deepcopy(separate.decoder.shared.channel[1]))
        stage.mixing.channel[1].__dict__["shared"] = copies[-1]
    losses_of(separate, batch).backward()
    parts = [linear.weight.grad for linear in copies]
    assert all(part.any() for part in parts) and len(parts) == 3
    torch.testing.assert_close(total, sum(parts), rtol=1e-4, atol=1e-6 * total.abs().max().item())


def test_the_static_part_merges(small_model):
    model = small_model("lors_R50")
    layer = model.decoder.stages[2].mixing.out_proj
    x = torch.randn(4, layer.in_features)
    whole = model.decoder.shared.out_proj.weight + (layer.B[0] @ layer.A[0]).T
    torch.testing.assert_close(layer.weight, whole)
    torch.testing.assert_close(layer(x), x @ whole.T + layer.bias)


def test_sizes_of_the_mixing():
    size = MixingSize(256, 2, 64, 128)
    assert (size.channels, size.channel_numbers, size.spatial_numbers, size.mixed) == (128, 16384, 8192, 32768)
