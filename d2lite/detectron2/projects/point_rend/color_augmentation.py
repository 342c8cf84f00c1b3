"""Photometric distortion as SSD trains with (arXiv:1512.02325)."""
import random

import cv2
import numpy as np
from fvcore.transforms.transform import Transform


class ColorAugSSDTransform(Transform):
    """Change brightness, contrast, saturation and hue, each with probability 1/2, in an RGB or BGR image.

    At most brightness_delta is added to or taken from all values, hue_delta steps of 2 degrees from the hue; contrast
    and saturation are ranges of factors. It draws anew, from Python's global generator, each time it is applied.
    """

    def __init__(
        self, img_format, brightness_delta=32, contrast_low=0.5, contrast_high=1.5, saturation_low=0.5,
        saturation_high=1.5, hue_delta=18,
    ):
        super().__init__()
        assert img_format in ("BGR", "RGB"), f"img_format is 'BGR' or 'RGB', not {img_format!r}."
        self.is_rgb = img_format == "RGB"
        self._set_attributes(locals())

    def apply_coords(self, coords):
        return coords

    apply_segmentation = apply_coords

    def apply_image(self, img, interp=None):
        """Distort a uint8 (H, W, 3) image; the input stays as it is."""
        if self.is_rgb:
            img = img[:, :, ::-1]
        img = self.brightness(img)
        steps = [self.saturation, self.hue]
        steps.insert(random.choice((0, 2)), self.contrast)  # before or after the changes of colour
        for step in steps:
            img = step(img)
        return np.ascontiguousarray(img[:, :, ::-1]) if self.is_rgb else img

    def convert(self, img, alpha=1, beta=0):
        """``img * alpha + beta`` in uint8, cut off at 0 and 255."""
        return np.clip(img.astype(np.float32) * alpha + beta, 0, 255).astype(np.uint8)

    def brightness(self, img):
        if random.randrange(2):
            return self.convert(img, beta=random.uniform(-self.brightness_delta, self.brightness_delta))
        return img

    def contrast(self, img):
        if random.randrange(2):
            return self.convert(img, alpha=random.uniform(self.contrast_low, self.contrast_high))
        return img

    def saturation(self, img):
        if random.randrange(2):
            hsv = cv2.cvtColor(np.ascontiguousarray(img), cv2.COLOR_BGR2HSV)
            factor = random.uniform(self.saturation_low, self.saturation_high)
            hsv[:, :, 1] = self.convert(hsv[:, :, 1], alpha=factor)
            return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
        return img

    def hue(self, img):
        if random.randrange(2):
            hsv = cv2.cvtColor(np.ascontiguousarray(img), cv2.COLOR_BGR2HSV)
            shift = random.randint(-self.hue_delta, self.hue_delta)
            hsv[:, :, 0] = (hsv[:, :, 0].astype(np.int16) + shift) % 180  # OpenCV keeps the hue in 0..179
            return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
        return img
