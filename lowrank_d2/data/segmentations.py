"""Reading COCO segmentations that may be damaged: polygons and run lengths, in pixels of one image."""

from dataclasses import dataclass, field
from typing import Sequence

import cv2
import numpy as np
from pycocotools import mask as coco_mask

FAR = 8  # image sides away from the origin at which vertices are stopped


class Flaw(ValueError):
    """A segmentation or box that cannot be used.

    Attributes:
        kind: name of the flaw, as in `Report`.
        fatal: False when the object may be left out, True when the file is wrong.
    """

    def __init__(self, kind: str, text: str, fatal: bool = True):
        super().__init__(text)
        self.kind = kind
        self.fatal = fatal


@dataclass
class Outline:
    """A usable segmentation: polygons [[x, y, ...], ...] or compressed run lengths, with its box (x, y, w, h).

    `notes` names what was repaired: "part-dropped", "clipped", "hole".
    """

    segmentation: list | dict
    bbox: list[float]
    notes: set[str] = field(default_factory=set)


def examine(segmentation: object, height: int, width: int) -> Outline:
    """Checks one `segmentation` of an image of `height` x `width`.

    Raises:
        Flaw: unusable; see `Flaw.kind`.
    """
    if isinstance(segmentation, dict):
        return _examine_rle(segmentation, height, width)
    if isinstance(segmentation, list):
        return _examine_polygons(segmentation, height, width)
    raise Flaw("bad-segmentation", f"segmentation {_short(segmentation)} is neither polygons nor run lengths")


def decode(segmentation: list | dict, height: int, width: int) -> np.ndarray:
    """The mask (height, width), bool, of polygons or run lengths that `examine` accepts."""
    return coco_mask.decode(encode(segmentation, height, width)).astype(bool)


def encode(segmentation: list | dict, height: int, width: int) -> dict:
    """Compressed run lengths (`counts` is bytes or str) of polygons or run lengths."""
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            return coco_mask.frPyObjects(segmentation, height, width)
        return segmentation
    return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))


def encode_ids(ids: np.ndarray) -> dict[int, dict]:
    """Compressed run lengths of every value but 0 in a map of ids (H, W), all in one pass over the map."""
    height, width = ids.shape
    flat = ids.T.reshape(-1)  # run lengths go down the columns
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    lengths = np.diff(np.append(starts, flat.size))
    values = flat[starts]
    found = {}
    for value in np.unique(values):
        if value == 0:
            continue
        mine = values == value
        begin, length = starts[mine], lengths[mine]
        gaps = begin - np.concatenate([[0], begin[:-1] + length[:-1]])
        counts = np.stack([gaps, length], axis=1).reshape(-1).tolist()
        rest = flat.size - int(begin[-1] + length[-1])
        counts += [rest] if rest else []
        rle = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        found[int(value)] = {"size": [height, width], "counts": rle["counts"].decode("ascii")}
    return found


def examine_box(bbox: object) -> np.ndarray:
    """Checks a COCO box (x, y, w, h).

    Raises:
        Flaw: not four finite numbers, a negative size, or no area.
    """
    values = _numbers(bbox)
    if values is None or values.shape != (4,):
        raise Flaw("bad-box", f"bbox {_short(bbox)} is not four numbers")
    if not np.isfinite(values).all():
        raise Flaw("not-finite", f"bbox {_short(bbox)} holds a value that is not finite")
    if values[2] < 0 or values[3] < 0:
        raise Flaw("bad-box", f"bbox {_short(bbox)} has a negative size")
    if values[2] == 0 or values[3] == 0:
        raise Flaw("empty", f"bbox {_short(bbox)} has no area", fatal=False)
    return values


