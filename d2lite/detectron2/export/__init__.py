"""Export to TorchScript, ONNX and Caffe2; not part of the lite runtime."""
from .api import Caffe2Model, Caffe2Tracer, add_export_config
from .flatten import TracingAdapter
from .torchscript import dump_torchscript_IR, scripting_with_instances

STABLE_ONNX_OPSET_VERSION = 11

__all__ = [
    "Caffe2Model",
    "Caffe2Tracer",
    "STABLE_ONNX_OPSET_VERSION",
    "TracingAdapter",
    "add_export_config",
    "dump_torchscript_IR",
    "scripting_with_instances",
]
