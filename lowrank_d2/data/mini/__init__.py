"""Small generated trees in the exact on-disk formats of the datasets, for tests, the quickstart and the base model.

`build(root, name, ...)` makes `root` usable as $DETECTRON2_DATASETS. A tree is written beside its place and renamed
when it is complete; one that was already made with the same arguments is left alone; files of somebody else are never
touched.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Iterable, Iterator

from tqdm import tqdm

from lowrank_d2.data.mini import cityscapes, ndd20, source, wixray, zerowaste
from lowrank_d2.errors import ConfigError, OutputError
from lowrank_d2.files import write_json

DOMAINS: dict[str, ModuleType] = {
    "ndd20": ndd20,
    "zerowaste": zerowaste,
    "wixray": wixray,
    "cityscapes": cityscapes,
    "source": source,
}
MANIFEST = "make_mini.json"
FORMAT = 2  # raised when the pictures change, so that older trees are made anew


def build(root: Path, name: str, train: int = 200, val: int = 50, height: int | None = None, seed: int = 0) -> Path:
    """Makes `root`/`name` and returns it.

    Args:
        train, val: least number of pictures of the splits; the dataset's own split rule may ask for more.
        height: of the pictures, in pixels; None is the domain's own.
        seed: of all pictures together with their place in the tree.

    Raises:
        ConfigError: no such domain, or numbers that give no dataset.
        OutputError: `root`/`name` holds files that this function did not write, or cannot be written.
    """
    if name not in DOMAINS:
        raise ConfigError(f"There is no generated dataset {name!r}. Choose of {', '.join(DOMAINS)}.")
    domain = DOMAINS[name]
    height = domain.HEIGHT if height is None else height
    if train < 1 or val < 1 or height < 64 or height % 2:
        raise ConfigError(
            f"{train} train, {val} val pictures of height {height}: at least 1, 1 and an even 64 are needed."
        )
    wanted = {"format": FORMAT, "dataset": name, "train": train, "val": val, "height": height, "seed": seed}
    folder = Path(root) / name
    if _is_complete(folder, wanted):
        return folder
    try:
        Path(root).mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=root))
    except OSError as error:
        raise OutputError(f"{root} cannot be written: {error.strerror}. Choose another --output.") from error
    try:
        domain.write(staging, train, val, height, seed, _bar)
        write_json(staging / MANIFEST, {**wanted, "files": _listing(staging)})
        os.chmod(staging, 0o755)
        _replace(folder, staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _is_complete(folder: Path, wanted: dict) -> bool:
    """True when `folder` is what `wanted` asks for; False when it has to be made; raises when it is not ours."""
    if not folder.exists():
        return False
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        written = dict(manifest.pop("files"))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise OutputError(
            f"{folder} exists and was not made by make_mini.py ({MANIFEST} is missing or unreadable), "
            "so it is left as it is. Choose another --output."
        ) from error
    present = _listing(folder)
    strange = sorted(set(present) - set(written))
    if strange:
        raise OutputError(
            f"{folder} holds {len(strange)} files that make_mini.py did not write, such as {strange[0]}. "
            "Move them away or choose another --output."
        )
    return manifest == wanted and present == written


def _listing(folder: Path) -> dict[str, int]:
    """Size of every file by its path inside `folder`, the manifest excepted."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def _replace(folder: Path, staging: Path) -> None:
    """Puts `staging` in the place of `folder`, which is either absent or an older tree of ours."""
    if folder.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
        os.replace(folder, old / folder.name)
        os.replace(staging, folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(staging, folder)


def _bar(items: Iterable, text: str) -> Iterator:
    """A progress bar on terminals, silence in logs."""
    return iter(tqdm(items, desc=text, unit="image", file=sys.stderr, disable=None))
