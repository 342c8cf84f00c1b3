"""Reading COCO instance files as people have them: repairs what is harmless, reports everything, refuses what would
mislead.

The policy: an error where training would be wrong or crash, a warning with count and examples where records are
dropped or repaired, an info where nothing is lost. Nothing is written; the repaired copy for evaluation is
`truth.py`'s.
"""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

import numpy as np
from detectron2.structures import BoxMode

from lowrank_d2.data.annotation_file import coco_content, load_json
from lowrank_d2.data.class_names import match_names
from lowrank_d2.data.image_files import BadImage, ImageFolder
from lowrank_d2.data.problems import Report
from lowrank_d2.data.segmentations import Flaw, examine, examine_box
from lowrank_d2.errors import DataError

ORPHANS_ALLOWED = 0.1  # share of annotations without image above which the file is wrong
BOXES_ONLY = 0.5  # share of annotations without mask above which the file is taken for one of boxes
LONGEST_SIDE = 1_000_000  # pixels; no image is longer
BOX_TOLERANCE = 2.0  # pixels by which a box may differ from its mask
_IMAGE_KEYS = ("id", "file_name", "height", "width")
_SAY_ROOT = "root rows (supercategory of others, no annotation) are left out"


@dataclass
class CocoData:
    """A COCO file in Detectron2's terms.

    Attributes:
        records: Detectron2's standard dicts by ascending image id, images without annotations included.
        classes: class names by contiguous index.
        category_ids: the file's id of each class.
        report: everything that was noticed.
    """

    records: list[dict]
    classes: list[str]
    category_ids: list[int]
    report: Report


def read_coco(
    json_file: str | Path,
    image_root: str | Path,
    *,
    classes: Sequence[str] | None = None,
    skip_missing: bool = False,
    masks: bool = True,
) -> CocoData:
    """Reads `json_file`, whose images lie below `image_root`; looks at no image.

    Args:
        classes: expected names; the file's categories are then matched by name (case and punctuation apart), not by id.
        skip_missing: leave out images that are not there instead of reporting an error.
        masks: objects need one; False takes those with boxes alone too, and their records have no "segmentation".

    Raises:
        DataError: the file cannot be read as COCO at all. Errors in records are in the report: see
            `Report.raise_errors`.
    """
    return _Reader(Path(json_file), ImageFolder(image_root), classes, skip_missing, masks).read()


