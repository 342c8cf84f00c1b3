"""A Swin Transformer as mmdetection's files have it, to which AdaMixer's belong."""
from typing import Optional

from torch import Tensor

from lowrank_d2.modeling.checkpoint_names import one_way, renamed

_RULES = one_way((
    ("patch_embed.projection.{x}", "patch_embed.proj.{x}"),
    ("stages.{n}.blocks.{i}.attn.w_msa.{module}", "layers.{n}.blocks.{i}.attn.{module}"),
    ("stages.{n}.blocks.{i}.ffn.layers.0.0.{x}", "layers.{n}.blocks.{i}.mlp.fc1.{x}"),
    ("stages.{n}.blocks.{i}.ffn.layers.1.{x}", "layers.{n}.blocks.{i}.mlp.fc2.{x}"),
    ("stages.{module}", "layers.{module}"),
))
# The four patches that are merged, upper left, upper right, lower left, lower right there; here the columns come last.
_OUR_PATCHES = (0, 2, 1, 3)


def converted(name: str, tensor: Tensor) -> Optional[tuple[str, Tensor]]:
    """A tensor of mmdetection's Swin under Detectron2's name and in its order; None: not a name of such a tensor."""
    ours = renamed(name, _RULES)
    if ours is None:
        return None
    if ".downsample." in ours:  # there a channel's four patches stand together, here a patch's channels
        tensor = tensor.unflatten(-1, (-1, 4))[..., _OUR_PATCHES].transpose(-1, -2).flatten(-2)
    return ours, tensor
