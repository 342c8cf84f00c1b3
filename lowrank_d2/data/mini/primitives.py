"""Random building blocks of generated pictures: smooth noise, irregular outlines, masks, paint.

Images are float32 (H, W, 3), RGB in 0..255, until they are written; masks are bool (H, W); outlines are float (P, 2),
xy in pixels, with the top left pixel covering [0, 1) x [0, 1) as in COCO polygons.
"""

import zlib
from typing import Sequence

import cv2
import numpy as np
from pycocotools import mask as coco_mask

SMALLEST_MASK = 20  # pixels; an object of which less stays visible is left out


def generator(seed: int, place: str, index: int) -> np.random.Generator:
    """The randomness of one picture: a function of the seed, the part of the tree it belongs to, and its number
    there."""
    return np.random.default_rng([seed, zlib.crc32(place.encode()), index])


def noise(
    rng: np.random.Generator, height: int, width: int, cells: Sequence[int] = (4, 8, 16, 32), flatness: float = 1.0
) -> np.ndarray:
    """Smooth noise (H, W) with mean 0 and standard deviation 1, the sum of one octave for each number of `cells`.

    `flatness` multiplies the number of cells from top to bottom: above 1, structures lie down as waves do.
    """
    total = np.zeros((height, width), np.float32)
    for count in cells:
        grid = rng.standard_normal((max(int(count * flatness), 2), count)).astype(np.float32)
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return (total - total.mean()) / max(float(total.std()), 1e-6)


def blob(rng: np.random.Generator, roughness: float = 0.25, harmonics: int = 5, points: int = 40) -> np.ndarray:
    """An irregular closed outline of mean radius 1 around the origin: 1 + sum of a_k sin(k t + phase_k)."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    radius = np.ones(points)
    for k in range(2, harmonics + 2):
        radius += rng.normal(0, roughness / k) * np.sin(k * angle + rng.uniform(0, 2 * np.pi))
    radius = np.clip(radius, 0.3, 1.8)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def box(rounding: float = 0.0) -> np.ndarray:
    """The square [-1, 1] x [-1, 1], its corners cut by `rounding` (0..1) of the half side."""
    if rounding <= 0:
        return np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float)
    r = 1 - rounding
    return np.array([[-r, -1], [r, -1], [1, -r], [1, r], [r, 1], [-r, 1], [-1, r], [-1, -r]], float)


def disc(points: int = 32) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def place(outline: np.ndarray, centre: Sequence[float], scale: Sequence[float], angle: float = 0.0) -> np.ndarray:
    """Stretches an outline around the origin by `scale` (x, y), turns it by `angle` (radians) and moves it to
    `centre`."""
    stretched = np.asarray(outline, float) * np.asarray(scale, float)
    c, s = np.cos(angle), np.sin(angle)
    return stretched @ np.array([[c, s], [-s, c]]) + np.asarray(centre, float)


def rasterise(outlines: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """The union of filled outlines as a mask, by the rule that COCO evaluation applies to polygons."""
    polygons = [np.asarray(outline, float).reshape(-1).tolist() for outline in outlines]
    encoded = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return coco_mask.decode(encoded).astype(bool)


def trace(mask: np.ndarray, tolerance: float = 0.3) -> list[np.ndarray]:
    """Outlines of the parts of a mask, largest first; holes are not described. `tolerance` is in pixels.

    The contour is followed on a copy magnified four times, so that it runs along the edges of pixels, not their
    centres.
    """
    zoom = 4
    large = cv2.resize(mask.astype(np.uint8), None, fx=zoom, fy=zoom, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    simple = [cv2.approxPolyDP(contour, tolerance * zoom, True)[:, 0] for contour in contours]
    simple = [(contour + 0.5) / zoom for contour in simple if len(contour) >= 3]
    return sorted(simple, key=lambda outline: -cv2.contourArea(outline.astype(np.float32)))


def soften(mask: np.ndarray, sigma: float) -> np.ndarray:
    """A mask as opacity 0..1 with an edge blurred by `sigma` pixels."""
    alpha = mask.astype(np.float32)
    return cv2.GaussianBlur(alpha, (0, 0), sigma) if sigma > 0 else alpha


def paint(image: np.ndarray, alpha: np.ndarray, colour: np.ndarray) -> None:
    """Blends `colour`, one RGB triple or an image, over `image` in place with opacity `alpha` (H, W)."""
    alpha = alpha[..., None].astype(np.float32)
    image *= 1 - alpha
    image += alpha * np.asarray(colour, np.float32)


def shaded(colour: Sequence[float], field: np.ndarray, strength: float) -> np.ndarray:
    """An image of one colour, made lighter and darker by `field` (H, W) times `strength` grey levels."""
    return np.asarray(colour, np.float32) + strength * field[..., None].astype(np.float32)


def finished(image: np.ndarray) -> np.ndarray:
    """The picture as it is written: uint8."""
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
