"""Reading configuration files safely: yaml (with `_BASE_`) and .py files, every value with the line it stands on."""
import os
import runpy
from typing import Any, Iterator, List, NamedTuple, Sequence, Tuple

import yaml
from detectron2.utils.file_io import PathManager

from lowrank_d2.errors import ConfigError

FILE_ENDINGS = (".yaml", ".yml", ".py")
_BASE = "_BASE_"


class Setting(NamedTuple):
    """One value that somebody wrote: the full dotted key, the value, and where it stands (`file:line`)."""

    key: str
    value: Any
    where: str


class _Loader(yaml.SafeLoader):
    """Plain yaml and tuples (old Detectron2 dumps have them); every other tag is refused, nothing is ever executed."""


_Loader.add_constructor(
    "tag:yaml.org,2002:python/tuple", lambda loader, node: tuple(loader.construct_sequence(node, deep=True))
)


def read_settings(path: str) -> List[Setting]:
    """All settings of a file and, before them, of the files it is based on; later ones win.

    Raises:
        ConfigError: missing file, circular `_BASE_`, bad syntax, a tag that would run code, a key given twice.
    """
    return list(_read(os.fspath(path), ()))


def settings_of_words(words: Sequence[str]) -> List[Setting]:
    """`KEY VALUE KEY VALUE ...` of a command line as settings.

    Raises:
        ConfigError: an option stands behind the first KEY, or the last KEY has no value.
    """
    late = [word for word in words[::2] if word.startswith("-")]
    if late:
        raise ConfigError(f"{late[0]} stands after KEY VALUE pairs, where only more pairs may stand. Move it before them.")
    if len(words) % 2:
        raise ConfigError(
            f"{words[-1]!r} has no value: what follows the options must be pairs KEY VALUE. "
            "Files of --config-file end in .yaml, .yml or .py."
        )
    return [Setting(key, value, "command line") for key, value in zip(words[::2], words[1::2])]


def _read(path: str, chain: Tuple[str, ...]) -> Iterator[Setting]:
    if path in chain:
        raise ConfigError(f"_BASE_ goes in a circle: {' -> '.join(chain + (path,))}. Remove one of them.")
    if path.endswith(".py"):
        yield from _flatten(_mapping_of_script(path), "", path)
        return
    values, lines = _parse(path, chain)
    bases = values.pop(_BASE, [])
    for base in [bases] if isinstance(bases, str) else bases:
        yield from _read(_beside(path, base), chain + (path,))
    for setting in _flatten(values, "", path):
        yield setting._replace(where=f"{path}:{lines.get(setting.key, 1)}")


def _parse(path: str, chain: Tuple[str, ...]) -> Tuple[dict, dict]:
    """The mapping of a yaml file and, for every dotted key, its line."""
    try:
        with PathManager.open(path, "r") as stream:
            loader = _Loader(stream.read())
    except (OSError, UnicodeDecodeError) as error:
        origin = f" (named by _BASE_ of {chain[-1]})" if chain else ""
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"The configuration file {path}{origin} cannot be read: {reason}. Check the path.") from error
    try:
        node = loader.get_single_node()
        lines = {}
        if isinstance(node, yaml.MappingNode):
            _note_lines(node, "", lines, path)
        values = {} if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else path
        raise ConfigError(
            f"{place}: {getattr(error, 'problem', None) or error}. Configuration files hold plain yaml values only."
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}, not sections of keys (MODEL: ..., SOLVER: ...).")
    return values, lines


def _note_lines(node: yaml.MappingNode, prefix: str, lines: dict, path: str) -> None:
    seen = {}
    for key_node, value_node in node.value:
        name, line = str(key_node.value), key_node.start_mark.line + 1
        if name in seen and name != "<<":
            raise ConfigError(f"{path}:{line}: the key {prefix}{name} stands already on line {seen[name]}. Keep one.")
        seen[name] = lines[prefix + name] = line
        if isinstance(value_node, yaml.MappingNode):
            _note_lines(value_node, f"{prefix}{name}.", lines, path)


def _flatten(values: dict, prefix: str, where: str) -> Iterator[Setting]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.", where)
        else:
            yield Setting(f"{prefix}{name}", value, where)


def _beside(path: str, base: str) -> str:
    """`base` as seen from the file `path`: as it is when absolute, in the home folder or an address."""
    if not isinstance(base, str):
        raise ConfigError(f"{path}: _BASE_ must be a path or a list of paths, not {base!r}.")
    if base.startswith("~"):
        return os.path.expanduser(base)
    if base.startswith("/") or "://" in base:
        return base
    return os.path.normpath(os.path.join(os.path.dirname(path), base)) if "://" not in path else (
        f"{path.rsplit('/', 1)[0]}/{base}"
    )


def _mapping_of_script(path: str) -> dict:
    """The mapping named `cfg` that a .py file defines (yacs' convention)."""
    try:
        found = runpy.run_path(PathManager.get_local_path(path))
    except (OSError, SyntaxError) as error:
        raise ConfigError(f"The configuration file {path} cannot be read: {error}. Check the path.") from error
    if not isinstance(found.get("cfg"), dict):
        raise ConfigError(f"{path} defines no mapping named cfg. Write cfg = dict(MODEL=dict(...), ...) in it.")
    return found["cfg"]