def _examine_polygons(polygons: list, height: int, width: int) -> Outline:
    notes, parts, side = set(), [], max(height, width)
    for polygon in polygons:
        values = _numbers(polygon)
        if values is None or values.ndim != 1:
            raise Flaw("bad-segmentation", f"polygon {_short(polygon)} is not a list of numbers")
        if not np.isfinite(values).all():
            raise Flaw("not-finite", f"polygon {_short(polygon)} holds a value that is not finite")
        if len(values) < 6 or len(values) % 2:
            notes.add("part-dropped")
            continue
        # Rasterising walks along every edge, so a vertex at 1e12 would take all memory.
        parts.append(np.clip(values.reshape(-1, 2), -FAR * side, FAR * side))
    if not parts:
        raise Flaw("too-few-points", "no polygon has three points or more and an even number of values", fatal=False)
    low = np.min([part.min(axis=0) for part in parts], axis=0)
    high = np.max([part.max(axis=0) for part in parts], axis=0)
    if (low >= (width, height)).any() or (high <= 0).any():
        raise Flaw("outside", f"polygon from {low.tolist()} to {high.tolist()} lies outside of the image", fatal=False)
    if (low < -0.5).any() or (high > (width + 0.5, height + 0.5)).any():
        notes.add("clipped")
    segmentation = [part.reshape(-1).tolist() for part in parts]
    # Rasterising is slow; only small outlines, and those cut by the border, can turn out to have no pixel.
    if ("clipped" in notes or _shoelace(parts) < 8) and not coco_mask.area(encode(segmentation, height, width)):
        raise Flaw("empty", "the polygon covers no pixel", fatal=False)
    if len(parts) > 1 and _has_hole(parts):
        notes.add("hole")
    low, high = np.clip(low, 0, (width, height)), np.clip(high, 0, (width, height))
    return Outline(segmentation, [float(v) for v in (*low, *(high - low))], notes)


def _examine_rle(rle: dict, height: int, width: int) -> Outline:
    size, counts = rle.get("size"), rle.get("counts")
    if not isinstance(size, (list, tuple)) or [*size] != [height, width]:
        turned = (
            " (height and width are exchanged: EXIF rotation?)"
            if isinstance(size, list) and size == [width, height]
            else ""
        )
        raise Flaw("rle-size", f"run lengths of size {_short(size)} for an image of [{height}, {width}]{turned}")
    if isinstance(counts, list):
        runs = _numbers(counts)
        if runs is None or runs.ndim != 1:
            raise Flaw("rle-damaged", f"counts {_short(counts)} are not run lengths")
    elif isinstance(counts, (str, bytes)):
        runs = _runs(counts.encode("latin1", "replace") if isinstance(counts, str) else counts)
    else:
        raise Flaw("rle-damaged", f"counts {_short(counts)} are not run lengths")
    if (runs < 0).any() or (runs != np.rint(runs)).any() or runs.sum() != height * width:
        raise Flaw("rle-damaged", f"run lengths add up to {runs.sum():.0f} pixels, the image has {height} x {width}")
    if not runs[1::2].sum():
        raise Flaw("empty", "the mask has no pixel", fatal=False)
    if isinstance(counts, list):
        counts = coco_mask.frPyObjects({"size": [height, width], "counts": runs.astype(int).tolist()}, height, width)[
            "counts"
        ]
    compressed = {"size": [height, width], "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}
    return Outline(compressed, [float(v) for v in coco_mask.toBbox(compressed)])


def _runs(text: bytes) -> np.ndarray:
    """Run lengths of COCO's text form: 5 bits a character from 48 on, bit 6 "goes on", from the third run on
    differences."""
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if not len(codes) or (codes < 0).any() or (codes > 63).any() or codes[-1] & 32:
        raise Flaw("rle-damaged", f"counts {_short(text.decode('latin1'))} are cut off or not COCO's text form")
    last = (codes & 32) == 0
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    group = np.cumsum(last) - last
    place = np.arange(len(codes)) - starts[group]
    if place.max() > 6:
        raise Flaw("rle-damaged", f"counts {_short(text.decode('latin1'))} hold a number without end")
    values = np.bincount(group, weights=(codes & 31) << (5 * place)).astype(np.int64)
    negative = (codes[ends] & 16) != 0
    values[negative] -= 1 << (5 * (place[ends][negative] + 1))
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _has_hole(parts: Sequence[np.ndarray]) -> bool:
    """Whether one part lies inside another; COCO polygons are filled, so such a part adds nothing."""
    for inner in parts:
        for outer in parts:
            if (
                inner is outer
                or (inner.min(axis=0) < outer.min(axis=0)).any()
                or (inner.max(axis=0) > outer.max(axis=0)).any()
            ):
                continue
            contour = outer.astype(np.float32)
            if all(cv2.pointPolygonTest(contour, (float(x), float(y)), False) > 0 for x, y in inner):
                return True
    return False


def _shoelace(parts: Sequence[np.ndarray]) -> float:
    return sum(abs(cv2.contourArea(part.astype(np.float32))) for part in parts)


def _numbers(values: object) -> np.ndarray | None:
    """A float64 array of a list of numbers, None for anything else; numbers written as text are not numbers."""
    if not isinstance(values, (list, tuple)):
        return None
    try:
        array = np.asarray(values)
    except ValueError:  # nested lists of different lengths
        return None
    return array.astype(np.float64) if array.dtype.kind in "iuf" else None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
