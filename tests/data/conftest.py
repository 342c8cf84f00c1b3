"""A small COCO dataset that tests damage in one place each."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lowrank_d2.data import mini


class OwnDataset:
    """Four images of 48 x 32 with one square of 10 x 10 each; classes ant (1) and bee (2)."""

    def __init__(self, root: Path):
        self.images = root / "images"
        self.json = root / "a.json"
        self.images.mkdir(parents=True)
        self.content = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 1, "name": "ant"}, {"id": 2, "name": "bee"}],
        }
        for number in range(1, 5):
            pixels = np.full((32, 48, 3), 40 * number, np.uint8)
            Image.fromarray(pixels).save(self.images / f"{number}.png")
            self.content["images"].append({"id": number, "file_name": f"{number}.png", "height": 32, "width": 48})
            x = 5 * number
            self.content["annotations"].append(
                {
                    "id": number,
                    "image_id": number,
                    "category_id": 1 + number % 2,
                    "iscrowd": 0,
                    "area": 100,
                    "bbox": [x, 8, 10, 10],
                    "segmentation": [[x, 8, x + 10, 8, x + 10, 18, x, 18]],
                }
            )

    @property
    def annotations(self) -> list[dict]:
        return self.content["annotations"]

    def save(self) -> "OwnDataset":
        self.json.write_text(json.dumps(self.content), encoding="utf-8")
        return self


@pytest.fixture
def own(tmp_path) -> OwnDataset:
    return OwnDataset(tmp_path / "own")


@pytest.fixture(scope="session")
def mini_root(tmp_path_factory) -> Path:
    """A $DETECTRON2_DATASETS with every generated dataset, small."""
    root = tmp_path_factory.mktemp("datasets")
    for name in mini.DOMAINS:
        mini.build(root, name, train=12, val=4, seed=3)
    return root


@pytest.fixture
def registered(mini_root, monkeypatch, tmp_path_factory):
    from lowrank_d2.data.datasets import register_all

    monkeypatch.setenv("DETECTRON2_DATASETS", str(mini_root))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    register_all()
    return mini_root
