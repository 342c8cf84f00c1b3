"""How the tests of damage look at an `own` dataset: one problem, of one kind, with its words."""

import numpy as np
from pycocotools import mask as coco_mask

from lowrank_d2.data.check import check_json


def check(own, **options):
    own.save()
    return check_json(own.json, own.images, **options)


def problem(own, kind, **options):
    """The problem of `kind`, which must be the only error or warning."""
    report = check(own, **options).report
    assert [found.kind for found in report if found.level != "info"] == [kind], report.table()
    return report[kind]


def error_of(own, kind, **options):
    found = problem(own, kind, **options)
    assert found.level == "error" and found.fix
    return str(found)


def dropped(own, kind):
    """The dataset stays usable with one object less."""
    data = check(own)
    assert data.report[kind].level == "warning" and data.report[kind].count == 1
    assert sum(len(record["annotations"]) for record in data.records) == 3
    return str(data.report[kind])


def square_rle(height=32, width=48):
    mask = np.zeros((height, width), np.uint8)
    mask[8:18, 10:20] = 1
    encoded = coco_mask.encode(np.asfortranarray(mask))
    return {"size": [height, width], "counts": encoded["counts"].decode()}, mask
