"""Reports: counted, shown once, added up."""

import json

import pytest

from lowrank_d2.data.coco_json import read_coco
from lowrank_d2.data.problems import Report
from lowrank_d2.errors import DataError


def test_the_report_shows_three_examples_and_the_count(own):
    for annotation in own.annotations:
        annotation["category_id"] = 9
    own.save()
    data = read_coco(own.json, own.images)
    with pytest.raises(DataError, match=r"\(4\): .*; and 1 more"):
        data.report.raise_errors()
    rows = json.loads(data.report.as_json())["problems"]
    assert rows[0]["count"] == 4 and len(rows[0]["examples"]) == 3 and rows[0]["level"] == "error"
    assert "unknown" not in data.report.table() and "category_id 9" in data.report.table()


def test_reports_add_up():
    first, second = Report("a"), Report("b")
    for number in range(5):
        second.add("warning", "odd", f"place {number}", "what", "fix")
    first.extend(second)
    first.extend(second)
    assert first["odd"].count == 10 and len(first["odd"].examples) == 3
