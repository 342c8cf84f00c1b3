"""Parts of models by name: their registries, and the functions that build what the config names.

What is registered is called with (cfg, input_shape). The parts of R-CNN themselves need a full Detectron2; projects
register their own.
"""
from operator import attrgetter

from detectron2.utils.registry import Registry


def _registry_and_builder(kind: str, key: str):
    """A registry, and the function that builds its entry of the name that the config has under MODEL.`key`."""
    registry = Registry(kind)

    def build(cfg, input_shape):
        chosen = attrgetter(key)(cfg.MODEL)
        # Proposals from a file need no generator.
        return None if chosen == "PrecomputedProposals" else registry.get(chosen)(cfg, input_shape)

    build.__doc__ = f"What MODEL.{key} names, built with (cfg, input_shape)."
    return registry, build


ROI_HEADS_REGISTRY, build_roi_heads = _registry_and_builder("ROI_HEADS", "ROI_HEADS.NAME")
ROI_BOX_HEAD_REGISTRY, build_box_head = _registry_and_builder("ROI_BOX_HEAD", "ROI_BOX_HEAD.NAME")
ROI_MASK_HEAD_REGISTRY, build_mask_head = _registry_and_builder("ROI_MASK_HEAD", "ROI_MASK_HEAD.NAME")
ROI_KEYPOINT_HEAD_REGISTRY, build_keypoint_head = _registry_and_builder("ROI_KEYPOINT_HEAD", "ROI_KEYPOINT_HEAD.NAME")
RPN_HEAD_REGISTRY, build_rpn_head = _registry_and_builder("RPN_HEAD", "RPN.HEAD_NAME")
SEM_SEG_HEADS_REGISTRY, build_sem_seg_head = _registry_and_builder("SEM_SEG_HEADS", "SEM_SEG_HEAD.NAME")
ANCHOR_GENERATOR_REGISTRY, build_anchor_generator = _registry_and_builder("ANCHOR_GENERATOR", "ANCHOR_GENERATOR.NAME")
PROPOSAL_GENERATOR_REGISTRY, build_proposal_generator = _registry_and_builder(
    "PROPOSAL_GENERATOR", "PROPOSAL_GENERATOR.NAME"
)
