"""3,000 images of COCO val2017 for training, validation and test, with every category in each of the three.

The paper on low-rank variants of YOLOS-S shuffles, takes 3,000 images, 70 % of them to train, and of these 30 % to
validate. Its choice is not published. Plain shuffling would leave a class of eight images out of a part in every third
to sixth case.
"""
import hashlib
import json
import os
import random
from collections import defaultdict
from pathlib import Path
from typing import Any, Iterable, Mapping, Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from lowrank_d2.data.datasets.catalog import VARIABLE, locate
from lowrank_d2.errors import DataError
from lowrank_d2.files import write_text

SIZES = {"test": 900, "val": 630, "train": 1470}  # in the order in which they are served
PREFIX = "coco_val3000"


def split_images(content: Mapping[str, Any], sizes: Mapping[str, int], seed: int) -> dict[str, list[int]]:
    """Draws disjoint parts of a COCO file, each with all categories; the same arguments give the same parts.

    Rare categories are served first: each part that lacks one gets the first image of the shuffled list that has it.
    Then the parts are filled in the shuffled order, and shuffled.

    Args:
        content: of an instances json. Crowds and boxes without area do not count as objects.
        sizes: images of each part; earlier parts are served first.

    Returns:
        Image ids by part.

    Raises:
        DataError: too few images altogether, or of one category.
    """
    order = sorted(image["id"] for image in content["images"])
    shuffling = random.Random(seed)  # Python's generator keeps its sequence from version to version
    shuffling.shuffle(order)
    if sum(sizes.values()) > len(order):
        wanted = sum(sizes.values())
        raise DataError(f"The file has {len(order)} images, fewer than the {wanted} wanted. Take val2017 as a whole.")
    images = _images_by_category(content)
    parts: dict[str, list[int]] = {name: [] for name in sizes}
    used: set[int] = set()
    for category in sorted(content["categories"], key=lambda entry: (len(images[entry["id"]]), entry["id"])):
        candidates = [image for image in order if image in images[category["id"]]]
        for name, part in parts.items():
            if images[category["id"]].isdisjoint(part):
                found = next((image for image in candidates if image not in used), None)
                if found is None or len(part) == sizes[name]:
                    raise DataError(
                        f"{category['name']!r} is in {len(candidates)} images, which cannot serve {', '.join(sizes)} "
                        f"with the seed {seed}. Choose another seed, or larger parts."
                    )
                part.append(found)
                used.add(found)
    rest = iter([image for image in order if image not in used])
    for name, part in parts.items():
        part += [next(rest) for _ in range(sizes[name] - len(part))]
        shuffling.shuffle(part)
    return parts


def part_of(content: Mapping[str, Any], image_ids: Sequence[int]) -> dict[str, Any]:
    """The COCO file of some images, in their order; all categories and all ids stay."""
    images = {image["id"]: image for image in content["images"]}
    chosen = set(image_ids)
    return {
        **content,
        "images": [images[image] for image in image_ids],
        "annotations": [entry for entry in content["annotations"] if entry["image_id"] in chosen],
    }


def write_split(source: Path, folder: Path, seed: int, sizes: Mapping[str, int] = SIZES) -> list[Path]:
    """Writes `folder`/val3000_{train,val,test}.json, and val3000.json that says what they were made of.

    Raises:
        DataError: `source` cannot be read as a COCO file, or as `split_images`.
    """
    try:
        text = source.read_bytes()
        content = json.loads(text)
        parts = split_images(content, sizes, seed)
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{source} cannot be read as COCO annotations: {error!r}"
        raise DataError(f"{what}. Name instances_val2017.json.") from error
    written = []
    for name, image_ids in parts.items():
        written.append(folder / f"val3000_{name}.json")
        write_text(written[-1], json.dumps(part_of(content, image_ids)))
    manifest = {
        "source": source.name,
        "source_sha256": hashlib.sha256(text).hexdigest(),
        "seed": seed,
        "parts": {name: {"images": len(ids), "ids_sha256": fingerprint(ids)} for name, ids in parts.items()},
    }
    written.append(folder / "val3000.json")
    write_text(written[-1], json.dumps(manifest, indent=1))
    return written


def fingerprint(image_ids: Iterable[int]) -> str:
    """SHA-256 of the sorted ids, so that two people can compare their parts."""
    return hashlib.sha256(" ".join(map(str, sorted(image_ids))).encode()).hexdigest()


def register_split() -> None:
    """Enters coco_val3000_{train,val,test} into Detectron2's catalogs; may be called again, and touches no file."""
    coco = MetadataCatalog.get("coco_2017_val")
    for name in SIZES:
        entry = f"{PREFIX}_{name}"
        if entry in DatasetCatalog.list():
            continue
        DatasetCatalog.register(entry, lambda name=name, entry=entry: _read(name, entry))
        MetadataCatalog.get(entry).set(
            json_file=str(_root() / "annotations" / f"val3000_{name}.json"),
            image_root=str(_root() / "val2017"),
            evaluator_type="coco",
            thing_classes=coco.thing_classes,
            thing_colors=coco.thing_colors,
            thing_dataset_id_to_contiguous_id=coco.thing_dataset_id_to_contiguous_id,
        )


def _read(name: str, entry: str) -> list[dict]:
    labels = f"annotations/val3000_{name}.json"
    root = locate("The split of COCO (made by projects/YOLOS/prepare_coco_split.py)", ("coco",), (labels, "val2017"))
    return load_coco_json(str(root / labels), str(root / "val2017"), entry)


def _root() -> Path:
    return Path(os.environ.get(VARIABLE, "datasets")).expanduser() / "coco"


def _images_by_category(content: Mapping[str, Any]) -> dict[int, set[int]]:
    images: dict[int, set[int]] = defaultdict(set)
    for entry in content["annotations"]:
        _, _, width, height = entry["bbox"]
        if not entry.get("iscrowd", 0) and width > 0 and height > 0:
            images[entry["category_id"]].add(entry["image_id"])
    return images
