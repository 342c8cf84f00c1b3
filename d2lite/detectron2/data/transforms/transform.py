"""The fixed operations that fvcore does not have.

Coordinates are (N, 2) arrays of x, y in pixels, where the image covers [0, w] x [0, h]: a pixel's centre lies at + 0.5.
"""
from typing import Callable

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from fvcore.transforms.transform import CropTransform, HFlipTransform, NoOpTransform, Transform, TransformList
from PIL import Image

_TORCH_MODES = {Image.NEAREST: "nearest", Image.BILINEAR: "bilinear", Image.BICUBIC: "bicubic"}


def _to_pil(img: np.ndarray) -> Image.Image:
    """(H, W), (H, W, 1) or (H, W, 3) uint8 to a picture; Pillow knows no single-channel axis."""
    return Image.fromarray(img[:, :, 0] if img.ndim == 3 and img.shape[2] == 1 else img)


def _from_pil(picture: Image.Image, like: np.ndarray) -> np.ndarray:
    """Back to an array with as many axes as `like`."""
    out = np.asarray(picture)
    return out[:, :, None] if out.ndim < like.ndim else out


class ExtentTransform(Transform):
    """Cut out `src_rect` (x0, y0, x1, y1) and stretch it to `output_size` (h, w), with `fill` outside the image.

    `interp` is one of Pillow's filters; segmentations always use the nearest pixel.
    """

    def __init__(self, src_rect, output_size, interp=Image.BILINEAR, fill=0):
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray, interp=None) -> np.ndarray:
        """uint8 (H, W[, C]) -> uint8 of output_size."""
        height, width = self.output_size
        picture = _to_pil(img)
        picture = picture.transform(
            size=(width, height), method=Image.EXTENT, data=self.src_rect,
            resample=self.interp if interp is None else interp, fillcolor=(self.fill,) * len(picture.getbands()),
        )
        return _from_pil(picture, img)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """(N, 2) -> (N, 2) float32."""
        x0, y0, x1, y1 = self.src_rect
        height, width = self.output_size
        coords = coords.astype("float32")
        # Relative to the centres, where float32 loses least.
        coords[:, 0] = (coords[:, 0] - 0.5 * (x0 + x1)) * (width / (x1 - x0)) + 0.5 * width
        coords[:, 1] = (coords[:, 1] - 0.5 * (y0 + y1)) * (height / (y1 - y0)) + 0.5 * height
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=Image.NEAREST)


class ResizeTransform(Transform):
    """Resize h x w to new_h x new_w.

    uint8 goes through Pillow, which averages over all pixels below a shrunk one. Other types go through
    `torch.nn.functional.interpolate`, which does not; it raises for bool and int64.
    """

    def __init__(self, h: int, w: int, new_h: int, new_w: int, interp=None):
        super().__init__()
        interp = Image.BILINEAR if interp is None else interp
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray, interp=None) -> np.ndarray:
        """(H, W), (H, W, C) or (H, W, C, N) -> the same with H, W replaced; `interp`: one of Pillow's filters."""
        assert img.shape[:2] == (self.h, self.w), f"The image is {img.shape[:2]}, the transform for {(self.h, self.w)}."
        assert img.ndim <= 4, f"An image has at most four axes, got {img.ndim}."
        interp = self.interp if interp is None else interp
        if img.dtype == np.uint8:
            return _from_pil(_to_pil(img).resize((self.new_w, self.new_h), interp), img)

        mode = _TORCH_MODES[interp]
        planes = torch.from_numpy(np.ascontiguousarray(img)).reshape(self.h, self.w, -1).permute(2, 0, 1)[None]
        options = {"mode": mode} if mode == "nearest" else {"mode": mode, "align_corners": False}
        planes = F.interpolate(planes, (self.new_h, self.new_w), **options)
        return planes[0].permute(1, 2, 0).reshape(self.new_h, self.new_w, *img.shape[2:]).numpy()

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """(N, 2) float, in place."""
        coords[:, 0] = coords[:, 0] * (self.new_w * 1.0 / self.w)
        coords[:, 1] = coords[:, 1] * (self.new_h * 1.0 / self.h)
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=Image.NEAREST)

    def inverse(self) -> "ResizeTransform":
        return ResizeTransform(self.new_h, self.new_w, self.h, self.w, self.interp)


