"""A small ZeroWaste-f: four materials on a conveyor belt full of unlabelled paper. Class lies in colour and texture,
not in form.

On disk as the final release: {train,val,test}/{data/*.PNG, sem_seg/*.PNG, labels.json}, ids counting from 0.
"""

from pathlib import Path
from typing import Callable

import cv2
import numpy as np

from lowrank_d2.data.mini import primitives as draw
from lowrank_d2.data.mini.writers import CocoFile, save_image

HEIGHT = 128  # pictures are half as wide again
CLASSES = ("rigid_plastic", "cardboard", "metal", "soft_plastic")
FREQUENCIES = (0.13, 0.47, 0.1, 0.3)  # as in the original the order is cardboard, soft, rigid, metal; less steep here
EMPTY = 0.03  # share of pictures without objects


def write(folder: Path, train: int, val: int, height: int, seed: int, bar: Callable) -> None:
    """Writes the three splits; test is as large as val."""
    width = height * 3 // 2
    for split, count in (("train", train), ("val", val), ("test", val)):
        coco = CocoFile(CLASSES, first_id=0)
        for index in bar(range(count), f"zerowaste {split}"):
            image, objects = scene(draw.generator(seed, f"zerowaste/{split}", index), height, width)
            name = f"{index % 12 + 1:02d}_frame_{index * 40:06d}.PNG"
            save_image(folder / split / "data" / name, image)
            image_id = coco.add_image(name, height, width, license=0, coco_url="")
            classes = np.zeros((height, width), np.uint8)
            for category, mask in objects:
                classes[mask] = category + 1
                coco.add_polygons(image_id, category, draw.trace(mask), height, width)
            save_image(folder / split / "sem_seg" / name, classes)
        coco.save(folder / split / "labels.json")


