"""Export to Caffe2; the names exist so that code which mentions them can be imported."""
from detectron2._lite import refused_class

Caffe2Model = refused_class("Caffe2Model", __name__)
Caffe2Tracer = refused_class("Caffe2Tracer", __name__)


def add_export_config(cfg):
    """Return ``cfg``: export has no configuration keys any more, but old scripts still ask for them."""
    return cfg
