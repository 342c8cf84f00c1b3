"""Image files as they lie on the disk: finding the one that a record means, reading headers, reading pixels."""

import contextlib
import difflib
import functools
import logging
import os
import re
import stat
import unicodedata
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator
from urllib.parse import unquote

import numpy as np
from PIL import Image, ImageOps

from lowrank_d2.errors import DataError

MAX_PIXELS = 178_956_970  # above this Pillow suspects a decompression bomb
EXIF_CHOICES = ("apply", "ignore")
HINTED_FILES = 20_000  # among which a missing name is searched for a hint
_ORIENTATION = 0x0112
_SWAPPING = (5, 6, 7, 8)  # orientations that exchange width and height
_HASH_PREFIX = re.compile(r"^[0-9a-f]{8}-(?=.)")  # Label Studio puts one before uploaded names

logger = logging.getLogger(__name__)


class BadImage(ValueError):
    """An image file that cannot be used. `kind` names the reason as in `Report`."""

    def __init__(self, kind: str, text: str):
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True)
class Header:
    """What a file says of itself without being decoded; `width` and `height` are those of the stored pixels."""

    width: int
    height: int
    mode: str
    orientation: int

    def size(self, exif: str) -> tuple[int, int]:
        """(width, height) as the image is used: `exif` "apply" turns it upright, "ignore" leaves it as stored."""
        if exif == "apply" and self.orientation in _SWAPPING:
            return self.height, self.width
        return self.width, self.height


