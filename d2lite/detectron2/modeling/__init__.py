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
from detectron2.modeling.registries import (
    ANCHOR_GENERATOR_REGISTRY, PROPOSAL_GENERATOR_REGISTRY, ROI_BOX_HEAD_REGISTRY, ROI_HEADS_REGISTRY,
    ROI_KEYPOINT_HEAD_REGISTRY, ROI_MASK_HEAD_REGISTRY, RPN_HEAD_REGISTRY, SEM_SEG_HEADS_REGISTRY,
    build_anchor_generator, build_box_head, build_keypoint_head, build_mask_head, build_proposal_generator,
    build_roi_heads, build_rpn_head, build_sem_seg_head,
)
from detectron2.modeling.roi_heads import (
    BaseKeypointRCNNHead, BaseMaskRCNNHead, CascadeROIHeads, FastRCNNConvFCHead, FastRCNNOutputLayers,
    KRCNNConvDeconvUpsampleHead, MaskRCNNConvUpsampleHead, Res5ROIHeads, ROIHeads, RROIHeads, StandardROIHeads,
)
from detectron2.modeling.test_time_augmentation import DatasetMapperTTA, GeneralizedRCNNWithTTA

# What a config may name and the lite runtime lacks says so when it is built.
for registry, absent in (
    (META_ARCH_REGISTRY, (GeneralizedRCNN, ProposalNetwork, PanopticFPN, RetinaNet, SemanticSegmentor)),
    (ANCHOR_GENERATOR_REGISTRY, (DefaultAnchorGenerator, RotatedAnchorGenerator)),
    (PROPOSAL_GENERATOR_REGISTRY, (RPN, RRPN)), (RPN_HEAD_REGISTRY, (StandardRPNHead,)),
    (ROI_HEADS_REGISTRY, (Res5ROIHeads, StandardROIHeads, CascadeROIHeads, RROIHeads)),
    (ROI_BOX_HEAD_REGISTRY, (FastRCNNConvFCHead,)),
    (ROI_MASK_HEAD_REGISTRY, (MaskRCNNConvUpsampleHead,)),
    (ROI_KEYPOINT_HEAD_REGISTRY, (KRCNNConvDeconvUpsampleHead,)),
    (SEM_SEG_HEADS_REGISTRY, (SemSegFPNHead,)),
):
    for cls in absent:
        registry.register(cls)
del registry, absent, cls
