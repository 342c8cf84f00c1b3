"""Tracing with structured inputs; the names exist so that code which mentions them can be imported."""
from torch import nn

from detectron2._lite import refused, refused_class

TracingAdapter = refused_class("TracingAdapter", __name__, nn.Module)
Schema = refused_class("Schema", __name__)
ListSchema = refused_class("ListSchema", __name__)
TupleSchema = refused_class("TupleSchema", __name__)
IdentitySchema = refused_class("IdentitySchema", __name__)
DictSchema = refused_class("DictSchema", __name__)
InstancesSchema = refused_class("InstancesSchema", __name__)
TensorWrapSchema = refused_class("TensorWrapSchema", __name__)
flatten_to_tuple = refused("flatten_to_tuple", __name__)
