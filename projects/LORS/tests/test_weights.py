"""Checkpoints of others: names of AdaMixer's authors, of the reference data and of ImageNet backbones."""
import logging
import re

import pytest
import torch
import torch.nn.functional as F
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

from lors.mixing import MixingSize
from lors.weights import from_upstream, to_upstream
from lowrank_d2.engine.checkpoint import LowRankCheckpointer
from lowrank_d2.errors import CheckpointError

LORS = "MODEL.ADAMIXER.LORS."


def fresh(small_config, *arguments):
    torch.manual_seed(9)
    return build_model(small_config(*arguments)).eval()


def mmdet(state):
    """Our backbone's names as torchvision's ResNet has them."""
    renamed = {}
    for name, tensor in state.items():
        name = re.sub(r"backbone\.stem\.", "backbone.", name)
        name = re.sub(r"backbone\.res(\d)", lambda match: f"backbone.layer{int(match[1]) - 1}", name)
        name = re.sub(r"conv(\d)\.norm", r"bn\1", name).replace("shortcut.norm", "downsample.1")
        renamed[name.replace("shortcut.", "downsample.0.")] = tensor
    return renamed


def assert_same_weights(a, b):
    assert a.state_dict().keys() == b.state_dict().keys()
    assert [name for name, tensor in a.state_dict().items() if not torch.equal(tensor, b.state_dict()[name])] == []


@pytest.mark.parametrize("checkpointer", [DetectionCheckpointer, LowRankCheckpointer])
@pytest.mark.parametrize("name, changes", [
    ("adamixer_R50", {}), ("lors_R50", {}),
    ("lors_R50", {LORS + "STATIC": False}), ("lors_R50", {LORS + "ADAPTIVE": False}),
    ("lors_R50", {LORS + "ADAPTIVE_RANK": 0, LORS + "STATIC_GROUPS": [2, 0, 1]}),
], ids=str)
def test_the_names_of_others_load_by_themselves(tmp_path, small_config, small_model, checkpointer, name, changes):
    model = small_model(name, changes)
    theirs = mmdet(to_upstream(model.state_dict(), model.mixing_size))
    assert theirs.keys() != model.state_dict().keys()
    whole = "state_dict" if checkpointer is LowRankCheckpointer else "model"  # mmdetection's word is not Detectron2's
    torch.save({whole: theirs, "meta": {"epoch": 12}}, tmp_path / "w.pth")
    loaded = fresh(small_config, name, changes)
    checkpointer(loaded).load(str(tmp_path / "w.pth"))
    assert_same_weights(loaded, model)
    ours = from_upstream(theirs, model.mixing_size)
    assert ours.keys() == model.state_dict().keys()
    again = from_upstream(ours, model.mixing_size)
    assert again.keys() == ours.keys() and all(torch.equal(again[each], ours[each]) for each in ours)


def test_the_names_are_the_authors(small_model, reference):
    stored = {
        re.sub(r"\{0\.\.5\}", str(i), name)
        for name in reference("init.json")["state_dict_4x32_R50"] for i in range(3)
    }
    model = small_model()
    names = to_upstream(model.state_dict(), model.mixing_size).keys()
    assert {name for name in names if not name.startswith("backbone.")} == stored


SWIN = {
    "MODEL.SWIN.EMBED_DIM": 8, "MODEL.SWIN.DEPTHS": [1, 1, 2, 1], "MODEL.SWIN.NUM_HEADS": [1, 2, 2, 4],
    "MODEL.ADAMIXER.NUM_STAGES": 1,
}


def test_the_names_of_mmdetections_swin_load(small_config, small_model):
    model = small_model("lors_SwinS", SWIN)
    theirs = {}
    for name, tensor in to_upstream(model.state_dict(), model.mixing_size).items():
        name = name.replace("backbone.layers.", "backbone.stages.").replace("patch_embed.proj.", "patch_embed.projection.")
        name = re.sub(r"(blocks\.\d+\.attn)", r"\1.w_msa", name).replace("mlp.fc1", "ffn.layers.0.0")
        if ".downsample." in name:
            tensor = tensor.unflatten(-1, (4, -1))[..., (0, 2, 1, 3), :].transpose(-1, -2).flatten(-2)
        theirs[name.replace("mlp.fc2", "ffn.layers.1")] = tensor
    assert sum("w_msa" in name for name in theirs) == 5 * 6
    loaded = fresh(small_config, "lors_SwinS", SWIN)
    loaded.load_state_dict(theirs)
    assert_same_weights(loaded, model)


