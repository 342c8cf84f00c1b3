"""Whole models by name."""
import torch

from detectron2.utils.registry import Registry

META_ARCH_REGISTRY = Registry("META_ARCH")
META_ARCH_REGISTRY.__doc__ = "Modules constructed from `cfg` alone; see build_model."


def build_model(cfg):
    """The model MODEL.META_ARCHITECTURE on MODEL.DEVICE, with the weights its constructor gives: nothing is loaded."""
    model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    return model.to(torch.device(cfg.MODEL.DEVICE))
