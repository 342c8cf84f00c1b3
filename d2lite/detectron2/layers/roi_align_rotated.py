"""Rotated ROIAlign needs a compiled operator; the names exist so that code which mentions them can be imported."""
from torch import nn

from detectron2._lite import refused, refused_class

ROIAlignRotated = refused_class("ROIAlignRotated", __name__, nn.Module)
roi_align_rotated = refused("roi_align_rotated", __name__)