class RotationTransform(Transform):
    """Rotate an h x w image by `angle` degrees counter-clockwise about `center` (x, y), by default its middle.

    `expand` enlarges the output so that nothing is cut off, whatever the centre. `interp` is one of cv2's INTER_*;
    segmentations always use the nearest pixel.
    """

    def __init__(self, h: int, w: int, angle: float, expand: bool = True, center=None, interp=None):
        super().__init__()
        self.h, self.w, self.angle, self.expand = h, w, angle, expand
        self.image_center = np.array((w / 2, h / 2))
        self.center = self.image_center if center is None else center
        self.interp = cv2.INTER_LINEAR if interp is None else interp

        self.bound_h, self.bound_w = h, w
        if expand:
            cos, sin = abs(np.cos(np.deg2rad(angle))), abs(np.sin(np.deg2rad(angle)))
            self.bound_w, self.bound_h = np.rint([h * sin + w * cos, h * cos + w * sin]).astype(int)
        self.rm_coords = self.create_rotation_matrix()
        # cv2 puts the centre of the first pixel at 0, we at 0.5.
        self.rm_image = self.create_rotation_matrix(offset=-0.5)

    @property
    def _is_identity(self) -> bool:
        return self.angle % 360 == 0

    def create_rotation_matrix(self, offset: float = 0) -> np.ndarray:
        """The (2, 3) affine matrix from input to output, in coordinates shifted by `offset`."""
        matrix = cv2.getRotationMatrix2D((self.center[0] + offset, self.center[1] + offset), self.angle, 1)
        if self.expand:
            # Move the rotated middle of the image to the middle of the enlarged output.
            middle = matrix[:, :2] @ (self.image_center + offset) + matrix[:, 2]
            matrix[:, 2] += np.array([self.bound_w / 2, self.bound_h / 2]) + offset - middle
        return matrix

    def apply_image(self, img: np.ndarray, interp=None) -> np.ndarray:
        """(H, W[, C]) -> (bound_h, bound_w[, C]), zero where nothing comes from the input."""
        if self._is_identity or len(img) == 0:
            return img
        assert img.shape[:2] == (self.h, self.w), f"The image is {img.shape[:2]}, the transform for {(self.h, self.w)}."
        flags = self.interp if interp is None else interp
        return cv2.warpAffine(img, self.rm_image, (int(self.bound_w), int(self.bound_h)), flags=flags)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        coords = np.asarray(coords, dtype=float)
        if self._is_identity or len(coords) == 0:
            return coords
        return cv2.transform(coords[:, None, :], self.rm_coords)[:, 0, :]

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=cv2.INTER_NEAREST)

    def inverse(self) -> TransformList:
        """Rotate back, then crop to the original size. NotImplementedError without expand, where pixels were lost."""
        if not self.expand:
            raise NotImplementedError("A rotation that cut pixels off (expand=False) has no inverse.")
        back = RotationTransform(self.bound_h, self.bound_w, -self.angle, expand=True, center=None, interp=self.interp)
        x0, y0 = (back.bound_w - self.w) // 2, (back.bound_h - self.h) // 2
        return TransformList([back, CropTransform(x0, y0, self.w, self.h)])


class ColorTransform(Transform):
    """A function of the image that leaves geometry alone, `op`: ndarray -> ndarray of the same height and width."""

    def __init__(self, op: Callable):
        if not callable(op):
            raise ValueError(f"A colour operation must be callable, got {op!r}.")
        super().__init__()
        self.op = op

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return self.op(img)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    apply_segmentation = apply_coords

    def inverse(self) -> Transform:
        return NoOpTransform()  # colours cannot be restored; geometry needs nothing


class PILColorTransform(ColorTransform):
    """`ColorTransform` whose function takes and gives a PIL image, e.g. one of PIL.ImageOps."""

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return np.asarray(super().apply_image(Image.fromarray(img)))


def HFlip_rotated_box(transform: HFlipTransform, rotated_boxes: np.ndarray) -> np.ndarray:
    """(N, 5) boxes x, y, w, h, counter-clockwise degrees, mirrored in place."""
    rotated_boxes[:, 0] = transform.width - rotated_boxes[:, 0]
    rotated_boxes[:, 4] = -rotated_boxes[:, 4]
    return rotated_boxes


def Resize_rotated_box(transform: ResizeTransform, rotated_boxes: np.ndarray) -> np.ndarray:
    """(N, 5) boxes x, y, w, h, counter-clockwise degrees, scaled in place; the direction of the height stays right."""
    sx, sy = transform.new_w / transform.w, transform.new_h / transform.h
    cos, sin = np.cos(np.deg2rad(rotated_boxes[:, 4])), np.sin(np.deg2rad(rotated_boxes[:, 4]))
    rotated_boxes[:, 0] *= sx
    rotated_boxes[:, 1] *= sy
    rotated_boxes[:, 2] *= np.hypot(sx * cos, sy * sin)
    rotated_boxes[:, 3] *= np.hypot(sx * sin, sy * cos)
    rotated_boxes[:, 4] = np.rad2deg(np.arctan2(sx * sin, sy * cos))
    return rotated_boxes


HFlipTransform.register_type("rotated_box", HFlip_rotated_box)
ResizeTransform.register_type("rotated_box", Resize_rotated_box)
NoOpTransform.register_type("rotated_box", lambda transform, rotated_boxes: rotated_boxes)
