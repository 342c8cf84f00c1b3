"""Annotation files before anything in them is believed: reading json, and telling COCO from other formats."""

import codecs
import json
import re
from pathlib import Path

from lowrank_d2.errors import DataError


def load_json(path: str | Path) -> object:
    """Reads a json file in UTF-8, with or without a byte order mark.

    Raises:
        DataError: missing, empty, a web page, in another encoding, cut off or no json; with line and column.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"The annotation file {path} cannot be read: {error.strerror}. Check the path.") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content[:4]:
        raise DataError(f"{path} is encoded in UTF-16 or UTF-32. Save it as UTF-8.")
    if not content.strip():
        raise DataError(f"{path} is empty ({len(content)} bytes): an incomplete download? Export or copy it again.")
    if content.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        raise DataError(f"{path} is a web page, not json: the download went wrong. Fetch the file itself.")
    try:
        text = content.decode("utf-8-sig")
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: byte {error.start} is {content[error.start]:#x}. Save it as UTF-8."
        ) from error
    except json.JSONDecodeError as error:
        guess = _other_text(text)
        if guess:
            raise DataError(f"{path} looks like {guess}, COCO expected. Export COCO instances, one json file.") from error
        context = text[max(error.pos - 20, 0) : error.pos + 20].replace("\n", " ")
        at_end = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
        fix = "The file ends too early: an incomplete download?" if at_end else "Mend it at this place."
        raise DataError(f"{path}:{error.lineno}:{error.colno}: {error.msg} near {context!r}. {fix}") from error
    except RecursionError as error:
        raise DataError(f"{path} is nested too deeply for an annotation file. COCO instances are expected.") from error


def coco_content(content: object, path: Path) -> dict:
    """The file as a mapping with COCO's three lists; raises DataError with a guess of what it is instead."""
    if not isinstance(content, dict):
        kind = "a list (results of a detector?)" if isinstance(content, list) else f"only {json.dumps(content)[:40]}"
        raise DataError(f"{path} holds {kind}; a COCO file is an object with images, annotations and categories.")
    missing = [key for key in ("images", "annotations", "categories") if not isinstance(content.get(key), list)]
    if missing:
        guess = _other_format(content)
        looks = f"looks like {guess}, COCO expected" if guess else f"has no list {', '.join(map(repr, missing))}"
        raise DataError(f"{path} {looks}. Export COCO instances: images, annotations, categories.")
    if not content["images"]:
        raise DataError(f"{path} lists no images: nothing to train on. Take a file with images.")
    return content


def _other_text(text: str) -> str | None:
    """What a file that is no json may be: YOLO's labels (class and numbers, a line an object), or an XML format."""
    first = text.lstrip().splitlines()[0].split()
    if text.lstrip().startswith(("<?xml", "<annotation")):
        return "XML (Pascal VOC, CVAT)"
    if len(first) >= 5 and first[0].isdigit() and all(re.fullmatch(r"-?\d*\.?\d+(e-?\d+)?", word) for word in first[1:]):
        return "YOLO"
    return None


def _other_format(content: dict) -> str | None:
    values = [value for value in content.values() if isinstance(value, dict)]
    if "_via_img_metadata" in content or any("regions" in value for value in values[:3]):
        return "VIA"
    if "shapes" in content and "imagePath" in content:
        return "labelme"
    if {"path", "train", "nc"} & set(content) and "names" in content:
        return "YOLO"
    return None
