"""Annotation files that are no json, or json of another format (rows 1 and 2)."""

import pytest

from lowrank_d2.data.annotation_file import load_json
from lowrank_d2.data.coco_json import read_coco
from lowrank_d2.errors import DataError


@pytest.mark.parametrize(
    "content, words",
    [
        (b'{"images": [\n 1,, 2]}', [":2:4", "Expecting value"]),
        (b'{"images": [{"id": 1}', ["incomplete download"]),
        (b'{"images": [{"id": "unterminated', ["incomplete download"]),
        ('{"images": []}'.encode("utf-16"), ["UTF-16"]),
        (b'{"name": "\xff"}', ["UTF-8", "0xff"]),
        (b"", ["empty (0 bytes)", "incomplete download"]),
        (b" <HTML><p>404", ["a web page"]),
        (b"0 0.5 0.5 0.2 0.25\n1 0.1 0.2 0.1 0.1\n", ["looks like YOLO"]),
        (b"<?xml version='1.0'?><annotation/>", ["XML"]),
    ],
)
def test_a_file_that_is_no_json(tmp_path, content, words):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        load_json(path)
    assert all(word in str(error.value) for word in words) and str(path) in str(error.value)


def test_a_byte_order_mark_is_accepted(own):
    own.save()
    own.json.write_bytes(b"\xef\xbb\xbf" + own.json.read_bytes())
    assert len(read_coco(own.json, own.images).records) == 4


@pytest.mark.parametrize(
    "content, words",
    [
        ([{"image_id": 1, "score": 0.5}], "a list"),
        ({"0.jpg123": {"filename": "0.jpg", "size": 123, "regions": []}}, "looks like VIA"),
        ({"shapes": [], "imagePath": "a.jpg", "version": "5"}, "looks like labelme"),
        ({"path": "x", "train": "y", "names": ["a"], "nc": 1}, "looks like YOLO"),
        ({"images": [], "annotations": []}, "'categories'"),
        ({"images": [], "annotations": [], "categories": []}, "nothing to train on"),
    ],
)
def test_another_format(own, content, words):
    own.content = content
    own.save()
    with pytest.raises(DataError, match=words):
        read_coco(own.json, own.images)


def test_a_missing_file_and_a_missing_folder(own, tmp_path):
    with pytest.raises(DataError, match="absent.json"):
        read_coco(tmp_path / "absent.json", own.images)
    own.save()
    with pytest.raises(DataError, match="No such file"):
        read_coco(own.json, tmp_path / "nowhere")
