"""Models: registries and builders, backbones, and postprocessing."""
from detectron2.layers import ShapeSpec
from detectron2.modeling import box_regression, matcher, poolers, registries, sampling
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator, RotatedAnchorGenerator
from detectron2.modeling.backbone import (
    BACKBONE_REGISTRY, FPN, Backbone, MViT, ResNet, ResNetBlockBase, SimpleFeaturePyramid, SwinTransformer, ViT,
    build_backbone, build_resnet_backbone, get_vit_lr_decay_rate, make_stage,
)
from detectron2.modeling.meta_arch import (
    FCOS, META_ARCH_REGISTRY, GeneralizedRCNN, PanopticFPN, ProposalNetwork, RetinaNet, SemanticSegmentor, build_model,
)
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.modeling.mmdet_wrapper import MMDetBackbone, MMDetDetector
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.modeling.proposal_generator import RPN, RRPN, StandardRPNHead
from detectron2.modeling.registries import *  # noqa: F403
from detectron2.modeling.roi_heads import (
    BaseKeypointRCNNHead, BaseMaskRCNNHead, CascadeROIHeads, FastRCNNConvFCHead, FastRCNNOutputLayers,
    KRCNNConvDeconvUpsampleHead, MaskRCNNConvUpsampleHead, Res5ROIHeads, ROIHeads, RROIHeads, StandardROIHeads,
)
from detectron2.modeling.test_time_augmentation import DatasetMapperTTA, GeneralizedRCNNWithTTA

# What a config may name and the lite runtime lacks says so when it is built.
for registry, absent in (
    (META_ARCH_REGISTRY, (GeneralizedRCNN, ProposalNetwork, PanopticFPN, RetinaNet, SemanticSegmentor)),
    (registries.ANCHOR_GENERATOR_REGISTRY, (DefaultAnchorGenerator, RotatedAnchorGenerator)),
    (registries.PROPOSAL_GENERATOR_REGISTRY, (RPN, RRPN)), (registries.RPN_HEAD_REGISTRY, (StandardRPNHead,)),
    (registries.ROI_HEADS_REGISTRY, (Res5ROIHeads, StandardROIHeads, CascadeROIHeads, RROIHeads)),
    (registries.ROI_BOX_HEAD_REGISTRY, (FastRCNNConvFCHead,)),
    (registries.ROI_MASK_HEAD_REGISTRY, (MaskRCNNConvUpsampleHead,)),
    (registries.ROI_KEYPOINT_HEAD_REGISTRY, (KRCNNConvDeconvUpsampleHead,)),
    (registries.SEM_SEG_HEADS_REGISTRY, (SemSegFPNHead,)),
):
    for cls in absent:
        registry.register(cls)
del registry, absent, cls