def test_mmdetections_swin_merges_the_columns_of_unfold():
    weights = {"norm.weight": torch.randn(32), "norm.bias": torch.randn(32), "reduction.weight": torch.randn(16, 32)}

    def merged(patches, names, prefix):  # (2, 32, 6) -> (2, 6, 16)
        norm, bias, reduction = (names[f"backbone.{prefix}.0.downsample.{name}"] for name in weights)
        return F.linear(F.layer_norm(patches.transpose(1, 2), (32,), norm, bias), reduction)

    theirs = {f"backbone.stages.0.downsample.{name}": x for name, x in weights.items()}
    ours = from_upstream(theirs, MixingSize(32, 2, 9, 12))
    x = torch.randn(2, 8, 6, 4)
    by_place = torch.cat([x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)], dim=1).flatten(2)
    expected = merged(F.unfold(x, 2, stride=2), theirs, "stages")
    torch.testing.assert_close(merged(by_place, ours, "layers"), expected)


def test_packed_generators_alternate_channel_and_spatial_kernels(small_model):
    model = small_model()  # four groups of 8 channels, 9 points to 12
    packed = to_upstream(model.state_dict(), model.mixing_size)
    name = "roi_head.bbox_head.1.sampling_n_mixing.adaptive_mixing.parameter_generator.0.bias"
    blocks = packed[name].view(4, 64 + 108)
    mixing = model.decoder.stages[1].mixing
    assert torch.equal(blocks[2, :64], mixing.channel[2].generator.bias)
    assert torch.equal(blocks[3, 64:], mixing.spatial[3].generator.bias)
    incomplete = {each: x for each, x in model.state_dict().items() if "stages.1.mixing.spatial.3" not in each}
    with pytest.raises(CheckpointError, match="Stage 1 has 7 kernel generators of 8"):
        to_upstream(incomplete, model.mixing_size)


@pytest.mark.parametrize("name, kept", [
    ("lors_R50", r".*\.A"), ("lors_R50", r".*\.B"), ("lors_R50", r".*\.(A|E\.\w+)"), ("lors_R50", r".*spatial\.1\..*"),
    ("lors_R50", r".*out_proj\.(A|bias)"), ("adamixer_R50", r".*mixing\.out_proj\.bias"),
])
def test_a_part_of_a_state_dict_converts_as_the_whole_does(small_model, name, kept):
    model = small_model(name, {LORS + "ADAPTIVE_GROUPS": [2, 1, 3]})
    whole = to_upstream(model.state_dict(), model.mixing_size)
    part = {each: x for each, x in model.state_dict().items() if re.fullmatch(kept, each) and ".shared." not in each}
    theirs = to_upstream(part, model.mixing_size)
    assert theirs and all(torch.equal(x, whole[each]) for each, x in theirs.items())
    back = from_upstream(theirs, model.mixing_size)
    assert back.keys() == part.keys() and all(torch.equal(back[each], x) for each, x in part.items())


def test_low_rank_groups_that_cannot_be_told_apart_are_refused(small_model):
    model = small_model("lors_R50", {LORS + "ADAPTIVE_GROUPS": [2, 1, 3]})
    name = "decoder.stages.2.mixing.channel.1.E.weight"
    with pytest.raises(CheckpointError, match=r"channel\.1\.E\.weight stands without .*channel\.1\.B and A"):
        to_upstream({name: model.state_dict()[name]}, model.mixing_size)
    theirs = to_upstream(model.state_dict(), model.mixing_size)
    del theirs["roi_head.bbox_head.2.lors_channel.1.1.E.weight"]
    with pytest.raises(CheckpointError, match=f"{name} has 2 low-rank groups, the last with number 2, but lacks group 1"):
        from_upstream(theirs, model.mixing_size)


