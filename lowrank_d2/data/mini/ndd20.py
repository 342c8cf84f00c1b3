"""A small NDD20: dolphins above and below the water. Low contrast, blurred edges and one class.

On disk as the published archive: two folders with equal numbering and two VIA files whose regions are polylines.
"""

import json
from pathlib import Path
from typing import Callable

import cv2
import numpy as np

from lowrank_d2.data.mini import primitives as draw
from lowrank_d2.data.mini.writers import save_image

HEIGHT = 128  # pictures are half as wide again


def write(folder: Path, train: int, val: int, height: int, seed: int, bar: Callable) -> None:
    """Writes ABOVE/, BELOW/ and their label files, as many pictures as give the wanted counts under the 5:1 split
    rule."""
    total = max(-(-train * 6 // 5), val * 6)
    for name, draw_scene in (("ABOVE", _above), ("BELOW", _below)):
        labels = {}
        for index in bar(range(-(-total // 2)), f"ndd20 {name}"):
            rng = draw.generator(seed, f"ndd20/{name}", index)
            image, masks = draw_scene(rng, height, height * 3 // 2)
            file_name = f"{index}.jpg"
            save_image(folder / name / file_name, image)
            size = (folder / name / file_name).stat().st_size
            labels[f"{file_name}{size}"] = {
                "filename": file_name,
                "size": size,
                "regions": [_region(rng, mask, name) for mask in masks],
                "file_attributes": {},
            }
        (folder / f"{name}_LABELS.json").write_text(json.dumps(labels), encoding="utf-8")


def _region(rng: np.random.Generator, mask: np.ndarray, folder: str) -> dict:
    """A VIA polyline of whole pixels; as in the original it may stop short of its start, and the individual may be
    unnamed."""
    outline = draw.trace(mask)[0]
    points = [[int(round(x)), int(round(y))] for x, y in outline]
    if rng.random() < 0.9:
        points.append(points[0])
    attributes = {"object": "dolphin"}
    if folder == "ABOVE":
        attributes["species"] = "BND" if rng.random() < 0.5 else "WBD"
        known = rng.random() < 0.14
    else:
        attributes["out of focus"] = "true" if rng.random() < 0.2 else "false"
        known = rng.random() < 0.71
    if known:
        attributes["id"] = str(rng.integers(1, 40))
    elif rng.random() < 0.5:
        attributes["id"] = ""
    xs, ys = (list(values) for values in zip(*points))
    shape = {"name": "polyline", "all_points_x": xs, "all_points_y": ys}
    return {"shape_attributes": shape, "region_attributes": attributes}


def _below(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Under water: a green-blue gradient with rays and murk; bodies hardly differ from the water."""
    depth = np.linspace(1, -1, height, dtype=np.float32)[:, None] * np.ones((1, width), np.float32)
    tint = np.array([95, 160, 155]) + rng.normal(0, 10, 3)
    image = draw.shaded(tint, depth, rng.uniform(10, 32)) + 10 * draw.noise(rng, height, width, (3, 6, 12))[..., None]
    _rays(rng, image, depth)
    masks: list[np.ndarray] = []
    for _ in range(rng.choice([1, 2, 3], p=[0.65, 0.25, 0.1])):
        length = width * np.clip(rng.lognormal(-1.05, 0.35), 0.16, 0.75)
        centre = (rng.uniform(0.12, 0.88) * width, rng.uniform(0.15, 0.85) * height)
        mask, shade = _body(rng, centre, length, height, width)
        mask &= ~_union(masks, mask)
        if mask.sum() < 3 * draw.SMALLEST_MASK:
            continue
        masks.append(mask)
        contrast = rng.uniform(22, 55) * rng.choice([-1, 1], p=[0.75, 0.25])
        alpha = draw.soften(mask, rng.uniform(0.4, 1.6)) * rng.uniform(0.45, 0.8)
        draw.paint(image, alpha, tint + contrast + (18 * shade)[..., None])
    for _ in range(rng.integers(2, 7)):  # murk: shapes of nothing
        outline = draw.place(
            draw.blob(rng), rng.uniform((0, 0), (width, height)), rng.uniform(4, 20, 2), rng.uniform(0, 6.3)
        )
        murk = draw.soften(draw.rasterise([outline], height, width), 2.5)
        draw.paint(image, 0.3 * murk, tint + rng.uniform(-45, 45))
    image += rng.normal(0, 2.5, image.shape)
    return draw.finished(image), masks


def _body(
    rng: np.random.Generator, centre: tuple[float, float], length: float, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """The mask of a bent spindle with beak, fin and fluke, and its countershading: -1 along the back, 1 at the
    belly."""
    along = np.linspace(-1, 1, 25)
    half = 0.19 * np.clip(1 - np.abs(along) ** 1.7, 0, None) ** 0.75 + 0.025 * (along > -0.99)
    bend = rng.normal(0, 0.16) * along**2
    back = np.stack([along, bend - half * 1.05], axis=1)
    belly = np.stack([along, bend + half * 0.95], axis=1)
    spread = rng.uniform(0.08, 0.2)
    end = bend[-1]
    parts = [
        np.concatenate([back, belly[::-1]]),
        np.array([[-1.14, bend[0] + 0.02], [-0.85, bend[2] - 0.05], [-0.85, bend[2] + 0.06]]),
        np.array([[-0.02, bend[12] - 0.16], [0.28, bend[15] - 0.36], [0.26, bend[15] - 0.13]]),
        np.array([[0.86, end - 0.01], [1.2, end - spread], [1.1, end], [1.2, end + spread]]),
    ]
    flip, angle = rng.choice([-1, 1]), rng.normal(0, 0.4)
    scale = (flip * length / 2.3, length / 2.3)
    mask = draw.rasterise([draw.place(part, centre, scale, angle) for part in parts], height, width)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    across = (np.cos(angle) * (y - centre[1]) - np.sin(angle) * (x - centre[0])) / (0.1 * length)
    return mask, np.clip(across, -1, 1)


def _rays(rng: np.random.Generator, image: np.ndarray, depth: np.ndarray) -> None:
    """Slanted light that fades on the way down."""
    height, width = depth.shape
    for _ in range(rng.integers(1, 5)):
        top, lean, broad = rng.uniform(0, width), rng.uniform(-0.4, 0.4) * width, rng.uniform(0.02, 0.08) * width
        beam = np.array(
            [[top - broad, -1], [top + broad, -1], [top + lean + 2 * broad, height], [top + lean - broad, height]]
        )
        alpha = draw.soften(draw.rasterise([beam], height, width), 3) * (depth + 1) * rng.uniform(0.03, 0.12)
        draw.paint(image, alpha, (225, 245, 235))


def _above(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """From a boat: choppy water, in it small dark backs and fins, cut off by the waterline."""
    waves = draw.noise(rng, height, width, (6, 12, 24, 48), flatness=2.0)
    tint = np.array([96, 118, 130]) + rng.normal(0, 12) + rng.normal(0, 4, 3)
    image = draw.shaded(tint, waves, rng.uniform(12, 24))
    crest = cv2.GaussianBlur((waves > rng.uniform(1.4, 2.2)).astype(np.float32), (0, 0), 0.7)
    draw.paint(image, 0.7 * crest, (205, 213, 218))
    trough = draw.noise(rng, height, width, (5, 10, 20), flatness=3.0)
    draw.paint(image, 0.5 * np.clip(trough - 1.2, 0, 1), (45, 58, 66))  # as dark as a back, but no back
    masks: list[np.ndarray] = []
    for _ in range(rng.choice([1, 2, 3], p=[0.6, 0.28, 0.12])):
        share = rng.uniform(0.004, 0.03)
        length = np.sqrt(share * height * width / 0.22)
        centre = (rng.uniform(0.1, 0.9) * width, rng.uniform(0.3, 0.9) * height)
        mask = _back_and_fin(rng, centre, length, height, width)
        mask &= ~_union(masks, mask)
        if mask.sum() < 2 * draw.SMALLEST_MASK:
            continue
        masks.append(mask)
        grey = rng.uniform(42, 80)
        surface = draw.shaded((grey, grey + 5, grey + 10), draw.noise(rng, height, width, (16, 32)), 9)
        draw.paint(image, 0.92 * draw.soften(mask, rng.uniform(0.4, 0.9)), surface)
        if rng.random() < 0.5:
            foam = _foam(rng, centre, length, height, width) & ~mask
            draw.paint(image, 0.8 * draw.soften(foam, 0.8), (215, 222, 226))
    image += rng.normal(0, 3, image.shape)
    return draw.finished(image), masks


def _back_and_fin(
    rng: np.random.Generator, centre: tuple[float, float], length: float, height: int, width: int
) -> np.ndarray:
    along = np.linspace(-1, 1, 15)
    arch = rng.uniform(0.12, 0.34)
    ripple = rng.normal(0, 0.025, 15)  # the waterline
    back = np.concatenate(
        [np.stack([along, -arch * (1 - along**2)], axis=1), np.stack([along, 0.06 + ripple], axis=1)[::-1]]
    )
    foot, tall = rng.uniform(-0.2, 0.3), rng.uniform(0.3, 0.6)
    fin = np.array(
        [
            [foot - 0.25, -arch * 0.8],
            [foot + 0.2, -arch - tall],
            [foot + 0.24, -arch - tall * 0.9],
            [foot + 0.16, -arch - tall * 0.4],
            [foot + 0.24, -arch * 0.8],
        ]
    )
    scale = (rng.choice([-1, 1]) * length / 2, length / 2)
    tilt = rng.normal(0, 0.08)
    return draw.rasterise([draw.place(part, centre, scale, tilt) for part in (back, fin)], height, width)


def _foam(rng: np.random.Generator, centre: tuple[float, float], length: float, height: int, width: int) -> np.ndarray:
    """A broken white streak along the waterline."""
    streak = draw.place(draw.blob(rng, 0.6), (centre[0], centre[1] + 0.06 * length), (length * 0.62, length * 0.1))
    return draw.rasterise([streak], height, width) & (draw.noise(rng, height, width, (24, 48)) > 0.3)


def _union(masks: list[np.ndarray], like: np.ndarray) -> np.ndarray:
    return np.any(masks, axis=0) if masks else np.zeros_like(like)