def scene(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """A picture (height, width, 3) uint8 and its objects as (class, visible mask), those below first."""
    image = draw.shaded(rng.uniform(38, 62, 3) + [0, 0, 4], draw.noise(rng, height, width, (4, 16, 48)), 7)
    creases = np.abs(draw.noise(rng, height, width, (8, 16, 32)))
    for _ in range(rng.integers(25, 31)):
        _paper(rng, image, creases)
    objects: list[tuple[int, np.ndarray]] = []
    count = 0 if rng.random() < EMPTY else rng.integers(2, 8)
    for _ in range(count):
        category = int(rng.choice(len(CLASSES), p=FREQUENCIES))
        mask = _mask(rng, CLASSES[category], height, width)
        objects = [(other, visible & ~mask) for other, visible in objects]
        objects.append((category, mask))
        _SURFACE[CLASSES[category]](rng, image, mask)
    image += rng.normal(0, 3, image.shape)
    kept = [(category, _largest_parts(mask)) for category, mask in objects]
    return draw.finished(image), [(category, mask) for category, mask in kept if mask.any()]


def _mask(rng: np.random.Generator, name: str, height: int, width: int) -> np.ndarray:
    """An outline of the shape that the material allows: torn or folded sheets for all, ragged for soft plastic."""
    roughness = {"soft_plastic": 0.75, "cardboard": 0.2, "rigid_plastic": 0.25, "metal": 0.35}[name]
    size = height * np.clip(rng.lognormal(-1.9, 0.35), 0.08, 0.32)
    outline = (
        draw.box(rng.uniform(0, 0.5)) if name == "cardboard" and rng.random() < 0.6 else draw.blob(rng, roughness, 7)
    )
    outline = outline * (1 + rng.normal(0, 0.06, outline.shape))
    centre = (rng.uniform(0.05, 0.95) * width, rng.uniform(0.08, 0.92) * height)
    scale = (size * rng.uniform(1, 1.7), size * rng.uniform(0.7, 1.0))
    return draw.rasterise([draw.place(outline, centre, scale, rng.uniform(0, 6.3))], height, width)


def _largest_parts(mask: np.ndarray) -> np.ndarray:
    """Without crumbs below the smallest labelled size."""
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    large = [i for i in range(1, count) if statistics[i, cv2.CC_STAT_AREA] >= 2 * draw.SMALLEST_MASK]
    return np.isin(labels, large)


def _paper(rng: np.random.Generator, image: np.ndarray, creases: np.ndarray) -> None:
    """Unlabelled sheets of the same sizes and forms as the objects: white, grey, or faintly printed."""
    height, width = image.shape[:2]
    size = height * rng.uniform(0.05, 0.2)
    outline = draw.box(rng.uniform(0, 0.4)) if rng.random() < 0.4 else draw.blob(rng, 0.35, 6)
    centre = rng.uniform((0, 0), (width, height))
    mask = draw.rasterise([draw.place(outline, centre, (size * 1.3, size * 0.8), rng.uniform(0, 6.3))], height, width)
    grey = rng.uniform(95, 215)
    tint = rng.normal(0, 9, 3) if rng.random() < 0.8 else rng.normal(0, 30, 3)
    _shadow(image, mask)
    draw.paint(image, draw.soften(mask, 0.6), draw.shaded(grey + tint, -creases, rng.uniform(6, 22)))


def _cardboard(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray) -> None:
    height, width = mask.shape
    y, x = np.mgrid[:height, :width]
    angle, period = rng.uniform(0, np.pi), rng.uniform(3, 5)
    flutes = np.sin(2 * np.pi * (np.cos(angle) * x + np.sin(angle) * y) / period)
    brown = np.array([158, 122, 84]) * rng.uniform(0.7, 1.15) + rng.normal(0, 6, 3)
    surface = draw.shaded(brown, flutes, rng.uniform(2, 9)) + 9 * draw.noise(rng, height, width, (6, 12, 24))[..., None]
    _shadow(image, mask)
    draw.paint(image, draw.soften(mask, 0.6), surface)


def _soft_plastic(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray) -> None:
    height, width = mask.shape
    folds = draw.noise(rng, height, width, (6, 12, 24))
    tint = np.array([200, 205, 208]) + (rng.normal(0, 6, 3) if rng.random() < 0.7 else rng.normal(0, 30, 3))
    alpha = draw.soften(mask, 0.7) * np.clip(rng.uniform(0.3, 0.6) + 0.12 * folds, 0.1, 0.9)
    draw.paint(image, alpha, tint)
    draw.paint(image, 0.75 * mask * np.clip(folds - 1.3, 0, 1), (250, 252, 255))


def _rigid_plastic(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray) -> None:
    height, width = mask.shape
    colour = np.full(3, rng.uniform(30, 70))
    colour[rng.integers(3)] = rng.uniform(170, 235)
    if rng.random() < 0.4:
        colour[rng.integers(3)] = rng.uniform(150, 220)
    depth = np.minimum(cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 3), 6) / 6
    _shadow(image, mask)
    draw.paint(image, draw.soften(mask, 0.5), draw.shaded(colour, depth - 0.5, 45))
    gloss = np.clip(draw.noise(rng, height, width, (8, 16)) - 1.5, 0, 1) * mask
    draw.paint(image, draw.soften(gloss > 0.1, 0.7) * 0.85, (250, 250, 250))


def _metal(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray) -> None:
    height, width = mask.shape
    glare = draw.noise(rng, height, width, (8, 16, 32), flatness=rng.uniform(0.4, 2.5))
    grey = rng.uniform(110, 150)
    _shadow(image, mask)
    draw.paint(image, draw.soften(mask, 0.5), draw.shaded((grey, grey + 3, grey + 8), np.tanh(1.6 * glare), 78))


def _shadow(image: np.ndarray, mask: np.ndarray) -> None:
    """Darkens the lower right side, so that stacked sheets stand out a little."""
    moved = np.roll(mask, (2, 1), axis=(0, 1))
    draw.paint(image, 0.4 * draw.soften(moved, 1.2), (10, 10, 12))


_SURFACE = {"rigid_plastic": _rigid_plastic, "cardboard": _cardboard, "metal": _metal, "soft_plastic": _soft_plastic}