class ImageFolder:
    """Finds files below one folder by the names that annotation tools write.

    Raises:
        DataError: the folder does not exist or cannot be read.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder).expanduser()
        try:
            os.scandir(self.folder).close()
        except OSError as error:
            raise DataError(
                f"The image folder {self.folder} cannot be read: {error.strerror}. "
                "Name the folder that holds the images."
            ) from error
        self._real = os.path.realpath(self.folder) + os.sep

    def find(self, file_name: str) -> tuple[str, bool]:
        """The path of the image that `file_name` means, and whether it stands exactly there.

        Raises:
            BadImage: "outside" for a path that leaves the folder, "missing" when there is no such file.
        """
        if not isinstance(file_name, str) or not file_name or "\0" in file_name:
            raise BadImage("outside", f"file_name {file_name!r} is not a path")
        given = file_name.replace("\\", "/") if "\\" in file_name and "/" not in file_name else file_name
        self._refuse_outside(given, file_name)
        for name in _readings(given):
            path = os.path.join(self.folder, name)
            if os.path.lexists(path):
                real = os.path.realpath(path)
                if not real.startswith(self._real):
                    raise BadImage("outside", f"{file_name} leads to {real}, out of the folder")
                return path, name == file_name
        raise BadImage("missing", f"{file_name}{self._hint(given)}")

    def _refuse_outside(self, given: str, file_name: str) -> None:
        path = os.path.normpath(os.path.join(self.folder, given))
        inside = os.path.normpath(self.folder) + os.sep
        if not path.startswith(inside) and not os.path.realpath(path).startswith(self._real):
            raise BadImage("outside", f"{file_name} lies outside of {self.folder}")

    def _hint(self, given: str) -> str:
        base = os.path.basename(given)
        if base in self._below:
            return f" (there is {self._below[base]})"
        same = [path for name, path in self._below.items() if name.lower() == base.lower()]
        if same:
            return f" (there is {same[0]}: upper and lower case differ)"
        near = difflib.get_close_matches(base, list(self._below)[:2000], 1, 0.8)
        return f" (near: {self._below[near[0]]})" if near else ""

    @functools.cached_property
    def _below(self) -> dict[str, str]:
        """Path inside the folder by name, of the first many files at any depth; shallow ones win."""
        found: dict[str, str] = {}
        for folder, folders, names in os.walk(self.folder):
            folders.sort()
            for name in sorted(names):
                found.setdefault(name, os.path.relpath(os.path.join(folder, name), self.folder))
            if len(found) > HINTED_FILES:
                break
        return found


def _readings(name: str) -> Iterator[str]:
    """Ways to read a name, from literal to liberal, each once."""
    decoded = unquote(name)
    base, decoded_base = os.path.basename(name), os.path.basename(decoded)
    readings = [name, decoded, base, decoded_base, _HASH_PREFIX.sub("", decoded_base)]
    # One file system keeps an accented letter whole, another splits it in two characters.
    forms = [unicodedata.normalize(form, reading) for form in ("NFC", "NFD") for reading in readings]
    yield from dict.fromkeys(readings + forms)


def read_header(path: str, max_pixels: int = MAX_PIXELS, decode: bool = False) -> Header:
    """Reads the header of an image file; decodes it only when its end marker is missing, or with `decode`.

    Raises:
        BadImage: no regular file, empty, no image, cut off, or above `max_pixels`.
    """
    _check_regular(path)
    try:
        with _pillow(path) as image:
            header = Header(*image.size, image.mode, _orientation(image))
            if header.width * header.height > max_pixels:
                raise BadImage(
                    "too-large", f"{path} has {header.width} x {header.height} pixels, the limit is {max_pixels}"
                )
            if decode or not _has_end(path, image.format):
                image.load()
    except BadImage:
        raise
    except FileNotFoundError as error:
        raise BadImage("missing", path) from error
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        raise BadImage("unreadable", f"{path}: {_reason(path, error)}") from error
    return header


def read_image(path: str, *, exif: str = "apply", smallest: tuple[int, int] | None = None) -> np.ndarray:
    """Reads an image as RGB (H, W, 3), uint8.

    16-bit and float images are scaled by their own range, with a warning. Palettes, grey, 1-bit, CMYK and RGBA are
    converted; alpha is dropped.

    Args:
        exif: "apply" turns the image upright, "ignore" keeps the stored pixels.
        smallest: (height, width) that suffice; a JPEG may come 2, 4 or 8 times smaller, never below this. The caller
            has to look at the shape of the result.

    Raises:
        DataError: the file cannot be decoded.
    """
    try:
        _check_regular(path)
        with _pillow(path) as image:
            if smallest is not None and image.format == "JPEG":
                turned = _orientation(image) in _SWAPPING and exif == "apply"
                image.draft(None, (max(smallest), max(smallest)) if turned else (smallest[1], smallest[0]))
            if exif == "apply":
                image = ImageOps.exif_transpose(image)
            return _as_rgb(image, path)
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise DataError(
            f"The image {path} cannot be decoded: {_reason(path, error)}. "
            "Replace it; tools/check_dataset.py --decode finds others."
        ) from error


@contextlib.contextmanager
def _pillow(path: str) -> Iterator[Image.Image]:
    """Opens an image without Pillow's own size limit: `read_header` has judged the size before anything is decoded."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                yield image
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _check_regular(path: str) -> None:
    """Refuses folders, pipes and devices before they are opened, because opening a pipe can wait for ever."""
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        raise BadImage("missing", path) from error
    except OSError as error:
        raise BadImage("unreadable", f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise BadImage("not-a-file", f"{path} is not a regular file")
    if status.st_size == 0:
        raise BadImage("unreadable", f"{path} is empty (0 bytes)")


def _orientation(image: Image.Image) -> int:
    if image.format != "TIFF" and "exif" not in image.info:  # Pillow would decode a PNG to look behind its pixels
        return 1
    return int(image.getexif().get(_ORIENTATION) or 1)


def _has_end(path: str, kind: str | None) -> bool:
    """Whether the file ends as its format does; formats without a marker count as ending."""
    markers = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}
    if kind not in markers:
        return True
    with open(path, "rb") as stream:
        stream.seek(0, os.SEEK_END)
        stream.seek(max(stream.tell() - 64, 0))
        return markers[kind] in stream.read()


def _reason(path: str, error: Exception) -> str:
    with contextlib.suppress(OSError), open(path, "rb") as stream:
        start = stream.read(64).lstrip().lower()
        if start.startswith((b"<!doctype", b"<html")):
            return "it is an HTML page (a failed download?)"
    return "no image format that is known" if isinstance(error, Image.UnidentifiedImageError) else str(error)


def _as_rgb(image: Image.Image, path: str) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":
        pixels = np.asarray(image, dtype=np.float64)
        low, high = float(np.nanmin(pixels)), float(np.nanmax(pixels))
        _warn_scaled(os.path.dirname(path), image.mode)
        grey = np.nan_to_num((pixels - low) / max(high - low, 1e-12) * 255).round().astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


@functools.lru_cache(maxsize=64)
def _warn_scaled(folder: str, mode: str) -> None:
    """Says once for a folder that its images are deep."""
    logger.warning("%s holds images of mode %s; each is scaled from its own range to 0..255.", folder, mode)
