"""A small Cityscapes: streets in haze, with eight kinds of road users over a wide range of sizes.

On disk as the published set: leftImg8bit and gtFine by split and city; polygons are painted in order, later over
earlier, and instanceIds and labelIds are rasterised from those same polygons. Scenes carry what trips readers up:
a group, a class with instances that is not evaluated, a number plate, a deleted object, the ego vehicle.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

import cv2
import numpy as np

from lowrank_d2.data.mini import primitives as draw
from lowrank_d2.data.mini import street
from lowrank_d2.data.mini.writers import save_image

HEIGHT = 128  # pictures are twice as wide
CITIES = {"train": "aachen", "val": "frankfurt"}
# The part of Cityscapes' label table that these streets use: id, and whether its objects are counted one by one.
LABELS = {
    "ego vehicle": (1, False),
    "road": (7, False),
    "sidewalk": (8, False),
    "building": (11, False),
    "sky": (23, False),
    "person": (24, True),
    "rider": (25, True),
    "car": (26, True),
    "truck": (27, True),
    "bus": (28, True),
    "caravan": (29, True),
    "train": (31, True),
    "motorcycle": (32, True),
    "bicycle": (33, True),
    "license plate": (-1, False),
}
FREQUENCIES = {
    "person": 0.24,
    "car": 0.28,
    "truck": 0.08,
    "bus": 0.08,
    "train": 0.06,
    "motorcycle": 0.12,
    "bicycle": 0.14,
}
RIDDEN = 0.5  # share of two-wheelers with a rider


@dataclass
class Street:
    """A picture in the making: what was painted, and the record of its polygons."""

    image: np.ndarray
    objects: list[dict] = field(default_factory=list)

    def label(self, name: str, outline: np.ndarray, **extra: object) -> None:
        height, width = self.image.shape[:2]
        points = np.clip(np.rint(outline), 0, (width - 1, height - 1)).astype(int)
        self.objects.append({"label": name, "polygon": points.tolist(), **extra})


def write(folder: Path, train: int, val: int, height: int, seed: int, bar: Callable) -> None:
    """Writes leftImg8bit/ and gtFine/ for one city a split."""
    for split, count in (("train", train), ("val", val)):
        city = CITIES[split]
        for index in bar(range(count), f"cityscapes {split}"):
            image, objects = scene(draw.generator(seed, f"cityscapes/{split}", index), height, 2 * height)
            stem = f"{city}_{index:06d}_000019"
            truth = folder / "gtFine" / split / city
            save_image(folder / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", image)
            label_ids, instance_ids = rasterised(objects, height, 2 * height)
            save_image(truth / f"{stem}_gtFine_labelIds.png", label_ids)
            save_image(truth / f"{stem}_gtFine_instanceIds.png", instance_ids)
            record = {"imgHeight": height, "imgWidth": 2 * height, "objects": objects}
            (truth / f"{stem}_gtFine_polygons.json").write_text(json.dumps(record), encoding="utf-8")


def rasterised(objects: list[dict], height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """labelIds (uint8) and instanceIds (uint16) of the polygons, painted in order.

    An instance of class id c is c * 1000 + its number among the instances of that class; groups and stuff are the
    plain id.
    """
    label_ids, instance_ids = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint16)
    numbers: dict[int, int] = {}
    for item in objects:
        name = item["label"]
        group = name.endswith("group")
        label_id, counted = LABELS[name.removesuffix("group")]
        if item.get("deleted") or label_id < 0:
            continue
        value = label_id
        if counted and not group:
            value = label_id * 1000 + numbers.get(label_id, 0)
            numbers[label_id] = numbers.get(label_id, 0) + 1
        polygon = [np.array(item["polygon"], np.int32)]
        cv2.fillPoly(label_ids, polygon, label_id)
        cv2.fillPoly(instance_ids, polygon, value)
    return label_ids, instance_ids


def scene(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, list[dict]]:
    """A picture (height, width, 3) uint8 and its `objects` as in polygons.json."""
    horizon = height * rng.uniform(0.38, 0.5)
    this = Street(np.zeros((height, width, 3), np.float32))
    haze = np.array([112, 120, 126]) * rng.uniform(0.6, 1.1) + rng.normal(0, 5, 3)
    _backdrop(rng, this, horizon, haze)
    count = rng.integers(4, 9)
    lanes = (rng.permutation(count) + rng.uniform(0, 1, count)) / count  # side by side, so that nobody is quite hidden
    for distance, lane in zip(sorted(rng.uniform(0.05, 0.95, count)), lanes):
        _road_user(rng, this, horizon, distance, lane, haze)
    _odd_ones(rng, this, horizon)
    night = np.linspace(0.72, 1.0, height, dtype=np.float32)[:, None, None] * rng.uniform(0.9, 1.35)
    picture = cv2.GaussianBlur(this.image * night, (0, 0), rng.uniform(0.2, 0.6)) + rng.normal(0, 3, this.image.shape)
    return draw.finished(picture), _visible(this.objects, height, width)


def _backdrop(rng: np.random.Generator, this: Street, horizon: float, haze: np.ndarray) -> None:
    height, width = this.image.shape[:2]
    everything = np.array([[0, 0], [width, 0], [width, height], [0, height]], float)
    this.image[:] = haze + 30
    this.label("sky", everything * [1, horizon / height])
    asphalt = draw.shaded((62, 64, 66), draw.noise(rng, height, width, (4, 8, 32)), 5)
    road = np.array([[0, horizon], [width, horizon], [width, height], [0, height]])
    _cover(this, road, asphalt)
    this.label("road", road)
    left = 0.0
    while left < width:
        broad, tall = rng.uniform(0.1, 0.3) * width, rng.uniform(0.25, 1.0) * horizon
        block = np.array(
            [[left, horizon - tall], [left + broad, horizon - tall], [left + broad, horizon + 2], [left, horizon + 2]]
        )
        wall = rng.uniform(55, 105) + rng.normal(0, 8, 3)
        _cover(this, block, 0.6 * _windows(rng, wall, height, width) + 0.4 * haze)
        this.label("building", block)
        left += broad * rng.uniform(1, 1.25)
    edge = rng.uniform(0.55, 0.8) * width
    walk = np.array(
        [[edge, horizon + 2], [width, horizon + 2], [width, height], [width * 1.02, height], [width, height * 0.9]]
    )
    _cover(this, walk, draw.shaded((92, 88, 88), draw.noise(rng, height, width, (16, 48)), 5))
    this.label("sidewalk", walk)


def _windows(rng: np.random.Generator, wall: np.ndarray, height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    step = int(rng.integers(7, 13))
    panes = ((x % step) > step // 2) & ((y % step) > step // 3)
    lit = rng.random((height // step + 1, width // step + 1)) < 0.15
    glow = np.where(lit[y // step, x // step], 75, -28)
    return draw.shaded(wall, np.where(panes, glow, 0), 1.0)


def _road_user(
    rng: np.random.Generator, this: Street, horizon: float, distance: float, lane: float, haze: np.ndarray
) -> None:
    """Paints and labels one object that stands on the street: `distance` from 0 (at the horizon) to 1 (at the lower
    edge), `lane` the place of its middle from 0 (left) to 1."""
    height, width = this.image.shape[:2]
    foot = horizon + distance * (height - horizon)
    unit = 0.45 * (foot - horizon) + 14  # pixels that 1.5 m take at this distance
    name = str(rng.choice(list(FREQUENCIES), p=list(FREQUENCIES.values())))
    mirrored = rng.random() < 0.5
    fog = 0.5 * (1 - distance) ** 2
    things = street.built(rng, name, RIDDEN)
    middle = np.concatenate([outline for outline, _ in things[0][1]])[:, 0].mean() * unit
    corner = (lane * width + (middle if mirrored else -middle), foot)
    for label, parts in things:
        placed = [
            (draw.place(outline, corner, (-unit if mirrored else unit, unit)), colour) for outline, colour in parts
        ]
        mask = draw.rasterise([outline for outline, _ in placed], height, width)
        outlines = draw.trace(mask)
        if mask.sum() < draw.SMALLEST_MASK:
            continue
        for outline, colour in placed:
            _cover(this, outline, (1 - fog) * np.asarray(colour) + fog * haze)
        this.label(label, outlines[0])


def _odd_ones(rng: np.random.Generator, this: Street, horizon: float) -> None:
    """What is labelled but not evaluated as an instance of the eight classes."""
    height, width = this.image.shape[:2]

    def patch(x: float, y: float, w: float, h: float) -> np.ndarray:
        return np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]]) * [width, height]

    top = horizon / height
    if rng.random() < 0.3:
        crowd = patch(rng.uniform(0, 0.8), top - 0.01, 0.12, 0.05)
        _cover(this, crowd, draw.shaded((66, 68, 74), draw.noise(rng, height, width, (24, 48)), 22))
        this.label("cargroup", crowd)
    if rng.random() < 0.2:
        home = patch(rng.uniform(0, 0.8), top - 0.02, 0.1, 0.13)
        _cover(this, home, (128, 124, 116))
        _cover(this, 0.4 * home + 0.6 * home.mean(axis=0), street.GLASS)
        this.label("caravan", home)
    if rng.random() < 0.3:
        this.label("license plate", patch(rng.uniform(0.1, 0.9), rng.uniform(0.6, 0.8), 0.03, 0.015))
    if rng.random() < 0.3:
        this.label("car", patch(rng.uniform(0.1, 0.7), 0.6, 0.2, 0.15), deleted=1)
    bonnet = np.array([[0, 1.0], [0.15, 0.95], [0.5, 0.93], [0.85, 0.95], [1, 1.0]]) * [width, height]
    _cover(this, bonnet, (28, 29, 32))
    this.label("ego vehicle", bonnet)


def _cover(this: Street, outline: np.ndarray, surface: np.ndarray) -> None:
    height, width = this.image.shape[:2]
    draw.paint(this.image, draw.soften(draw.rasterise([outline], height, width), 0.4), surface)


def _visible(objects: list[dict], height: int, width: int) -> list[dict]:
    """Leaves out counted objects of which later ones hide all but a few pixels."""
    order = np.zeros((height, width), np.int32)
    for number, item in enumerate(objects, start=1):
        if not item.get("deleted") and item["label"] != "license plate":
            cv2.fillPoly(order, [np.array(item["polygon"], np.int32)], number)
    seen = np.bincount(order.reshape(-1), minlength=len(objects) + 1)
    counted = {name for name, (_, single) in LABELS.items() if single}
    return [
        item
        for number, item in enumerate(objects, start=1)
        if item["label"] not in counted or item.get("deleted") or seen[number] >= draw.SMALLEST_MASK
    ]
