"""What an augmentation is, and how one is applied.

An `Augmentation` looks at some of the inputs (image, boxes, ...), draws random numbers and returns a `Transform`, which
is then applied to all inputs and can be applied to further data (polygons, keypoints) later.
"""
import inspect
import pprint
from typing import Any

import numpy as np
from fvcore.transforms.transform import Transform, TransformList


def _check_image(img: Any) -> None:
    assert isinstance(img, np.ndarray), f"An image must be a numpy array, got {type(img).__name__}."
    assert img.ndim in (2, 3), f"An image must be (H, W) or (H, W, C), got the shape {img.shape}."


def _get_aug_input_args(aug: "Augmentation", aug_input: Any) -> list[Any]:
    """What `aug.get_transform` asks for by its parameters' names, taken from the attributes of `aug_input`."""
    if aug.input_args is None:
        parameters = list(inspect.signature(aug.get_transform).parameters.values())
        variable = [p.name for p in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        if variable:
            name = f"{type(aug).__name__}.get_transform"
            raise TypeError(f"{name} takes *{variable[0]}: name its inputs as parameters, or override __call__.")
        names = tuple(p.name for p in parameters)
        if len(names) == 1 and not hasattr(aug_input, names[0]):
            names = ("image",)  # whatever a single parameter is called ("img", say)
        aug.input_args = names
    missing = [name for name in aug.input_args if not hasattr(aug_input, name)]
    if missing:
        raise AttributeError(f"{type(aug).__name__} needs {', '.join(missing)}, which the input does not have.")
    return [getattr(aug_input, name) for name in aug.input_args]


class Augmentation:
    """Base of all augmentations.

    A subclass defines `get_transform`, whose parameters are named after the inputs it wants to look at:

        class Darken(Augmentation):
            def get_transform(self, image):
                return ColorTransform(lambda img: img * self._rand_range(0.5, 1.0))
    """

    # Names of get_transform's parameters; found on first use.
    input_args: tuple[str, ...] | None = None

    def _init(self, params: dict | None = None) -> None:
        """Turn a constructor's `locals()` into attributes."""
        for name, value in (params or {}).items():
            if name != "self" and not name.startswith("_"):
                setattr(self, name, value)

    def get_transform(self, *args) -> Transform:
        """Draw a transform for these inputs, without applying it."""
        raise NotImplementedError(f"{type(self).__name__} defines no get_transform.")

    def __call__(self, aug_input: "AugInput") -> Transform:
        """Draw a transform, apply it to `aug_input` in place, return it."""
        transform = self.get_transform(*_get_aug_input_args(self, aug_input))
        kind = type(transform).__name__
        assert isinstance(transform, (Transform, TransformList)), f"get_transform must return a Transform, got {kind}."
        aug_input.transform(transform)
        return transform

    def _rand_range(self, low: float = 1.0, high: float | None = None, size=None):
        """Uniform in [low, high), or in [0, low) without high; from numpy's global generator."""
        if high is None:
            low, high = 0, low
        return np.random.uniform(low, high, size)

    def __repr__(self) -> str:
        """The constructor's call, without arguments that have their default value."""
        shown = []
        for name, parameter in list(inspect.signature(type(self).__init__).parameters.items())[1:]:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or not hasattr(self, name):
                return super().__repr__()
            value = getattr(self, name)
            if value is not parameter.default:
                text = pprint.pformat(value)
                shown.append(f"{name}={'...' if chr(10) in text else text}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def __str__(self) -> str:
        return repr(self)


class _TransformToAug(Augmentation):
    """The augmentation that always gives the same transform."""

    def __init__(self, tfm: Transform):
        self.tfm = tfm

    def get_transform(self, *args) -> Transform:
        return self.tfm

    def __call__(self, aug_input: "AugInput") -> Transform:
        aug_input.transform(self.tfm)
        return self.tfm

    def __repr__(self) -> str:
        return repr(self.tfm)


def _transform_to_aug(tfm_or_aug) -> Augmentation:
    """An Augmentation of whatever may stand in a list of augmentations."""
    if isinstance(tfm_or_aug, Augmentation):
        return tfm_or_aug
    if isinstance(tfm_or_aug, (list, tuple)):
        return AugmentationList(tfm_or_aug)
    assert isinstance(tfm_or_aug, Transform), f"Neither an Augmentation nor a Transform: {tfm_or_aug!r}."
    return _TransformToAug(tfm_or_aug)


class AugmentationList(Augmentation):
    """Augmentations one after another; each sees what the one before has left."""

    def __init__(self, augs):
        self.augs = [_transform_to_aug(aug) for aug in augs]

    def __call__(self, aug_input: "AugInput") -> TransformList:
        return TransformList([aug(aug_input) for aug in self.augs])

    def __repr__(self) -> str:
        return f"AugmentationList[{', '.join(str(aug) for aug in self.augs)}]"


class AugInput:
    """What augmentations look at and change in place: image (H, W[, C]), boxes (N, 4) XYXY and sem_seg (H, W) labels.

    Further attributes may be added by subclasses.
    """

    def __init__(self, image: np.ndarray, *, boxes: np.ndarray | None = None, sem_seg: np.ndarray | None = None):
        _check_image(image)
        self.image, self.boxes, self.sem_seg = image, boxes, sem_seg

    def transform(self, tfm: Transform) -> None:
        """Apply a transform to everything there is."""
        self.image = tfm.apply_image(self.image)
        if self.boxes is not None:
            self.boxes = tfm.apply_box(self.boxes)
        if self.sem_seg is not None:
            self.sem_seg = tfm.apply_segmentation(self.sem_seg)

    def apply_augmentations(self, augmentations: list) -> TransformList:
        """Apply augmentations or transforms in order; returns the transforms that were drawn."""
        return AugmentationList(augmentations)(self)


def apply_augmentations(augmentations: list, inputs):
    """Augment an AugInput, in place, or an image: (what was given, augmented; the TransformList that was drawn)."""
    if not isinstance(inputs, np.ndarray):
        return inputs, inputs.apply_augmentations(augmentations)
    aug_input = AugInput(inputs)
    transforms = aug_input.apply_augmentations(augmentations)
    return aug_input.image, transforms


# The names of before 2020.
TransformGen = Augmentation
StandardAugInput = AugInput
apply_transform_gens = apply_augmentations
