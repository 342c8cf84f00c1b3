"""Categories of one file as the classes of another: matched by name, because ids mean nothing between files."""
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Mapping, Sequence


@dataclass(frozen=True)
class Match:
    """What stands for what.

    Attributes:
        index_of: class index by category id.
        missing: classes that no category stands for.
        extra: names of categories that are no class.
        alike: names that could be several classes, or share one with another name.
    """

    index_of: dict[int, int]
    missing: list[str]
    extra: list[str]
    alike: list[str]


def match_names(names: Mapping[int, str], classes: Sequence[str]) -> Match:
    """Matches category `names` by id with `classes`: exactly where possible, else case and punctuation apart."""
    written = set(names.values())
    exact, loose = defaultdict(list), defaultdict(list)
    for index, name in enumerate(classes):
        exact[name].append(index)
        if name not in written:
            loose[_folded(name)].append(index)
    index_of: dict[int, int] = {}
    matched: dict[int, str] = {}
    extra, alike = [], []
    for key, name in names.items():
        found = exact.get(name) or loose.get(_folded(name), [])
        if not found:
            extra.append(name)
        elif len(found) > 1 or matched.setdefault(found[0], name) != name:
            alike.append(name)
        else:
            index_of[key] = found[0]
    missing = [name for index, name in enumerate(classes) if index not in matched and name not in alike]
    return Match(index_of, missing, extra, alike)


def _folded(name: str) -> str:
    return re.sub(r"\W|_", "", name).lower()
