"""Images that are missing, damaged, no files at all or out of the folder (rows 6 to 8, 44, 45)."""

import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from tests.data.damage import check, error_of


def test_a_missing_image_names_what_is_near(own):
    os.rename(own.images / "2.png", own.images / "2.PNG")
    text = error_of(own, "missing-image")
    assert "2.png" in text and "2.PNG" in text and str(own.images) in text and "--skip-missing" in text
    data = check(own, skip_missing=True)
    assert len(data.records) == 3 and data.report["missing-image"].level == "warning"


def test_a_missing_image_that_lies_deeper_is_named_with_its_folder(own):
    (own.images / "sub" / "deep").mkdir(parents=True)
    (own.images / "2.png").rename(own.images / "sub" / "deep" / "2.png")
    assert "images[1]: 2.png (there is sub/deep/2.png)" in error_of(own, "missing-image")


@pytest.mark.parametrize("written, stored", [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_may_be_composed_or_decomposed(own, written, stored):
    (own.images / "2.png").rename(own.images / unicodedata.normalize(stored, "größe.png"))
    own.content["images"][1]["file_name"] = unicodedata.normalize(written, "größe.png")
    data = check(own)
    assert [found.kind for found in data.report] == ["file-name"] and len(data.records) == 4


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_image(own, suffix):
    pixels = np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(own.images / f"cut.{suffix}")
    whole = (own.images / f"cut.{suffix}").read_bytes()
    own.content["images"][0]["file_name"] = f"cut.{suffix}"
    assert list(check(own).report) == []
    (own.images / f"cut.{suffix}").write_bytes(whole[: len(whole) // 2])
    assert f"cut.{suffix}" in error_of(own, "unreadable-image")


def test_damage_in_the_middle_is_found_by_decoding(own):
    path = own.images / "2.png"
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 8] ^= 0xFF
    path.write_bytes(content)
    assert list(check(own).report) == []
    assert "2.png" in error_of(own, "unreadable-image", decode=True)


@pytest.mark.parametrize(
    "content, word", [(b"", "0 bytes"), (b"<!DOCTYPE html><html>", "HTML"), (b"hello", "no image format")]
)
def test_files_that_are_no_images(own, content, word):
    (own.images / "2.png").write_bytes(content)
    assert word in error_of(own, "unreadable-image")


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_paths_that_are_no_files_do_not_block(own, make):
    (own.images / "2.png").unlink()
    make(own.images / "2.png")
    assert "not a regular file" in error_of(own, "not-a-file-image")


def test_an_image_bomb_is_refused_from_its_header(own):
    assert "48 x 32" in error_of(own, "too-large-image", max_pixels=1000)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a\0b.png", "images/../../secret.png", ""])
def test_file_names_that_leave_the_folder(own, name):
    Image.new("RGB", (48, 32)).save(own.images.parent / "secret.png")
    own.content["images"][1]["file_name"] = name
    own.annotations.pop(1)
    found = check(own).report["outside-folder"]
    assert found.level == "error" and (name.replace("\0", "\\x00") in str(found))


def test_a_symbolic_link_out_of_the_folder(own):
    secret = own.images.parent / "secret.png"
    Image.new("RGB", (48, 32)).save(secret)
    (own.images / "2.png").unlink()
    (own.images / "2.png").symlink_to(secret)
    assert str(secret) in error_of(own, "outside-folder")


@pytest.mark.parametrize("name", ["images/2.png", "images\\2.png", "0a1b2c3d-2.png", "upload/0a1b2c3d-2.png"])
def test_names_as_other_tools_write_them(own, name):
    own.content["images"][1]["file_name"] = name
    data = check(own)
    assert [found.kind for found in data.report] == ["file-name"]
    assert os.path.samefile(data.records[1]["file_name"], own.images / "2.png")


def test_encoded_and_absolute_names_are_found(own):
    os.rename(own.images / "2.png", own.images / "zwei äöü.png")
    own.content["images"][0]["file_name"] = "./1.png"
    own.content["images"][1]["file_name"] = "zwei%20%C3%A4%C3%B6%C3%BC.png"
    own.content["images"][2]["file_name"] = str(own.images / "3.png")
    data = check(own)
    assert data.records[1]["file_name"].endswith("zwei äöü.png") and not data.report.of("error")


def test_two_names_of_one_file(own):
    own.content["images"][1]["file_name"] = "a/1.png"
    own.content["images"][2]["file_name"] = "b/1.png"
    assert "a/1.png" in error_of(own, "ambiguous-file") and "b/1.png" in error_of(own, "ambiguous-file")
