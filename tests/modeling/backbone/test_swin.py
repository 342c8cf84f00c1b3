import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone

import lowrank_d2  # noqa: F401  registers the backbone
from lowrank_d2.config import add_lowrank_config
from lowrank_d2.errors import ConfigError
from lowrank_d2.modeling.backbone.swin import DropPath


def build(**changes):
    cfg = get_cfg()
    add_lowrank_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "D2SwinTransformer"
    values = {"EMBED_DIM": 16, "DEPTHS": [1, 2, 1, 1], "NUM_HEADS": [1, 2, 2, 4], "WINDOW_SIZE": 4, **changes}
    cfg.merge_from_list([word for key, value in values.items() for word in ("MODEL.SWIN." + key, value)])
    torch.manual_seed(0)
    return build_backbone(cfg)


def test_outputs_have_the_names_widths_and_strides_of_a_resnets():
    model = build()
    shapes = model.output_shape()
    assert {name: (shape.channels, shape.stride) for name, shape in shapes.items()} == {
        "res2": (16, 4), "res3": (32, 8), "res4": (64, 16), "res5": (128, 32)
    }  # fmt: skip
    out = model(torch.randn(1, 3, 64, 96))
    assert {name: tuple(x.shape) for name, x in out.items()} == {
        name: (1, shape.channels, 64 // shape.stride, 96 // shape.stride) for name, shape in shapes.items()
    }


def test_only_the_features_asked_for_come_out():
    model = build(OUT_FEATURES=["res3", "res5"])
    outputs = model(torch.randn(1, 3, 32, 32))
    assert list(model.output_shape()) == ["res3", "res5"] == list(outputs)
    sum(x.sum() for x in outputs.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(ConfigError, match=r"\['p2'\]"):
        build(OUT_FEATURES=["p2"])


def test_a_checkpoint_with_the_norms_of_all_outputs_loads():
    whole, part = build().eval(), build(OUT_FEATURES=["res3", "res5"]).eval()
    with torch.no_grad():
        whole.norm1.weight.mul_(3)
    part.load_state_dict(whole.state_dict())
    image = torch.randn(1, 3, 32, 32)
    assert all(torch.equal(x, whole(image)[name]) for name, x in part(image).items())
    with pytest.raises(RuntimeError, match="norm7"):
        part.load_state_dict(whole.state_dict() | {"norm7.weight": torch.zeros(1)})


def test_drop_path_grows_linearly_and_acts_in_training_only():
    model = build(DROP_PATH_RATE=0.4)
    rates = [block.drop_path.rate for layer in model.layers for block in layer.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    image = torch.randn(1, 3, 32, 32)
    model.eval()
    assert torch.equal(model(image)["res5"], model(image)["res5"])
    model.train()
    assert not torch.equal(model(image)["res5"], model(image)["res5"])


def test_drop_path_keeps_the_mean():
    torch.manual_seed(0)
    out = DropPath(0.25)(torch.ones(4000, 2, 2))
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    assert out.mean().item() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(out[:, 0, 0], out[:, 1, 1])


def test_it_is_built_on_the_meta_device():
    with torch.device("meta"):
        assert next(build().parameters()).is_meta
