"""Modules of Detectron2 that have no file here: one table, from which the import system makes them.

A row lists a module's names. Their form says what they are: Capitalised ones are classes and lower-case ones functions
that refuse when called, CAPITALS are tables that refuse when read, and ..._REGISTRY is an empty registry. What follows
"< module:" is taken from that module instead.
"""
import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec

from detectron2._lite import RefusedTable, refused, refused_class

ABSENT = {
    "data.benchmark": "DataLoaderBenchmark iter_benchmark",
    "data.datasets.cityscapes": "load_cityscapes_instances load_cityscapes_semantic main",
    "data.datasets.cityscapes_panoptic": "get_cityscapes_panoptic_files load_cityscapes_panoptic"
    " register_all_cityscapes_panoptic < data.datasets.builtin_meta: CITYSCAPES_CATEGORIES",
    "data.datasets.coco_panoptic": "load_coco_panoptic_json register_coco_panoptic register_coco_panoptic_separated"
    " merge_to_panoptic",
    "data.datasets.lvis": "LVIS_V0_5_CATEGORIES LVIS_V1_CATEGORIES LVIS_V1_CATEGORY_IMAGE_COUNT load_lvis_json"
    " register_lvis_instances get_lvis_instances_meta main",
    "data.datasets.lvis_v0_5_categories": "LVIS_CATEGORIES",
    "data.datasets.lvis_v1_categories": "LVIS_CATEGORIES",
    "data.datasets.lvis_v1_category_image_count": "LVIS_CATEGORY_IMAGE_COUNT",
    "data.datasets.pascal_voc": "CLASS_NAMES load_voc_instances register_pascal_voc",
    "data.datasets.register_coco": "register_coco_panoptic_separated < data.datasets.coco: register_coco_instances",
    "evaluation.cityscapes_evaluation": "CityscapesEvaluator CityscapesInstanceEvaluator CityscapesSemSegEvaluator",
    "evaluation.lvis_evaluation": "LVISEvaluator",
    "evaluation.panoptic_evaluation": "COCOPanopticEvaluator",
    "evaluation.pascal_voc_evaluation": "PascalVOCDetectionEvaluator parse_rec voc_ap voc_eval",
    "evaluation.rotated_coco_evaluation": "RotatedCOCOeval RotatedCOCOEvaluator",
    "export": "Caffe2Model Caffe2Tracer STABLE_ONNX_OPSET_VERSION TracingAdapter add_export_config dump_torchscript_IR"
    " scripting_with_instances",
    "export.api": "< export: Caffe2Model Caffe2Tracer add_export_config",
    "export.flatten": "Schema ListSchema TupleSchema IdentitySchema DictSchema InstancesSchema TensorWrapSchema"
    " flatten_to_tuple < export: TracingAdapter",
    "export.torchscript": "export_torchscript_with_instances freeze_training_mode patch_instances"
    " < export: dump_torchscript_IR scripting_with_instances",
    "export.torchscript_patch": "patch_builtin_len patch_nonscriptable_classes"
    " < export.torchscript: freeze_training_mode patch_instances",
    "layers.losses": "ciou_loss diou_loss",
    "layers.deform_conv": "DeformConv ModulatedDeformConv deform_conv modulated_deform_conv",
    "layers.roi_align_rotated": "ROIAlignRotated roi_align_rotated",
    "layers.rotated_boxes": "pairwise_iou_rotated",
    "model_zoo": "get get_checkpoint_url get_config get_config_file",
    "model_zoo.model_zoo": "< model_zoo: get get_checkpoint_url get_config get_config_file",
    "modeling.anchor_generator": "BufferList DefaultAnchorGenerator RotatedAnchorGenerator"
    " < modeling.registries: ANCHOR_GENERATOR_REGISTRY build_anchor_generator",
    "modeling.backbone.mvit": "MViT MultiScaleAttention MultiScaleBlock attention_pool",
    "modeling.backbone.regnet": "SE AnyStage BasicTransform BottleneckTransform AnyNet RegNet ResStem SimpleStem"
    " VanillaBlock ResBasicBlock ResBottleneckBlock adjust_block_compatibility conv2d gap2d generate_regnet_parameters"
    " init_weights pool2d",
    "modeling.backbone.utils": "PatchEmbed window_partition window_unpartition add_decomposed_rel_pos get_abs_pos"
    " get_rel_pos",
    "modeling.backbone.vit": "ViT SimpleFeaturePyramid Attention Block ResBottleneckBlock get_vit_lr_decay_rate",
    "modeling.box_regression": "Box2BoxTransform Box2BoxTransformRotated Box2BoxTransformLinear",
    "modeling.matcher": "Matcher",
    "modeling.meta_arch.dense_detector": "DenseDetector permute_to_N_HWA_K",
    "modeling.meta_arch.fcos": "FCOS FCOSHead",
    "modeling.meta_arch.panoptic_fpn": "PanopticFPN combine_semantic_and_instance_outputs"
    " < modeling.meta_arch.build: META_ARCH_REGISTRY",
    "modeling.meta_arch.rcnn": "GeneralizedRCNN ProposalNetwork < modeling.meta_arch.build: META_ARCH_REGISTRY",
    "modeling.meta_arch.retinanet": "RetinaNet RetinaNetHead < modeling.meta_arch.build: META_ARCH_REGISTRY",
    "modeling.meta_arch.semantic_seg": "SemanticSegmentor SemSegFPNHead"
    " < modeling.registries: SEM_SEG_HEADS_REGISTRY build_sem_seg_head < modeling.meta_arch.build: META_ARCH_REGISTRY",
    "modeling.mmdet_wrapper": "MMDetBackbone MMDetDetector",
    "modeling.poolers": "ROIPooler assign_boxes_to_levels convert_boxes_to_pooler_format",
    "modeling.proposal_generator": "RPN RRPN StandardRPNHead < modeling.registries: PROPOSAL_GENERATOR_REGISTRY"
    " RPN_HEAD_REGISTRY build_proposal_generator build_rpn_head",
    "modeling.proposal_generator.build": "< modeling.registries: PROPOSAL_GENERATOR_REGISTRY build_proposal_generator",
    "modeling.proposal_generator.proposal_utils": "add_ground_truth_to_proposals find_top_rpn_proposals"
    " add_ground_truth_to_proposals_single_image",
    "modeling.proposal_generator.rpn": "< modeling.proposal_generator: RPN StandardRPNHead RPN_HEAD_REGISTRY"
    " build_rpn_head",
    "modeling.proposal_generator.rrpn": "find_top_rrpn_proposals < modeling.proposal_generator: RRPN",
    "modeling.roi_heads": "BaseKeypointRCNNHead BaseMaskRCNNHead CascadeROIHeads FastRCNNConvFCHead"
    " FastRCNNOutputLayers KRCNNConvDeconvUpsampleHead MaskRCNNConvUpsampleHead ROIHeads RROIHeads Res5ROIHeads"
    " StandardROIHeads select_foreground_proposals"
    " < modeling.registries: ROI_BOX_HEAD_REGISTRY ROI_HEADS_REGISTRY ROI_KEYPOINT_HEAD_REGISTRY ROI_MASK_HEAD_REGISTRY"
    " build_box_head build_keypoint_head build_mask_head build_roi_heads",
    "modeling.roi_heads.box_head": "< modeling.roi_heads: FastRCNNConvFCHead ROI_BOX_HEAD_REGISTRY build_box_head",
    "modeling.roi_heads.cascade_rcnn": "< modeling.roi_heads: CascadeROIHeads ROI_HEADS_REGISTRY StandardROIHeads",
    "modeling.roi_heads.fast_rcnn": "fast_rcnn_inference fast_rcnn_inference_single_image"
    " < modeling.roi_heads: FastRCNNOutputLayers",
    "modeling.roi_heads.keypoint_head": "keypoint_rcnn_inference keypoint_rcnn_loss < modeling.roi_heads:"
    " BaseKeypointRCNNHead KRCNNConvDeconvUpsampleHead ROI_KEYPOINT_HEAD_REGISTRY build_keypoint_head",
    "modeling.roi_heads.mask_head": "mask_rcnn_inference mask_rcnn_loss < modeling.roi_heads:"
    " BaseMaskRCNNHead MaskRCNNConvUpsampleHead ROI_MASK_HEAD_REGISTRY build_mask_head",
    "modeling.roi_heads.roi_heads": "select_proposals_with_visible_keypoints < modeling.roi_heads:"
    " ROIHeads Res5ROIHeads StandardROIHeads ROI_HEADS_REGISTRY build_roi_heads select_foreground_proposals",
    "modeling.roi_heads.rotated_fast_rcnn": "RotatedFastRCNNOutputLayers fast_rcnn_inference_rotated"
    " fast_rcnn_inference_single_image_rotated < modeling.roi_heads: RROIHeads",
    "modeling.sampling": "subsample_labels",
    "modeling.test_time_augmentation": "DatasetMapperTTA GeneralizedRCNNWithTTA",
    "projects.deeplab.loss": "DeepLabCE",
    "projects.deeplab.resnet": "DeepLabStem build_resnet_deeplab_backbone",
    "projects.deeplab.semantic_seg": "DeepLabV3Head DeepLabV3PlusHead",
    "projects.panoptic_deeplab": "INS_EMBED_BRANCHES_REGISTRY PanopticDeepLab PanopticDeepLabInsEmbedHead"
    " PanopticDeepLabSemSegHead PanopticDeeplabDatasetMapper PanopticDeepLabTargetGenerator add_panoptic_deeplab_config"
    " build_ins_embed_branch get_panoptic_segmentation",
    "projects.point_rend.mask_head": "ConvFCHead ImplicitPointRendMaskHead PointRendMaskHead calculate_uncertainty",
    "projects.point_rend.point_head": "POINT_HEAD_REGISTRY ImplicitPointHead StandardPointHead build_point_head"
    " roi_mask_point_loss",
    "projects.point_rend.roi_heads": "PointRendROIHeads",
    "projects.point_rend.semantic_seg": "PointRendSemSegHead calculate_uncertainty",
    "structures.rotated_boxes": "RotatedBoxes pairwise_iou",
    "tracking": "BBoxIOUTracker BaseHungarianTracker BaseTracker IOUWeightedHungarianBBoxIOUTracker"
    " TRACKER_HEADS_REGISTRY VanillaHungarianBBoxIOUTracker build_tracker_head create_prediction_pairs",
    "tracking.base_tracker": "< tracking: TRACKER_HEADS_REGISTRY BaseTracker build_tracker_head",
    "tracking.bbox_iou_tracker": "< tracking: BBoxIOUTracker",
    "tracking.hungarian_tracker": "< tracking: BaseHungarianTracker",
    "tracking.iou_weighted_hungarian_bbox_iou_tracker": "< tracking: IOUWeightedHungarianBBoxIOUTracker",
    "tracking.utils": "LARGE_COST_VALUE < tracking: create_prediction_pairs",
    "tracking.vanilla_hungarian_bbox_iou_tracker": "< tracking: VanillaHungarianBBoxIOUTracker",
    "utils.develop": "create_dummy_class create_dummy_func",
    "utils.video_visualizer": "VideoVisualizer",
}


