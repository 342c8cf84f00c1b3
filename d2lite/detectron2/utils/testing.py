"""Helpers for tests of detection code."""
import io
import os
import tempfile
import unittest

import torch
from packaging.version import parse as parse_version

from detectron2._lite import refused
from detectron2.config import LazyConfig
from detectron2.structures import Boxes, Instances, ROIMasks

convert_scripted_instances = refused("convert_scripted_instances", __name__)
get_model_no_weights = refused("get_model_no_weights", __name__)
get_sample_coco_image = refused("get_sample_coco_image", __name__)
has_dynamic_axes = refused("has_dynamic_axes", __name__)
register_custom_op_onnx_export = refused("register_custom_op_onnx_export", __name__)
skipIfUnsupportedMinOpsetVersion = refused("skipIfUnsupportedMinOpsetVersion", __name__)
unregister_custom_op_onnx_export = refused("unregister_custom_op_onnx_export", __name__)


def random_boxes(num_boxes, max_coord=100, device="cpu"):
    """(num_boxes, 4) XYXY boxes with sides of at least 1 within [1, max_coord], from torch's global generator."""
    corner, size = (torch.rand(num_boxes, 4, device=device) * (max_coord * 0.5)).clamp_(min=1.0).split(2, dim=1)
    return torch.cat([corner, corner + size], dim=1)


def assert_instances_allclose(input: Instances, other: Instances, *, rtol=1e-5, msg="", size_as_tensor=False):
    """AssertionError unless two Instances have equal sizes and fields that are close, ValueError for other fields than
    Boxes, ROIMasks and tensors. The absolute tolerance is `rtol` times the largest value of `other`'s field."""
    msg = f"{msg}: " if msg else ""
    sizes = input.image_size, other.image_size
    same_size = torch.equal(*map(torch.as_tensor, sizes)) if size_as_tensor else sizes[0] == sizes[1]
    assert same_size, f"{msg}the image sizes {sizes[0]} and {sizes[1]} differ"
    names = sorted(input.get_fields()), sorted(other.get_fields())
    assert names[0] == names[1], f"{msg}the fields {names[0]} and {names[1]} differ"
    for name in names[0]:
        first, second = input.get(name), other.get(name)
        if isinstance(first, (Boxes, ROIMasks)):
            first, second = first.tensor, second.tensor
        elif not isinstance(first, torch.Tensor):
            raise ValueError(f"fields of {type(first)}, such as {name}, cannot be compared")
        assert first.shape == second.shape, f"{msg}{name} has shapes {tuple(first.shape)} and {tuple(second.shape)}"
        close = torch.equal(first, second)
        if first.is_floating_point() and first.numel():
            close = torch.allclose(first, second, rtol=rtol, atol=rtol * float(second.abs().max()))
        assert close, f"{msg}{name} differs: {first} and {second}"


def reload_lazy_config(cfg):
    """A lazy config as it comes back from a yaml file."""
    with tempfile.TemporaryDirectory(prefix="detectron2") as folder:
        path = os.path.join(folder, "cfg.yaml")
        LazyConfig.save(cfg, path)
        return LazyConfig.load(path)


def reload_script_model(module):
    """A scripted module as it comes back from a file."""
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


def skipIfUnsupportedMinTorchVersion(min_version):
    """Decorator that skips a test if torch is older than `min_version`."""
    old = parse_version(torch.__version__).release < parse_version(min_version).release
    return unittest.skipIf(old, f"needs torch {min_version} or newer, not {torch.__version__}")
