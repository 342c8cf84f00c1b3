"""The source domain, on which the small base is trained: six crisp, opaque, textured shapes, told apart by form
alone."""

from pathlib import Path
from typing import Callable

import cv2
import numpy as np

from lowrank_d2.data.mini import primitives as draw
from lowrank_d2.data.mini.writers import CocoFile, save_image

HEIGHT = 128
CLASSES = ("ball", "box", "wedge", "star", "cross", "blob")


def write(folder: Path, train: int, val: int, height: int, seed: int, bar: Callable) -> None:
    """Writes `folder`/{train,val}/*.jpg and `folder`/annotations/instances_{train,val}.json; pictures are square."""
    for split, count in (("train", train), ("val", val)):
        coco = CocoFile(CLASSES)
        for index in bar(range(count), f"source {split}"):
            image, objects = scene(draw.generator(seed, f"source/{split}", index), height)
            name = f"{index:06d}.jpg"
            save_image(folder / split / name, image)
            image_id = coco.add_image(name, height, height)
            for category, mask in objects:
                coco.add_mask(image_id, category, mask)
        coco.save(folder / "annotations" / f"instances_{split}.json")


def scene(rng: np.random.Generator, side: int) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """A picture (side, side, 3) uint8 and its objects as (class, visible mask)."""
    ground = rng.uniform(30, 225, 3)
    image = draw.shaded(ground, draw.noise(rng, side, side, cells=(3, 6)), rng.uniform(4, 14))
    image += draw.noise(rng, side, side, cells=(32, 64))[..., None] * rng.uniform(1, 5)
    objects: list[tuple[int, np.ndarray]] = []
    for _ in range(rng.integers(2, 7)):
        category = int(rng.integers(len(CLASSES)))
        mask = _free_place(rng, category, side, [other for _, other in objects])
        if mask is None:
            continue
        objects = [(other, visible & ~mask) for other, visible in objects]
        objects.append((category, mask))
        draw.paint(image, draw.soften(mask, 0.5), _texture(rng, side, ground))
    return draw.finished(image), objects


def _free_place(rng: np.random.Generator, category: int, side: int, others: list[np.ndarray]) -> np.ndarray | None:
    """A mask inside the picture that leaves at least 60 % of every earlier object to be seen; None if none was
    found."""
    areas = [other.sum() for other in others]
    for _ in range(8):
        radius = side * rng.uniform(0.1, 0.25)
        centre = rng.uniform(radius * 0.9, side - radius * 0.9, 2)
        mask = draw.rasterise(
            [draw.place(_outline(rng, category), centre, (radius, radius), rng.uniform(0, 6.3))], side, side
        )
        covered = [(other & mask).sum() / max(area, 1) for other, area in zip(others, areas)]
        if mask.sum() >= draw.SMALLEST_MASK and max(covered, default=0) < 0.4:
            return mask
    return None


def _outline(rng: np.random.Generator, category: int) -> np.ndarray:
    """The unit outline of a class with its own variation."""
    name = CLASSES[category]
    if name == "ball":
        return draw.disc() * [1, rng.uniform(0.75, 1)]
    if name == "box":
        return draw.box() * [0.9, rng.uniform(0.35, 0.8)]
    if name == "wedge":
        return np.array([[-0.9, 0.7], [0.9, 0.7], [rng.uniform(-0.4, 0.4), -0.9]])
    if name == "star":
        angle = np.arange(10) * np.pi / 5
        radius = np.where(np.arange(10) % 2, rng.uniform(0.36, 0.46), 1.05)
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    if name == "cross":
        t, e = rng.uniform(0.22, 0.34), 1.0
        half = [[-t, -e], [t, -e], [t, -t], [e, -t], [e, t], [t, t]]
        return np.array(half + [[-x, -y] for x, y in half])
    return draw.blob(rng, roughness=0.75, harmonics=3) * [1, rng.uniform(0.7, 1)]


def _texture(rng: np.random.Generator, side: int, ground: np.ndarray) -> np.ndarray:
    """A surface that differs clearly from the ground: plain, noisy, striped or checked."""
    colour = rng.uniform(10, 245, 3)
    while np.abs(colour - ground).sum() < 150:
        colour = rng.uniform(10, 245, 3)
    y, x = np.mgrid[:side, :side].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), side * rng.uniform(0.05, 0.1)
    along = np.cos(angle) * x + np.sin(angle) * y
    across = np.cos(angle) * y - np.sin(angle) * x
    kind = rng.choice(["plain", "noise", "stripes", "checks"])
    field = np.zeros((side, side), np.float32)
    if kind == "noise":
        field = draw.noise(rng, side, side, cells=(8, 16, 32))
    elif kind != "plain":
        field = np.sign(np.sin(2 * np.pi * along / period))
        if kind == "checks":
            field *= np.sign(np.sin(2 * np.pi * across / period))
    field = cv2.GaussianBlur(field, (0, 0), 0.6)
    light = (x * np.cos(angle + 1) + y * np.sin(angle + 1)) / side - 0.5
    return draw.shaded(colour, field, rng.uniform(8, 22)) + 20 * light[..., None]