def test_other_classes_are_initialised_anew_and_named(tmp_path, small_config, small_model, caplog):
    model = small_model("lors_R50")
    torch.save({"model": model.state_dict()}, tmp_path / "w.pth")
    other = fresh(small_config, "lors_R50", {"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 3})
    with caplog.at_level(logging.WARNING):
        LowRankCheckpointer(other).load(str(tmp_path / "w.pth"))
    assert other.decoder.stages[0].heads.class_embed.weight.shape == (3, 32)
    assert torch.equal(other.decoder.stages[2].heads.box_embed.weight, model.decoder.stages[2].heads.box_embed.weight)
    assert "decoder.stages.2.heads.class_embed.weight" in caplog.text and "box_embed" not in caplog.text


@pytest.mark.parametrize("bare", [True, False], ids=["torchvision", "detectron2"])
def test_an_imagenet_backbone_starts_a_model(tmp_path, small_config, small_model, caplog, bare):
    model = small_model()
    backbone = {name: x for name, x in model.state_dict().items() if name.startswith("backbone.")}
    if bare:
        backbone = {name.removeprefix("backbone."): x for name, x in mmdet(backbone).items()}
        backbone |= {"fc.weight": torch.zeros(10, 3), "fc.bias": torch.zeros(10)}
    backbone = {name: x for name, x in backbone.items() if not name.endswith("num_batches_tracked")}
    torch.save(backbone if bare else {"model": backbone}, tmp_path / "w.pth")
    started = fresh(small_config)
    before = started.decoder.stages[0].attention.qkv.weight.clone()
    with caplog.at_level(logging.WARNING):
        LowRankCheckpointer(started).load(str(tmp_path / "w.pth"))
    assert torch.equal(started.backbone.res4[1].conv2.weight, model.backbone.res4[1].conv2.weight)
    norm, theirs = started.backbone.res3[0].shortcut.norm, model.backbone.res3[0].shortcut.norm
    assert torch.equal(norm.running_var, theirs.running_var)
    assert torch.equal(started.decoder.stages[0].attention.qkv.weight, before)
    assert "no neck" in caplog.text and "no decoder" in caplog.text and "no backbone" not in caplog.text


def test_models_of_other_kinds_are_refused(tmp_path, small_config, small_model):
    plain = small_model()
    torch.save({"model": to_upstream(plain.state_dict(), plain.mixing_size)}, tmp_path / "upstream.pth")
    torch.save({"model": plain.state_dict()}, tmp_path / "ours.pth")
    for name, changes in (
        ("adamixer_R50_2x64", {"MODEL.ADAMIXER.IN_POINTS": 16}),
        ("adamixer_R50", {"MODEL.ADAMIXER.NUM_STAGES": 2}),
        ("adamixer_R50", {"MODEL.ADAMIXER.NUM_QUERIES": 7}),
        ("lors_R50", {"MODEL.ADAMIXER.SAMPLING_GROUPS": 4}),
    ):
        for form in ("upstream", "ours"):
            with pytest.raises(CheckpointError):
                LowRankCheckpointer(fresh(small_config, name, changes)).load(str(tmp_path / f"{form}.pth"))
    with pytest.raises(CheckpointError, match="cannot start one with LORS"):
        same_size = {"MODEL.ADAMIXER.SAMPLING_GROUPS": 4}
        fresh(small_config, "lors_R50", same_size).load_state_dict(plain.state_dict(), strict=False)
    with pytest.raises(CheckpointError, match="None of the 1 tensors"):
        fresh(small_config).load_state_dict({"something.weight": torch.zeros(1)}, strict=False)
    state = plain.state_dict()
    del state["decoder.stages.1.ffn.norm.weight"]
    with pytest.raises(CheckpointError, match="lacks a part of the model's decoder: decoder.stages.1.ffn.norm.weight"):
        fresh(small_config).load_state_dict(state, strict=False)