class _AbsentModules(MetaPathFinder, Loader):
    """Finds and fills the modules of ABSENT; it comes last, so that a file of the same name wins."""

    def find_spec(self, fullname, path=None, target=None):
        package, _, name = fullname.partition(".")
        if package != "detectron2" or name not in ABSENT:
            return None
        return ModuleSpec(fullname, self, is_package=any(other.startswith(f"{name}.") for other in ABSENT))

    def create_module(self, spec):
        return None  # an ordinary, empty one

    def exec_module(self, module):
        path = module.__name__.partition(".")[2]
        own, *taken = ABSENT[path].split("<")
        module.__doc__ = "Not part of the lite runtime: its names can be imported, and refuse when they are used."
        for name in own.split():
            setattr(module, name, _stand_in(name, module.__name__))
        for part in taken:
            source, names = part.split(":")
            for name in names.split():
                setattr(module, name, getattr(import_module(f"detectron2.{source.strip()}"), name))

        def submodule(name):
            if f"{path}.{name}" in ABSENT:
                return import_module(f"{module.__name__}.{name}")
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        module.__getattr__ = submodule


def _stand_in(name: str, module: str):
    if name.endswith("_REGISTRY"):
        from detectron2.utils.registry import Registry

        return Registry(name.removesuffix("_REGISTRY"))
    if name.isupper() and "_" in name:
        return RefusedTable(name, module)
    return (refused_class if name[0].isupper() else refused)(name, module)


def install() -> None:
    """Make the absent modules importable; called once, by detectron2 itself."""
    sys.meta_path.append(_AbsentModules())
