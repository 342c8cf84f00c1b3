"""Models that know nothing of us: adapted, trained, saved, loaded, merged. The code of the README's section runs here.

The R-CNNs need a full Detectron2; backbones are tested on both runtimes.
"""
import copy
import importlib
import importlib.util
import re
import runpy
import shlex
from pathlib import Path

import detectron2
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.utils.events import EventStorage
from lowrank_d2.engine.defaults import run_tool
from lowrank_d2.errors import ConfigError
from lowrank_d2.peft import (
    AdaLoRA,
    DoRA,
    LoHa,
    LoKr,
    LoRA,
    check_gradients,
    count,
    eval_frozen,
    inject,
    load_delta,
    merge,
    read_header,
    save_delta,
)

from tests.peft import foreign

ROOT = Path(__file__).resolve().parents[2]
LITE = getattr(detectron2, "__runtime__", "full") == "lite"
HAS_TIMM = importlib.util.find_spec("timm") is not None
EVERY = [LoRA, DoRA, AdaLoRA, LoHa, LoKr]
needs_rcnn = pytest.mark.skipif(LITE, reason="d2lite has no model zoo and no ROI heads")
needs_timm = pytest.mark.skipif(not LITE and not HAS_TIMM, reason="ViT and Swin of a full Detectron2 need timm")


