import pytest
import torch
from torch import nn

import detectron2
import detectron2.modeling as modeling
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec

lite_only = pytest.mark.skipif(
    getattr(detectron2, "__runtime__", None) != "lite", reason="a full Detectron2 has what the lite runtime refuses"
)

REGISTERED = {
    "META_ARCH_REGISTRY": ["GeneralizedRCNN", "ProposalNetwork", "PanopticFPN", "RetinaNet", "SemanticSegmentor"],
    "BACKBONE_REGISTRY": [
        "build_resnet_backbone",
        "build_resnet_fpn_backbone",
        "build_retinanet_resnet_fpn_backbone",
    ],
    "PROPOSAL_GENERATOR_REGISTRY": ["RPN", "RRPN"],
    "RPN_HEAD_REGISTRY": ["StandardRPNHead"],
    "ROI_HEADS_REGISTRY": ["Res5ROIHeads", "StandardROIHeads", "CascadeROIHeads", "RROIHeads"],
    "ROI_BOX_HEAD_REGISTRY": ["FastRCNNConvFCHead"],
    "ROI_MASK_HEAD_REGISTRY": ["MaskRCNNConvUpsampleHead"],
    "ROI_KEYPOINT_HEAD_REGISTRY": ["KRCNNConvDeconvUpsampleHead"],
    "SEM_SEG_HEADS_REGISTRY": ["SemSegFPNHead"],
    "ANCHOR_GENERATOR_REGISTRY": ["DefaultAnchorGenerator", "RotatedAnchorGenerator"],
}


@pytest.mark.parametrize("registry", REGISTERED)
def test_registered_names(registry):
    for name in REGISTERED[registry]:
        assert getattr(modeling, registry).get(name).__name__ == name
    with pytest.raises(KeyError, match="Nonexistent"):
        getattr(modeling, registry).get("Nonexistent")


def test_build_model_calls_the_registered_class():
    class Registered(nn.Module):
        def __init__(self, cfg):
            super().__init__()
            self.weight = nn.Parameter(torch.full((1,), float(cfg.SOLVER.MAX_ITER)))

    name = "ModelOfTestRegistries"
    modeling.META_ARCH_REGISTRY._do_register(name, Registered)
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE, cfg.SOLVER.MAX_ITER = name, "cpu", 7
    model = modeling.build_model(cfg)
    assert type(model) is Registered and model.weight.item() == 7
    cfg.MODEL.DEVICE = "meta"
    assert modeling.build_model(cfg).weight.device.type == "meta"


def test_build_backbone_takes_the_channels_from_the_config():
    seen = []

    def build(cfg, input_shape):
        seen.append(input_shape)
        return modeling.build_resnet_backbone(cfg, input_shape)

    modeling.BACKBONE_REGISTRY._do_register("BackboneOfTestRegistries", build)
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "BackboneOfTestRegistries"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2"]
    cfg.MODEL.PIXEL_MEAN = [0.0] * 4
    assert modeling.build_backbone(cfg).stem.conv1.in_channels == 4
    modeling.build_backbone(cfg, ShapeSpec(channels=5))
    assert [shape.channels for shape in seen] == [4, 5]


def test_build_sem_seg_head():
    modeling.SEM_SEG_HEADS_REGISTRY._do_register("HeadOfTestRegistries", lambda cfg, shape: (cfg, shape))
    cfg = get_cfg()
    cfg.MODEL.SEM_SEG_HEAD.NAME = "HeadOfTestRegistries"
    assert modeling.build_sem_seg_head(cfg, {"res2": 1}) == (cfg, {"res2": 1})


def test_precomputed_proposals_need_no_generator():
    cfg = get_cfg()
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"
    assert modeling.build_proposal_generator(cfg, {}) is None


@lite_only
@pytest.mark.parametrize("name", REGISTERED["META_ARCH_REGISTRY"])
def test_left_out_architectures_refuse_to_be_built(name):
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE = name, "cpu"
    with pytest.raises(detectron2.NotInLiteRuntime, match=name):
        modeling.build_model(cfg)


@lite_only
@pytest.mark.parametrize("name", ["ViT", "MViT", "GeneralizedRCNNWithTTA", "MMDetDetector", "StandardROIHeads", "FCOS"])
def test_left_out_classes_refuse(name):
    with pytest.raises(detectron2.NotInLiteRuntime, match=name):
        getattr(modeling, name)()


@lite_only
def test_deformable_blocks_refuse():
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False, True, True, True]
    with pytest.raises(detectron2.NotInLiteRuntime, match="DeformBottleneckBlock"):
        modeling.build_backbone(cfg)
