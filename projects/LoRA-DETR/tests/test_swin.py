"""Relation-DETR's Swin: outputs without norms, frozen first stage, the names of torchvision's files."""
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone

from lora_detr.weights import from_upstream, our_name
from lowrank_d2.config import add_lowrank_config

STAGES = ("res3", "res4", "res5")


def build(name="SwinWithoutNorms", freeze_at=2):
    cfg = get_cfg()
    add_lowrank_config(cfg)
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = name, freeze_at
    cfg.MODEL.SWIN.EMBED_DIM, cfg.MODEL.SWIN.WINDOW_SIZE = 16, 4
    cfg.MODEL.SWIN.DEPTHS, cfg.MODEL.SWIN.NUM_HEADS = [1, 2, 3, 1], [1, 2, 2, 4]
    cfg.MODEL.SWIN.OUT_FEATURES = list(STAGES)
    torch.manual_seed(0)
    return build_backbone(cfg).eval()


def torchvision_name(name):
    """What torchvision calls a tensor of our Swin."""
    parts = name.split(".")
    if parts[0] == "patch_embed":
        return f"features.0.{0 if parts[1] == 'proj' else 2}.{parts[2]}"
    stage, part = int(parts[1]), parts[2]
    if part == "downsample":
        return f"features.{2 * stage + 2}.{'.'.join(parts[3:])}"
    rest = ".".join(parts[4:]).replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.3")
    return f"features.{2 * stage + 1}.{parts[3]}.{rest}"


@torch.no_grad()
def test_norms_of_the_outputs_are_all_that_is_missing():
    plain, normed = build(), build("D2SwinTransformer")
    plain.load_state_dict(normed.state_dict())
    assert normed.state_dict().keys() - plain.state_dict().keys() == {
        f"norm{i}.{name}" for i in (1, 2, 3) for name in ("weight", "bias")
    }
    image = torch.randn(1, 3, 64, 96)
    outputs, expected = plain(image), normed(image)
    assert tuple(outputs) == STAGES
    for i, name in enumerate(STAGES, start=1):
        by_norm = getattr(normed, f"norm{i}")(outputs[name].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        torch.testing.assert_close(by_norm, expected[name])


@pytest.mark.parametrize("freeze_at, frozen", [
    (0, set()), (1, {"patch_embed"}), (2, {"patch_embed", "layers.0"}), (3, {"patch_embed", "layers.0", "layers.1"}),
])
def test_parts_are_frozen_from_the_first_on(freeze_at, frozen):
    parameters = dict(build(freeze_at=freeze_at).named_parameters())
    part = {name: "patch_embed" if name.startswith("patch") else name[: len("layers.0")] for name in parameters}
    assert {name for name, p in parameters.items() if not p.requires_grad} == {n for n in part if part[n] in frozen}
    assert set(part.values()) == {"patch_embed", *(f"layers.{i}" for i in range(4))}


@pytest.mark.parametrize("prefix", ["", "backbone.0.", "backbone."])
def test_torchvisions_names_load(prefix):
    model = build()
    mine = {name: torch.rand_like(tensor) for name, tensor in model.named_parameters()}
    theirs = {prefix + torchvision_name(name): tensor for name, tensor in mine.items()}
    assert len(theirs) == len(mine)
    theirs[f"{prefix}features.1.0.attn.relative_position_index"] = torch.zeros(256, dtype=torch.int64)
    loaded = from_upstream(theirs | {"norm.weight": torch.zeros(128), "head.bias": torch.zeros(5)})
    assert loaded.keys() == {f"backbone.{name}" for name in mine}
    assert all(loaded[f"backbone.{name}"] is tensor for name, tensor in mine.items())


@pytest.mark.parametrize("theirs, ours", [
    ("backbone.0.features.0.0.weight", "patch_embed.proj.weight"),
    ("backbone.0.features.0.2.bias", "patch_embed.norm.bias"),
    ("backbone.0.features.4.reduction.weight", "layers.1.downsample.reduction.weight"),
    ("backbone.0.features.5.17.mlp.3.bias", "layers.2.blocks.17.mlp.fc2.bias"),
    ("backbone.features.7.1.attn.relative_position_bias_table", "layers.3.blocks.1.attn.relative_position_bias_table"),
    ("features.1.0.norm1.weight", "layers.0.blocks.0.norm1.weight"),
    ("layers.2.blocks.3.mlp.fc1.weight", "layers.2.blocks.3.mlp.fc1.weight"),
])
def test_names_of_published_swins(theirs, ours):
    assert our_name(theirs) == f"backbone.{ours}"