@pytest.fixture
def cpu_operators(monkeypatch):
    """Where torchvision's compiled operators do not load, ROIAlign has no gradient: d2lite's file stands in."""
    if LITE or torch._C._dispatch_has_kernel_for_dispatch_key("torchvision::_roi_align_backward", "CPU"):
        return
    path = ROOT / "d2lite" / "detectron2" / "layers" / "roi_align.py"
    spec = importlib.util.spec_from_file_location("differentiable_roi_align", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(importlib.import_module("detectron2.layers.roi_align"), "roi_align", module.roi_align)


def on(method, *targets):
    """A method on some targets; of rank 2, where AdaLoRA has ranks of its own."""
    return AdaLoRA(targets=targets) if method is AdaLoRA else method(rank=2, targets=targets)


def trained(model, losses, steps=2):
    """`model` in eval mode after some steps on its trainable parameters."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    eval_frozen(model)
    with EventStorage():
        for _ in range(steps):
            optimizer.zero_grad()
            losses(model).backward()
            check_gradients(model)
            optimizer.step()
    return model.eval()


@torch.no_grad()
def check_round_trip(base, method, losses, outputs, tmp_path):
    """Train, save, load and merge; `outputs(model)` is a list of tensors. Returns the trained model."""
    base.eval()
    names = list(base.state_dict())
    with torch.enable_grad():
        model = trained(inject(copy.deepcopy(base), [method]), losses)
    before = base.state_dict()
    assert [name for name in model.state_dict() if name in before] == names
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items() if name in before)
    assert count(model).trainable == count(model).added > 0

    path = tmp_path / "delta.safetensors"
    save_delta(model, path, class_names=[])
    loaded = inject(copy.deepcopy(base), [method]).eval()
    load_delta(loaded, path)
    merged = copy.deepcopy(base)
    merged.load_state_dict(merge(loaded))
    theirs = outputs(model)
    assert any(not torch.allclose(a, b, rtol=1e-3) for a, b in zip(theirs, outputs(base))), "training changed nothing"
    for tensor, from_delta, from_merged in zip(theirs, outputs(loaded), outputs(merged), strict=True):
        assert torch.equal(tensor, from_delta)
        assert (tensor - from_merged).abs().max() <= 1e-4 * tensor.abs().max()
    return model


def features(model):
    """What a backbone gives for one picture."""
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return list(model(image).values())


def feature_loss(model):
    return sum(feature.square().mean().log1p() for feature in features(model))


def rcnn_loss(model):
    losses = model(foreign.batches()[0])
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"}
    return sum(losses.values())


def rcnn_outputs(model):
    """Features, and the instances found, at most five."""
    batch = foreign.batches()[0]
    found = model(batch)[0]["instances"]
    assert 0 < len(found) <= 5
    maps = model.backbone(model.preprocess_image(batch).tensor).values()
    return [*maps, found.pred_boxes.tensor, found.scores]


# Backbones, on both runtimes.


@needs_timm
@pytest.mark.parametrize("method", EVERY)
def test_swin_with_rows_of_its_packed_projections(method, tmp_path):
    from detectron2.modeling import SwinTransformer

    torch.manual_seed(0)
    base = SwinTransformer(embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8], drop_path_rate=0.1)
    model = check_round_trip(base, on(method, "qkv[q,v]"), feature_loss, features, tmp_path)
    block = model.layers[3].blocks[0].attn.qkv
    assert [(rows.start, rows.stop) for rows in block.slices] == [(0, 128), (256, 384)]
    assert torch.equal(block.weight[128:256], base.layers[3].blocks[0].attn.qkv.weight[128:256])


def resnet_fpn():
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.update(STEM_OUT_CHANNELS=8, RES2_OUT_CHANNELS=16, WIDTH_PER_GROUP=8)
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    torch.manual_seed(0)
    return build_backbone(cfg, ShapeSpec(channels=3))


@pytest.mark.parametrize("method", EVERY)
def test_convolutions_keep_their_norm_and_activation(method, tmp_path):
    method = on(method, "re:bottom_up\\.res[345]\\..*conv[123]", "fpn_output3")
    model = check_round_trip(resnet_fpn(), method, feature_loss, features, tmp_path)
    assert model.bottom_up.res4[0].conv1.norm is not None
    adapted = {name.rpartition(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(adapted) == 3 * (4 + 6 + 3) + 1 and not any("res2" in name for name in adapted)


def test_a_foreign_model_knows_all_and_none():
    with pytest.raises(ConfigError, match="knows only 'all', 'none'"):
        inject(resnet_fpn(), [on(LoRA, "conv1")], train="embeddings")
    assert inject(resnet_fpn(), [on(LoRA, "fpn_output3")], "all").fpn_output2.weight.requires_grad
    with pytest.raises(ConfigError, match="no targets of its own"):
        inject(resnet_fpn(), [LoRA()])


# Whole R-CNNs.


@needs_rcnn
@needs_timm
@pytest.mark.parametrize("method", [LoRA, DoRA])
def test_vitdet(cpu_operators, method, tmp_path):
    from detectron2.config import instantiate

    torch.manual_seed(0)
    model = instantiate(foreign.vitdet(depth=2))
    model = check_round_trip(model, on(method, "qkv[q,v]", "mlp.fc1"), rcnn_loss, rcnn_outputs, tmp_path)
    assert model.backbone.net.blocks[1].attn.qkv.slices[1].start == 1536


@needs_rcnn
@needs_timm
@pytest.mark.slow
@pytest.mark.parametrize("method", [LoRA, LoKr])
def test_swin_b(cpu_operators, method, tmp_path):
    from detectron2.config import instantiate

    torch.manual_seed(0)
    model = instantiate(foreign.swin([2, 2, 18, 2]))
    model = check_round_trip(model, on(method, "qkv[q,v]"), rcnn_loss, rcnn_outputs, tmp_path)
    if method is LoRA:  # two row blocks, rank 2, from 128 to 1024 channels
        assert count(model).added == 2 * 2 * 2 * (2 * 128 + 2 * 256 + 18 * 512 + 2 * 1024)


def rcnn(cfg):
    """Random weights with weak residual branches: with statistics that normalise nothing, features would explode."""
    from detectron2.modeling import build_model

    torch.manual_seed(0)
    model = build_model(cfg)
    for name, module in model.named_modules():
        if name.endswith("conv3.norm"):
            module.weight.fill_(0.1)
    return model


@needs_rcnn
def test_new_heads_train_with_lora_and_travel_in_the_delta(cpu_operators, tmp_path):
    cfg = zoo_config(tmp_path)

    def pretrained(head_seed):
        model = rcnn(cfg)
        torch.manual_seed(head_seed)
        torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.01)
        inject(model, [on(LoRA, "conv2")])
        model.roi_heads.box_predictor.requires_grad_(True)
        return model

    model = trained(pretrained(1), rcnn_loss, steps=1)
    save_delta(model, tmp_path / "delta.safetensors", class_names=[])
    other = pretrained(2).eval()
    load_delta(other, tmp_path / "delta.safetensors")
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(rcnn_outputs(model), rcnn_outputs(other), strict=True))


# The README's section.


def readme_blocks(language):
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## Any Detectron2 model\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def zoo_config(folder):
    """mask_rcnn_R_50_FPN_3x.yaml with few samples, at the path that the README names; returns it as a CfgNode."""
    from detectron2 import model_zoo

    name = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"
    path = folder / "configs" / name
    path.parent.mkdir(parents=True)
    path.write_text(f"_BASE_: {model_zoo.get_config_file(name)}\n{foreign.FEW_SAMPLES}")
    cfg = get_cfg()
    cfg.merge_from_file(str(path))
    return cfg


@needs_rcnn
@needs_timm
@pytest.mark.parametrize("depth", [2, pytest.param(12, marks=pytest.mark.slow)])
def test_the_python_of_the_readme_on_vitdet(cpu_operators, depth, tmp_path, monkeypatch):
    from detectron2.config import instantiate

    monkeypatch.chdir(tmp_path)
    path = tmp_path / "projects/ViTDet/configs/COCO/mask_rcnn_vitdet_b_100ep.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "from detectron2.config import LazyCall\nfrom tests.peft import foreign\n"
        f"model = foreign.vitdet({depth})\ndataloader = dict(train=LazyCall(foreign.batches)(count=2))\n"
    )
    torch.manual_seed(0)
    foreign.write_pkl(instantiate(foreign.vitdet(depth)), tmp_path / "model_final_61ccd1.pkl")
    names = {"__name__": "readme"}
    exec(compile(readme_blocks("python")[0], "README.md", "exec"), names)

    model, adapted, plain = (names[name].eval() for name in ("model", "adapted", "plain"))
    assert count(model).added == count(model).trainable == depth * 2 * 8 * (768 + 768)
    assert read_header("vitdet_delta.safetensors").num_classes == 80
    with torch.no_grad():
        for ours, loaded, merged in zip(*map(rcnn_outputs, (model, adapted, plain)), strict=True):
            assert torch.equal(ours, loaded) and torch.allclose(ours, merged, rtol=1e-4, atol=1e-4)


@needs_rcnn
def test_the_commands_of_the_readme_on_mask_rcnn(cpu_operators, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = rcnn(zoo_config(tmp_path))
    foreign.write_pkl(base, tmp_path / "model_final_f10217.pkl")
    foreign.write_coco(tmp_path)
    for line in readme_blocks("sh")[0].replace("\\\n", " ").splitlines():
        _, tool, *words = shlex.split(line)
        tool = runpy.run_path(str(ROOT / tool))
        assert run_tool(tool["main"], parser_of(tool), words) == 0
    header = read_header("output/rcnn/delta_final.safetensors")
    assert header.num_classes == 80 and header.train == "none"
    names = {"__name__": "readme"}
    exec(compile(readme_blocks("python")[1], "README.md", "exec"), names)

    adapted = inject(copy.deepcopy(base), header.methods).eval()
    load_delta(adapted, "output/rcnn/delta_final.safetensors")
    with torch.no_grad():
        for ours, merged in zip(rcnn_outputs(adapted), rcnn_outputs(names["predictor"].model), strict=True):
            assert (ours - merged).abs().max() <= 1e-4 * ours.abs().max()


@needs_rcnn
@pytest.mark.parametrize("train, code", [("none", 2), ("all", 0)])
def test_a_frozen_head_for_other_classes_ends_the_run_before_it_begins(cpu_operators, train, code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    foreign.write_pkl(rcnn(zoo_config(tmp_path)), tmp_path / "base.pkl")
    foreign.write_coco(tmp_path, classes=20)
    words = shlex.split(readme_blocks("sh")[0].replace("\\\n", " ").splitlines()[0])[2:]
    words[words.index("model_final_f10217.pkl")] = "base.pkl"
    words[words.index("none")] = train
    tool = runpy.run_path(str(ROOT / "tools" / "train_net.py"))
    assert run_tool(tool["main"], parser_of(tool), words) == code
    if code:
        message = capsys.readouterr().err
        assert "does not bring 6 parameters" in message and "roi_heads.box_predictor.cls_score.weight (21, 1024)" in message
        assert not Path("output/rcnn/metrics.json").exists()


def parser_of(tool):
    """The parser of merge.py, or that of train_net.py."""
    return tool["parser"]() if "parser" in tool else tool["train_parser"](tool["__doc__"])
