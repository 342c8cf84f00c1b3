"""Transforms (one fixed operation) and augmentations (which draw a transform at random).

fvcore's transforms are used as they are; those it lacks are in `transform`.
"""
from fvcore.transforms.transform import (
    BlendTransform, CropTransform, GridSampleTransform, HFlipTransform, NoOpTransform, PadTransform, ScaleTransform,
    Transform, TransformList, VFlipTransform,
)

from .augmentation import (
    Augmentation, AugmentationList, AugInput, StandardAugInput, TransformGen, apply_augmentations, apply_transform_gens,
)
from .augmentation_impl import (
    FixedSizeCrop, MinIoURandomCrop, RandomApply, RandomBrightness, RandomContrast, RandomCrop,
    RandomCrop_CategoryAreaConstraint, RandomExtent, RandomFlip, RandomLighting, RandomResize, RandomRotation,
    RandomSaturation, Resize, ResizeScale, ResizeShortestEdge,
)
from .transform import ColorTransform, ExtentTransform, PILColorTransform, ResizeTransform, RotationTransform
