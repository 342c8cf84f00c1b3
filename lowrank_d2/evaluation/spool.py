"""Predictions on disk instead of in memory, from when an image was predicted until all are judged."""

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import BinaryIO, Iterator

from detectron2.utils import comm

from lowrank_d2.errors import OutputError
from lowrank_d2.files import PathLike, explain, replacing

_PIECE = 4 * 2**20  # bytes that one process sends to another at once


class Spool:
    """The results of many images in a nameless file, a line of JSON each; what stays in memory is the images' ids.

    The file is made by the first `add` and goes with the object, also when the process is killed. All methods but
    `add` and `images` raise OutputError, as `add` does, when the disk is full or the folder cannot be written.
    """

    def __init__(self, folder: PathLike | None = None):
        """
        Args:
            folder: where the file lies, made if need be; None: the system's folder of temporary files.
        """
        self._folder = folder
        self._clear()

    @property
    def images(self) -> list[int | str]:
        """The ids of the images in the order of `add`."""
        return self._images

    def add(self, image_id: int | str, results: list[dict]) -> None:
        """Keeps `results`, JSON objects, of an image; an empty list makes the image known."""
        with self._explained():
            self._stream().write(json.dumps(results).encode() + b"\n")
        self._images.append(image_id)

    def gather(self) -> None:
        """Moves everything to the main process, in the order of processes; each has to call this.

        Travels in pieces, so that no process ever holds more than a few megabytes of it.
        """
        parts = comm.all_gather((self._images, self._size()))
        for sender, (images, size) in enumerate(parts[1:], start=1):
            for start in range(0, size, _PIECE):
                pieces = comm.gather(self._read(start, _PIECE) if comm.get_rank() == sender else b"")
                if comm.is_main_process():
                    self._append(pieces[sender])
            if comm.is_main_process():
                self._images.extend(images)
        if not comm.is_main_process():
            self._clear()

    def write(self, path: PathLike) -> None:
        """Writes one JSON list of all results, atomically."""
        with replacing(path) as temporary, open(temporary, "wb") as target:
            parts = (line[1:-2] for line in self._lines() if line != b"[]\n")
            target.write(b"[" + next(parts, b""))
            for part in parts:
                target.write(b", " + part)
            target.write(b"]")

    def index(self) -> dict[int | str, list[int]]:
        """Where the results of each image begin, for `results_at`; several places if it was predicted several times."""
        places: dict[int | str, list[int]] = {}
        start = 0
        for image_id, line in zip(self._images, self._lines()):
            places.setdefault(image_id, []).append(start)
            start += len(line)
        return places

    def results_at(self, place: int) -> list[dict]:
        with self._explained():
            stream = self._stream()
            stream.seek(place)
            return json.loads(stream.readline())

    def _clear(self) -> None:
        self._images: list[int | str] = []
        self._file: BinaryIO | None = None

    def _stream(self) -> BinaryIO:
        if self._file is None:
            if self._folder is not None:
                os.makedirs(self._folder, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self._folder)
        return self._file

    def _size(self) -> int:
        with self._explained():
            return self._stream().seek(0, os.SEEK_END) if self._images else 0

    def _read(self, start: int, count: int) -> bytes:
        with self._explained():
            self._stream().seek(start)
            return self._stream().read(count)

    def _append(self, piece: bytes) -> None:
        with self._explained():
            self._stream().seek(0, os.SEEK_END)
            self._stream().write(piece)

    def _lines(self) -> Iterator[bytes]:
        if self._images:
            with self._explained():
                self._stream().seek(0)
                for line in self._stream():  # not "yield from", which would close the file with the generator
                    yield line

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(explain(error, Path(self._folder or tempfile.gettempdir()))) from error
