"""Checkpoints of other programs: names by rules, and what a state dict must bring to be loaded.

A rule is a pair of templates. In them {n} and {i} stand for numbers, {x} for weight or bias, {q} for q, k or v, {name}
for one word, and {module} for one or more with dots between.
"""
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Optional

import torch
from torch import Tensor

from lowrank_d2.errors import CheckpointError

Shapes = Mapping[str, Sequence[int]]
Rules = Sequence[tuple[re.Pattern[str], str]]

_WORDS = {"n": r"\d+", "i": r"\d+", "x": "weight|bias", "q": "[qkv]", "name": "[a-z_]+", "module": r"[\w.]+"}
_OPEN = {word: f"{{{word}}}" for word in _WORDS}


def one_way(pairs: Iterable[tuple[str, str]]) -> Rules:
    """(given, wanted) templates, made ready for `renamed`."""
    return tuple((_pattern(given), wanted) for given, wanted in pairs)


def both_ways(pairs: Sequence[tuple[str, str]]) -> tuple[Rules, Rules]:
    """(ours, theirs) templates, made ready for `renamed`: from our names to theirs, and from theirs to ours."""
    return one_way(pairs), one_way((theirs, ours) for ours, theirs in pairs)


def renamed(name: str, rules: Rules) -> Optional[str]:
    """The name by the first rule that fits the whole of it, or None.

    A word that stands only in the wanted template stays in braces, for `str.format`.
    """
    for pattern, wanted in rules:
        if match := pattern.fullmatch(name):
            return wanted.format_map(_OPEN | match.groupdict())
    return None


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\{(\w+)\\}", lambda match: f"(?P<{match[1]}>{_WORDS[match[1]]})", re.escape(template)))


# torchvision's names of a ResNet -> Detectron2's; layer1 is res2.
RESNET = one_way((
    ("conv1.{module}", "stem.conv1.{module}"),
    ("bn1.{module}", "stem.conv1.norm.{module}"),
    *(
        (f"layer{stage}.{{n}}.{theirs}.{{module}}", f"res{stage + 1}.{{n}}.{ours}.{{module}}")
        for stage in (1, 2, 3, 4)
        for theirs, ours in (
            ("conv{i}", "conv{i}"),
            ("bn{i}", "conv{i}.norm"),
            ("downsample.0", "shortcut"),
            ("downsample.1", "shortcut.norm"),
        )
    ),
))
# Tensors of a backbone that the files of classifiers need not have, or that are computed anyway.
OPTIONAL = re.compile(r"backbone\.(norm\d\.(weight|bias)|.*\.(relative_position_index|num_batches_tracked))")


def same_values(a: Tensor, b: Tensor) -> bool:
    """Whether two copies of a shared tensor agree, as far as they have values (on the meta device none has)."""
    return a is b or (a.shape == b.shape and (a.is_meta or b.is_meta or torch.equal(a, b)))


def joined(
    thirds: Mapping[str, Mapping[str, Tensor]], order: Sequence[str], complaint: Callable[[str, Iterable[str]], str]
) -> dict[str, Tensor]:
    """Projections that others keep in one matrix.

    Args:
        thirds: name of the packed tensor -> its pieces by their letters.
        order: the letters from top to bottom.
        complaint: what to say of a packed tensor and the letters it has, where they are not all.

    Raises:
        CheckpointError: a piece is missing.
    """
    for name, pieces in thirds.items():
        if len(pieces) < len(order):
            raise CheckpointError(complaint(name, pieces))
    return {name: torch.cat([pieces[letter] for letter in order]) for name, pieces in thirds.items()}


def listing(items: Iterable[str], limit: int = 8) -> str:
    """The first items, and how many more there are."""
    items = list(items)
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def check_any_match(tensors: Mapping[str, Tensor], expected: Shapes, model: str, advice: str) -> None:
    """Raises CheckpointError for a state dict without a single tensor of the model."""
    if not expected.keys() & tensors.keys():
        first = next(iter(tensors), "missing")
        raise CheckpointError(
            f"None of the {len(tensors)} tensors of the checkpoint belongs to {model} (the first is {first}). {advice}"
        )


def drop_other_shapes(tensors: dict[str, Tensor], expected: Shapes, may_differ: Callable[[str], Any]) -> dict[str, str]:
    """Takes class-dependent tensors of other shapes than the model's out of a state dict, in place.

    Args:
        may_differ: true for the name of a class-dependent tensor.

    Returns:
        the others of other shapes, which must not be loaded: name -> "(3,) instead of (4,)".
    """
    fatal = {}
    for name, shape in expected.items():
        if name in tensors and tensors[name].shape != tuple(shape):
            if may_differ(name):
                del tensors[name]
            else:
                fatal[name] = f"{tuple(tensors[name].shape)} instead of {tuple(shape)}"
    return fatal


def missing_by_part(
    tensors: Mapping[str, Tensor], expected: Shapes, parts: Iterable[str]
) -> Iterator[tuple[str, list[str], bool]]:
    """Each part of the model, the names of its tensors that a state dict lacks, and whether these are all it has."""
    for part in parts:
        names = [name for name in expected if name.startswith(part + ".")]
        missing = [name for name in names if name not in tensors]
        yield part, missing, 0 < len(names) == len(missing)


def check_complete(part: str, missing: Sequence[str], limit: int = 8) -> None:
    """Raises CheckpointError for a part, in words, of which tensors are missing."""
    if missing:
        raise CheckpointError(
            f"The checkpoint has only a part of the {part}: missing are {listing(missing, limit)}. "
            "Load a complete checkpoint; files with tuned tensors alone belong into MODEL.PEFT.DELTA."
        )


def warn_initialised(logger: logging.Logger, absent: str = "", anew: Sequence[str] = ()) -> None:
    """Says which parts, in words, and which class-dependent tensors keep their initialisation, if any do."""
    if absent:
        logger.warning("The checkpoint has no %s: it keeps its initialisation.", absent)
    if anew:
        logger.warning("Initialised anew, because the checkpoint has other classes: %s", ", ".join(anew))
