"""Keypoint heads: their registry; the heads need a full Detectron2."""
from torch import nn

from detectron2._lite import refused, refused_class
from detectron2.utils.registry import Registry

ROI_KEYPOINT_HEAD_REGISTRY = Registry("ROI_KEYPOINT_HEAD")

BaseKeypointRCNNHead = refused_class("BaseKeypointRCNNHead", __name__, nn.Module)
KRCNNConvDeconvUpsampleHead = refused_class("KRCNNConvDeconvUpsampleHead", __name__, BaseKeypointRCNNHead)
keypoint_rcnn_inference = refused("keypoint_rcnn_inference", __name__)
keypoint_rcnn_loss = refused("keypoint_rcnn_loss", __name__)
ROI_KEYPOINT_HEAD_REGISTRY.register(KRCNNConvDeconvUpsampleHead)


def build_keypoint_head(cfg, input_shape):
    """The head MODEL.ROI_KEYPOINT_HEAD.NAME."""
    return ROI_KEYPOINT_HEAD_REGISTRY.get(cfg.MODEL.ROI_KEYPOINT_HEAD.NAME)(cfg, input_shape)
