"""A small WIXray: translucent overlapping objects, dark on a white ground, whose masks are amodal.

Beer-Lambert: the light that passes is the product of exp(-mu * thickness) over all objects, so that overlaps make
edges inside objects, and the ground stays white. On disk as COCO with 2017-style names.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import cv2
import numpy as np

from lowrank_d2.data.mini import primitives as draw
from lowrank_d2.data.mini.writers import CocoFile, save_image

HEIGHT = 160  # pictures are square


@dataclass(frozen=True)
class Material:
    """How a class looks under X-rays.

    Attributes:
        absorption: of red, green and blue per unit of thickness; organic matter takes blue away, metal red.
        half: half length and half breadth as shares of the picture.
        form: name of the outline.
        body: "shell" (thick at the rim), "solid" (thick in the middle) or "lumps" (uneven).
    """

    absorption: tuple[float, float, float]
    half: tuple[float, float]
    form: str
    body: str


MATERIALS = {
    "Recyclabel_PlasticBottle": Material((0.14, 0.30, 0.52), (0.25, 0.095), "bottle", "shell"),
    "ResidualWaste_MealBox": Material((0.10, 0.24, 0.44), (0.20, 0.15), "tray", "shell"),
    "Recyclabel_Can": Material((0.85, 0.60, 0.28), (0.13, 0.075), "box", "shell"),
    "Recyclabel_Carton": Material((0.22, 0.34, 0.60), (0.20, 0.12), "box", "shell"),
    "Recyclabel_Glassbottle": Material((0.80, 0.38, 0.72), (0.23, 0.08), "bottle", "shell"),
    "Recyclabel_Stick": Material((0.20, 0.42, 0.75), (0.26, 0.016), "box", "solid"),
    "FoodWaste": Material((0.18, 0.48, 0.90), (0.14, 0.11), "lump", "lumps"),
    "Recyclabel_Tableware": Material((0.95, 0.62, 0.22), (0.17, 0.035), "spoon", "solid"),
    "ResidualWaste_HeatingPad": Material((0.62, 0.55, 0.36), (0.12, 0.09), "tray", "lumps"),
    "ResidualWaste_Desiccant": Material((0.40, 0.24, 0.52), (0.065, 0.055), "box", "lumps"),
    "HazardousWaste_Battery": Material((1.60, 1.35, 0.85), (0.08, 0.026), "box", "solid"),
    "HazardousWaste_Bulb": Material((0.62, 0.40, 0.42), (0.11, 0.075), "bulb", "shell"),
}
CLASSES = tuple(MATERIALS)


def write(folder: Path, train: int, val: int, height: int, seed: int, bar: Callable) -> None:
    """Writes images/{train,val}2017/*.jpg and annotations/instances_{train,val}2017.json."""
    for split, count in (("train2017", train), ("val2017", val)):
        coco = CocoFile(CLASSES)
        for index in bar(range(count), f"wixray {split}"):
            image, objects = scene(draw.generator(seed, f"wixray/{split}", index), height)
            name = f"{index + 1:06d}.jpg"
            save_image(folder / "images" / split / name, image)
            image_id = coco.add_image(name, height, height)
            for category, outlines in objects:
                coco.add_polygons(image_id, category, outlines, height, height)
        coco.save(folder / "annotations" / f"instances_{split}.json")


def scene(rng: np.random.Generator, side: int) -> tuple[np.ndarray, list[tuple[int, list[np.ndarray]]]]:
    """A picture (side, side, 3) uint8 and its objects as (class, outlines); pixels may belong to several objects."""
    passed = np.ones((side, side, 3), np.float32)
    objects: list[tuple[int, list[np.ndarray]]] = []
    heap = rng.uniform(0.35, 0.65, 2) * side
    for _ in range(rng.integers(4, 9)):
        category = int(rng.integers(len(CLASSES)))
        material = MATERIALS[CLASSES[category]]
        centre = np.clip(heap + rng.normal(0, 0.19, 2) * side, 0.12 * side, 0.88 * side)
        scale = np.array(material.half) * side * rng.uniform(0.85, 1.2)
        outline = draw.place(_FORMS[material.form](rng), centre, scale, rng.uniform(0, 6.3))
        mask = draw.rasterise([outline], side, side)
        if mask.sum() < draw.SMALLEST_MASK:
            continue
        objects.append((category, draw.trace(mask)[:1]))
        thickness = _thickness(rng, mask, material.body)
        absorption = np.array(material.absorption, np.float32) * rng.uniform(0.85, 1.15)
        passed *= np.exp(-absorption * thickness[..., None])
    image = 252 * cv2.GaussianBlur(passed, (0, 0), 0.6) + rng.normal(0, 1.2, passed.shape)
    return draw.finished(image), objects


def _thickness(rng: np.random.Generator, mask: np.ndarray, body: str) -> np.ndarray:
    """Path of the ray through an object, about 1 at most."""
    inside = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 3)
    if body == "shell":
        return np.where(inside <= rng.uniform(1.5, 2.6), 1.0, rng.uniform(0.28, 0.4)).astype(np.float32) * mask
    if body == "solid":
        return np.sqrt(inside / max(float(inside.max()), 1e-6))
    lumps = 0.55 + 0.22 * draw.noise(rng, *mask.shape, cells=(8, 16, 32))
    return np.clip(lumps, 0.1, 1.2) * mask


def _bottle(rng: np.random.Generator) -> np.ndarray:
    neck, shoulder = rng.uniform(0.28, 0.4), rng.uniform(0.25, 0.45)
    upper = [[-1, -0.9], [-0.95, -1], [shoulder, -1], [shoulder + 0.3, -neck], [1, -neck]]
    return np.array(upper + [[x, -y] for x, y in upper[::-1]])


def _tray(rng: np.random.Generator) -> np.ndarray:
    return draw.box(rng.uniform(0.2, 0.4))


def _box(rng: np.random.Generator) -> np.ndarray:
    return draw.box(rng.uniform(0, 0.1)) * [1, rng.uniform(0.85, 1.15)]


def _lump(rng: np.random.Generator) -> np.ndarray:
    return draw.blob(rng, roughness=0.6, harmonics=7)


def _spoon(rng: np.random.Generator) -> np.ndarray:
    angle = np.linspace(-2.7, 2.7, 14)
    bowl = np.stack([0.65 + 0.35 * np.cos(angle), 1.6 * np.sin(angle)], axis=1)
    return np.concatenate([[[-1, -0.45]], bowl, [[-1, 0.45]]])


def _bulb(rng: np.random.Generator) -> np.ndarray:
    angle = np.linspace(-2.5, 2.5, 16)
    globe = np.stack([0.3 + 0.7 * np.cos(angle), np.sin(angle)], axis=1)
    return np.concatenate([[[-1, -0.4]], globe, [[-1, 0.4]]])


_FORMS = {"bottle": _bottle, "tray": _tray, "box": _box, "lump": _lump, "spoon": _spoon, "bulb": _bulb}