class _Reader:
    """One pass over one file; every method looks after one part of it."""

    def __init__(
        self, path: Path, folder: ImageFolder, classes: Sequence[str] | None, skip_missing: bool, masks: bool
    ):
        self.path, self.folder, self.expected, self.skip_missing = path, folder, classes, skip_missing
        self.masks = masks
        self.report = Report(str(path))

    def read(self) -> CocoData:
        content = coco_content(load_json(self.path), self.path)
        annotations = self._with_keys(content["annotations"], "annotations", ("id", "image_id", "category_id"))
        index_of = self._categories(content["categories"], annotations)
        records = self._images(content["images"])
        self._annotations(annotations, records, index_of)
        ordered = [records[key] for key in sorted(records)]
        self._summary(ordered)
        return CocoData(ordered, self.classes, self.category_ids, self.report)

    def _with_keys(self, rows: object, section: str, keys: tuple[str, ...]) -> list[tuple[int, dict]]:
        """(position, row) of the rows that have `keys`; reports the others."""
        good = []
        for position, row in enumerate(rows):
            missing = [key for key in keys if not isinstance(row, dict) or row.get(key) is None]
            for key in missing:
                self.report.add(
                    "error",
                    "missing-key",
                    f"{section}[{position}] has no {key!r}",
                    "records without a needed key",
                    "Add the key to each of them",
                )
            if not missing:
                good.append((position, row))
        return good

    def _id(self, value: object, where: str) -> int | None:
        """An id as an integer; text and floats that stand for one are converted."""
        number = _integer(value)
        if number is not None and type(value) is not int:
            self.report.add(
                "info", "id-type", f"{where}: {value!r}", "ids written as text or fractions are read as integers"
            )
        if number is not None:
            return number
        self.report.add(
            "error", "bad-id", f"{where}: {value!r}", "ids that are no integers", "Number them 1, 2, 3, ..."
        )
        return None

    # Categories

    def _categories(self, rows: list, annotations: list[tuple[int, dict]]) -> dict[int, int]:
        """Fills classes and category_ids; returns contiguous index by category id."""
        names: dict[int, str] = {}
        parents = Counter()
        for position, row in self._with_keys(rows, "categories", ("id", "name")):
            key = self._id(row["id"], f"categories[{position}]")
            if key in names:
                self.report.add(
                    "error",
                    "duplicate-category",
                    f"id {key}: {names[key]!r} and {row['name']!r}",
                    "category ids that stand for several names",
                    "Give each category an id of its own",
                )
            elif key is not None:
                names[key] = str(row["name"])
                if not names[key].strip():
                    self.report.add(
                        "error",
                        "empty-name",
                        f"categories[{position}] (id {key}): {row['name']!r}",
                        "categories without a name",
                        "Name them: pictures and deltas show the names",
                    )
                parents[str(row.get("supercategory"))] += str(row.get("supercategory")) != names[key]
        used = {_integer(row["category_id"]) for _, row in annotations}
        for key in [key for key, name in names.items() if parents[name] and key not in used]:
            self.report.add(
                "warning", "root-category", f"id {key}: {names[key]!r}; {len(names) - 1} classes stay", _SAY_ROOT
            )
            del names[key]
        if not names:
            raise DataError(f"{self.path} has no categories, so there is nothing to learn. Add them.")
        for name, times in Counter(names.values()).items():
            if times > 1:
                same = [key for key in names if names[key] == name]
                self.report.add(
                    "warning",
                    "same-name",
                    f"{name!r}: ids {same}",
                    "names that several category ids share",
                    "Merge or rename them",
                )
        return self._match_expected(names) if self.expected else self._in_id_order(names)

    def _in_id_order(self, names: dict[int, str]) -> dict[int, int]:
        self.category_ids = sorted(names)
        self.classes = [names[key] for key in self.category_ids]
        if self.category_ids != list(range(1, len(names) + 1)):
            first, last = self.category_ids[0], self.category_ids[-1]
            self.report.add(
                "info",
                "category-ids",
                f"{len(names)} classes, ids {first}..{last} -> 0..{len(names) - 1}",
                "category ids that do not count from 1 are mapped in their order",
            )
        return {key: index for index, key in enumerate(self.category_ids)}

    def _match_expected(self, names: dict[int, str]) -> dict[int, int]:
        self.classes = list(self.expected)
        match = match_names(names, self.classes)
        if match.missing or match.extra or match.alike:
            self.report.add(
                "error",
                "class-names",
                f"missing: {', '.join(match.missing) or 'none'}; not expected: {', '.join(match.extra) or 'none'}"
                + (f"; too much alike: {', '.join(match.alike)}" if match.alike else ""),
                f"the categories are not the {len(self.classes)} expected ones ({', '.join(self.classes)})",
                "Classes are matched by name: use the same names, each once",
            )
        ids = {index: key for key, index in match.index_of.items()}
        self.category_ids = [ids.get(index, 0) for index in range(len(self.classes))]
        return match.index_of

    # Images

    def _images(self, rows: list) -> dict[int, dict]:
        """Records without annotations by image id."""
        records: dict[int, dict] = {}
        self.unusable = _ids_of_damaged(rows, _IMAGE_KEYS)  # known images that are left out
        owner: dict[str, str] = {}  # path -> the file_name that was read liberally to reach it
        first: dict[str, int] = {}  # file_name -> the image id that it stood with first
        for position, row in self._with_keys(rows, "images", _IMAGE_KEYS):
            where = f"images[{position}]"
            key = self._id(row["id"], where)
            if key is None:
                continue
            if key in records or key in self.unusable:
                self.report.add(
                    "error",
                    "duplicate-image",
                    f"{where}: id {key}",
                    "image ids that stand for several images",
                    "Give each image an id of its own",
                )
                continue
            path = self._path(row["file_name"], where, owner)
            size = [row["height"], row["width"]]
            if not all(
                isinstance(side, (int, float)) and 1 <= side <= LONGEST_SIDE and side == int(side) for side in size
            ):
                self.report.add(
                    "error",
                    "bad-size",
                    f"{where} (id {key}): height {size[0]!r}, width {size[1]!r}",
                    "images without a possible size",
                    "Write the size of the file",
                )
                path = None
            if path is None:
                self.unusable.add(key)
                continue
            if first.setdefault(os.path.normpath(row["file_name"]), key) != key:
                self.report.add(
                    "warning",
                    "same-file",
                    f"{where} (id {key}): {row['file_name']} is id {first[os.path.normpath(row['file_name'])]} too",
                    "files that several image records name: what one record marks is background in the other",
                    "Join the records, or remove the copies",
                )
            records[key] = {
                "file_name": path,
                "height": int(size[0]),
                "width": int(size[1]),
                "image_id": key,
                "annotations": [],
            }
        return records

    def _path(self, name: object, where: str, owner: dict[str, str]) -> str | None:
        try:
            path, literal = self.folder.find(name)
        except BadImage as error:
            self._report_path(error, where)
            return None
        if not literal or path in owner:
            if owner.setdefault(path, name) != name:
                self.report.add(
                    "error",
                    "ambiguous-file",
                    f"{where}: {name} and {owner[path]}",
                    "names that mean the same file",
                    "Write paths relative to the image folder",
                )
            else:
                self.report.add(
                    "info", "file-name", f"{where}: {name}", "file names are found under their last part or decoded"
                )
        return path

    def _report_path(self, error: BadImage, where: str) -> None:
        if error.kind == "outside":
            self.report.add(
                "error",
                "outside-folder",
                f"{where}: {error}",
                f"file names that leave the image folder {self.folder.folder}",
                "Write paths relative to the image folder",
            )
        elif self.skip_missing:
            self.report.add("warning", "missing-image", f"{where}: {error}", "images that are not there are left out")
        else:
            self.report.add(
                "error",
                "missing-image",
                f"{where}: {error}",
                f"images that are not below {self.folder.folder}",
                "Name the right folder, complete it, or leave them out with --skip-missing",
            )

    # Annotations

    def _annotations(self, rows: list[tuple[int, dict]], records: dict[int, dict], index_of: dict[int, int]) -> None:
        seen: set[int | str] = set()
        boxes_outside = without_mask = 0
        orphans: list[int] = []  # the image ids that annotations name and the file lacks
        for position, row in rows:
            where = f"annotations[{position}] (id {row['id']})"
            self._note_annotation_id(row["id"], where, seen)
            image_id = self._id(row["image_id"], where)
            if image_id not in records:
                if image_id is not None and image_id not in self.unusable:
                    orphans.append(image_id)
                    self.report.add(
                        "warning",
                        "orphan",
                        f"{where}: image_id {image_id}",
                        "annotations of images that are not in the file are dropped",
                    )
                continue
            category = self._id(row["category_id"], where)
            if category not in index_of:
                self._note_unknown_category(category, where, index_of)
                continue
            record = records[image_id]
            without_mask += not row.get("segmentation")
            annotation, outside = self._object(row, where, record)
            boxes_outside += outside
            if annotation is not None:
                record["annotations"].append({**annotation, "category_id": index_of[category]})
        self._judge_shares(len(rows), orphans, without_mask, boxes_outside)

    def _note_annotation_id(self, value: object, where: str, seen: set[int | str]) -> None:
        key = _integer(value)
        key = repr(value) if key is None else key
        if key in seen:
            self.report.add(
                "warning", "duplicate-annotation", where, "annotation ids that are used twice are numbered anew"
            )
        elif key == 0:
            self.report.add(
                "info", "annotation-id-0", where, "annotation id 0 reads as 'no match' in COCO's code: numbered anew"
            )
        seen.add(key)

    def _note_unknown_category(self, category: int | None, where: str, index_of: dict[int, int]) -> None:
        if category is not None and "class-names" not in self.report:
            self.report.add(
                "error",
                "unknown-category",
                f"{where}: category_id {category}",
                f"category ids that are not in categories, which has {sorted(index_of)}",
                "Add the categories or mend the ids",
            )

    def _object(self, row: dict, where: str, record: dict) -> tuple[dict | None, bool]:
        """The annotation in Detectron2's form, or None when it is dropped; and whether its box leaves the image."""
        height, width = record["height"], record["width"]
        outside = False
        try:
            crowd = row.get("iscrowd", 0)
            if crowd not in (0, 1):
                raise Flaw("bad-crowd", f"iscrowd {crowd!r} is neither 0 nor 1")
            box = None
            if row.get("bbox") is not None:
                box = examine_box(row["bbox"])
                outside = bool(box[0] + box[2] > width + BOX_TOLERANCE or box[1] + box[3] > height + BOX_TOLERANCE)
            elif "bbox" in row:
                raise Flaw("bad-box", "bbox None is not four numbers")
            if not row.get("segmentation"):
                return self._box_alone(box, crowd, where, record), outside
            outline = examine(row["segmentation"], height, width)
        except Flaw as flaw:
            self._note_flaw(flaw, where)
            return None, outside
        for note in outline.notes:
            self.report.add(
                "warning", note, where, _NOTES[note], "Run lengths can describe holes" if note == "hole" else ""
            )
        self._note_box(box, outline.bbox, where)
        if "area" not in row or "iscrowd" not in row:
            absent = " and ".join(key for key in ("area", "iscrowd") if key not in row)
            self.report.add("info", "no-area", f"{where}: {absent}", "absent area is computed, absent iscrowd is 0")
        return {
            "iscrowd": int(crowd),
            "bbox": outline.bbox,
            "bbox_mode": BoxMode.XYWH_ABS,
            "segmentation": outline.segmentation,
        }, outside

    def _box_alone(self, box: np.ndarray | None, crowd: int, where: str, record: dict) -> dict | None:
        """The annotation of an object without mask, or None when it is dropped."""
        if self.masks:
            self.report.add("warning", "no-mask", where, "annotations without a mask are dropped")
            return None
        if box is None:
            self.report.add("warning", "no-mask", where, "annotations without a mask and without a box are dropped")
            return None
        low = np.maximum(box[:2], 0)
        size = np.minimum(box[:2] + box[2:], [record["width"], record["height"]]) - low
        if not (size > 0).all():
            raise Flaw("outside", f"bbox {box.tolist()} lies outside its image", fatal=False)
        return {"iscrowd": int(crowd), "bbox": [*low.tolist(), *size.tolist()], "bbox_mode": BoxMode.XYWH_ABS}

    def _note_flaw(self, flaw: Flaw, where: str) -> None:
        if flaw.fatal:
            self.report.add(
                "error",
                flaw.kind,
                f"{where}: {flaw}",
                _FATAL.get(flaw.kind, "annotations that cannot be read"),
                "Mend or remove them",
            )
        else:
            self.report.add("warning", flaw.kind, f"{where}: {flaw}", _DROPPED[flaw.kind])

    def _note_box(self, box: np.ndarray | None, exact: Sequence[float], where: str) -> None:
        if box is None:
            self.report.add("info", "no-box", where, "absent boxes are computed from the masks")
            return
        corners = np.concatenate([box[:2], box[:2] + box[2:]])
        right = np.array([exact[0], exact[1], exact[0] + exact[2], exact[1] + exact[3]])
        off = float(np.abs(corners - right).max())
        if off > BOX_TOLERANCE:
            self.report.add(
                "warning",
                "box-off",
                f"{where}: {off:.1f} px",
                f"boxes more than {BOX_TOLERANCE:g} px off their masks are computed anew",
            )

    def _judge_shares(self, total: int, orphans: list[int], without_mask: int, boxes_outside: int) -> None:
        # Where rows of images were refused, their annotations are no second mistake.
        if len(orphans) > ORPHANS_ALLOWED * total and "duplicate-image" not in self.report:
            unknown = sorted(set(orphans))
            shown = ", ".join(map(str, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
            self.report.add(
                "error",
                "too-many-orphans",
                f"{len(orphans)} of {total}, image_id {shown}",
                "too many annotations belong to images that are not in the file",
                "Take the annotation file that belongs to these images",
            )
        if self.masks and without_mask > BOXES_ONLY * total:
            self.report.add(
                "error",
                "boxes-only",
                f"{without_mask} of {total} annotations",
                "boxes only; this model needs masks",
                "Export the dataset with segmentations",
            )
        if total and boxes_outside > 0.2 * total:
            self.report.add(
                "warning",
                "xyxy",
                f"{boxes_outside} of {total} boxes",
                "many boxes leave their image: x1 y1 x2 y2 written as x y w h?",
                "COCO boxes are x, y, width, height",
            )

    def _summary(self, records: list[dict]) -> None:
        crowds = sum(a["iscrowd"] for record in records for a in record["annotations"])
        if crowds:
            self.report.add(
                "info",
                "crowd",
                f"{crowds} annotations",
                "crowds are left out of training and ignored in AP",
                count=crowds,
            )
        empty = sum(not record["annotations"] for record in records)
        if empty:
            self.report.add(
                "info",
                "empty-image",
                f"{empty} of {len(records)} images",
                "images without annotations are evaluated; FILTER_EMPTY_ANNOTATIONS False trains on them too",
                count=empty,
            )


_NOTES = {
    "part-dropped": "polygon parts with less than three points or an odd number of values are dropped",
    "clipped": "points outside the image are clipped",
    "hole": "polygon parts inside another part: holes are filled",
}
_DROPPED = {
    "empty": "annotations without any area are dropped",
    "outside": "annotations wholly outside their image are dropped",
    "too-few-points": "annotations without a polygon of three points are dropped",
}
_FATAL = {
    "not-finite": "coordinates that are not finite (nan, inf)",
    "bad-box": "boxes that are not x, y, width, height",
    "rle-size": "run lengths of another size than their image",
    "rle-damaged": "run lengths that are damaged or cut off",
}


def _integer(value: object) -> int | None:
    """The integer that an id stands for: 7, "7" and 7.0 are the same id; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = int(value) if isinstance(value, int) else float(value)
        return int(number) if number == int(number) else None
    except (ValueError, OverflowError):
        return None


def _ids_of_damaged(rows: list, keys: Sequence[str]) -> set[int]:
    """Ids of the rows that lack one of `keys`: already reported, so what belongs to them is no second mistake."""
    mappings = [row for row in rows if isinstance(row, dict) and any(row.get(key) is None for key in keys)]
    return {number for number in (_integer(row.get("id")) for row in mappings) if number is not None}
