"""Photometric distortion as SSD trains with (arXiv:1512.02325)."""
import random

import cv2
import numpy as np
from fvcore.transforms.transform import Transform


class ColorAugSSDTransform(Transform):
    """Change brightness, contrast, saturation and hue, each with probability 1/2.

    It draws anew, from Python's global generator, each time it is applied to an image.
    """

    def __init__(
        self, img_format, brightness_delta=32, contrast_low=0.5, contrast_high=1.5, saturation_low=0.5,
        saturation_high=1.5, hue_delta=18,
    ):
        """
        Args:
            img_format: "RGB" or "BGR".
            brightness_delta: at most so much is added to or taken from all values.
            contrast_low, contrast_high: the range of the factor on all values.
            saturation_low, saturation_high: the range of the factor on the saturation.
            hue_delta: at most so much is added to or taken from the hue, in steps of 2 degrees.
        """
        super().__init__()
        assert img_format in ("BGR", "RGB"), f"img_format is 'BGR' or 'RGB', not {img_format!r}."
        self.is_rgb = img_format == "RGB"
        self.brightness_delta = brightness_delta
        self.contrast_low = contrast_low
        self.contrast_high = contrast_high
        self.saturation_low = saturation_low
        self.saturation_high = saturation_high
        self.hue_delta = hue_delta

    def apply_coords(self, coords):
        return coords

    def apply_segmentation(self, segmentation):
        return segmentation

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
