"""Pieces of the vision transformers: names only."""
from torch import nn

from detectron2._lite import refused, refused_class

__all__ = ["window_partition", "window_unpartition", "add_decomposed_rel_pos", "get_abs_pos", "PatchEmbed"]

PatchEmbed = refused_class("PatchEmbed", __name__, nn.Module)
window_partition = refused("window_partition", __name__)
window_unpartition = refused("window_unpartition", __name__)
add_decomposed_rel_pos = refused("add_decomposed_rel_pos", __name__)
get_abs_pos = refused("get_abs_pos", __name__)
get_rel_pos = refused("get_rel_pos", __name__)
