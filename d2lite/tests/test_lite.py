"""What the lite runtime leaves out still imports, and says so when it is used."""
import importlib
import pickle

import detectron2
import detectron2.modeling
import detectron2.structures
import pytest
import torch

lite_only = pytest.mark.skipif(
    getattr(detectron2, "__runtime__", "full") != "lite", reason="a full Detectron2 is installed; it refuses nothing"
)

REFUSED_FUNCTIONS = [
    ("detectron2.model_zoo", "get_config_file"),
    ("detectron2.model_zoo", "get_checkpoint_url"),
    ("detectron2.layers", "nms_rotated"),
    ("detectron2.layers", "batched_nms_rotated"),
    ("detectron2.structures.rotated_boxes", "pairwise_iou"),
    ("detectron2.export", "scripting_with_instances"),
    ("detectron2.export.torchscript", "patch_instances"),
    ("detectron2.utils.analysis", "flop_count_operators"),
    ("detectron2.layers", "ciou_loss"),
    ("detectron2.structures", "heatmaps_to_keypoints"),
    ("detectron2.projects.deeplab", "build_resnet_deeplab_backbone"),
]
REFUSED_CLASSES = [
    ("detectron2.structures", "RotatedBoxes"),
    ("detectron2.layers", "DeformConv"),
    ("detectron2.layers", "ModulatedDeformConv"),
    ("detectron2.layers", "ROIAlignRotated"),
    ("detectron2.export", "TracingAdapter"),
    ("detectron2.tracking", "BBoxIOUTracker"),
    ("detectron2.utils.video_visualizer", "VideoVisualizer"),
    ("detectron2.engine.hooks", "TorchProfiler"),
    ("detectron2.layers", "CycleBatchNormList"),
    ("detectron2.solver", "WarmupMultiStepLR"),
    ("detectron2.evaluation", "COCOPanopticEvaluator"),
    ("detectron2.projects.deeplab", "DeepLabV3PlusHead"),
    ("detectron2.projects.point_rend", "PointRendMaskHead"),
]


def test_version():
    assert detectron2.__version__ == "0.6"


@lite_only
@pytest.mark.parametrize("module, name", REFUSED_FUNCTIONS + REFUSED_CLASSES)
def test_refused_names_import_and_raise_when_called(module, name):
    refused = getattr(importlib.import_module(module), name)
    message = rf"{name} is not part of the lite .*\n  pip install .*detectron2"
    with pytest.raises(detectron2.NotInLiteRuntime, match=message):
        refused("anything", option=1)


@lite_only
@pytest.mark.parametrize("module, name", REFUSED_CLASSES)
def test_refused_classes_can_be_subclassed_and_asked_for(module, name):
    refused = getattr(importlib.import_module(module), name)

    class Mine(refused):
        def __init__(self, size):
            self.size = size

    assert not isinstance(torch.ones(1), refused)
    with pytest.raises(detectron2.NotInLiteRuntime, match=name):
        Mine(3)


@lite_only
def test_class_methods_of_refused_classes_refuse():
    with pytest.raises(detectron2.NotInLiteRuntime, match="RotatedBoxes"):
        detectron2.structures.RotatedBoxes.cat([])


@lite_only
def test_modules_without_a_file():
    from detectron2.modeling.roi_heads import cascade_rcnn, roi_heads
    from detectron2.modeling.roi_heads.mask_head import ROI_MASK_HEAD_REGISTRY

    assert ROI_MASK_HEAD_REGISTRY is detectron2.modeling.ROI_MASK_HEAD_REGISTRY
    assert roi_heads.StandardROIHeads is detectron2.modeling.StandardROIHeads
    assert detectron2.modeling.roi_heads.cascade_rcnn is cascade_rcnn
    with pytest.raises(ImportError, match="cannot import name 'Missing'"):
        from detectron2.tracking import Missing  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match="detectron2.tracking.missing"):
        importlib.import_module("detectron2.tracking.missing")


@lite_only
def test_the_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(detectron2.NotInLiteRuntime("a.b")))
    assert error.missing == "a.b" and str(error).startswith("a.b is not part of the lite")
