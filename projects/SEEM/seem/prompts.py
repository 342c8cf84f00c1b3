"""From the names of classes to token ids: cleaned words in the sentences of a template set."""
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lowrank_d2.errors import ConfigError
from seem.tokenizer import Tokenizer, cleaned, split_words

TEMPLATES = Path(__file__).resolve().parent / "templates"
BACKGROUND = "background"
_WHERE = ": in MODEL.SEEM.CLASS_PROMPTS, or in --classes of tools/predict.py."


def read_templates(name: str) -> list[str]:
    """The sentences of a set, one a line of seem/templates/<name>.txt, each with {} for the class.

    Raises:
        ConfigError: there is no such set.
    """
    sets = {path.stem: path for path in TEMPLATES.glob("*.txt")}
    if name not in sets:
        raise ConfigError(
            f"MODEL.SEEM.TEXT.TEMPLATES is {name!r}. Use one of {', '.join(map(repr, sorted(sets)))}, or add "
            f"{name}.txt to {TEMPLATES}."
        )
    return sets[name].read_text(encoding="utf-8").splitlines()


def words_of(name: str) -> str:
    """What the text encoder reads for a class: without COCO's "-other", "-merged" and "-stuff", as in the original."""
    return re.sub("-other|-merged|-stuff", "", name)


def check_distinct(names: Sequence[str]) -> None:
    """Looks for classes that no words can tell apart, from each other or from what is no object.

    Raises:
        ConfigError: a class that is no text or without words, or two that read the same; the message names them.
    """
    seen: dict[str, str] = {}
    for name in names:
        if not isinstance(name, str):
            raise ConfigError(f"The class {name!r} is no text. Write it in quotes{_WHERE}")
        words = " ".join(split_words(cleaned(words_of(name))))
        if not words:
            raise ConfigError(f"The class {name!r} has no words. Give it some{_WHERE}")
        if words == BACKGROUND:
            raise ConfigError(f"The class {name!r} reads as what is no object does. Give it other words{_WHERE}")
        if words in seen:
            raise ConfigError(
                f"The classes {seen[words]!r} and {name!r} have the same words, {words!r}, so that nothing tells them "
                f"apart. Give them different ones{_WHERE}"
            )
        seen[words] = name


def tokenize(names: Sequence[str], templates: Sequence[str], tokenizer: Tokenizer, length: int) -> Tensor:
    """Every class, and "background" as the last one, in every template.

    Args:
        length: of the context: tokens of a text, start and end among them.

    Returns:
        (K + 1, T, length) int64; what is behind the end repeats its token.

    Raises:
        ConfigError: a class whose words are too long; the message names it.
    """
    result = torch.full((len(names) + 1, len(templates), length), tokenizer.end)
    for row, name in enumerate([*names, BACKGROUND]):
        for column, template in enumerate(templates):
            ids = [tokenizer.start, *tokenizer.encode(template.format(words_of(name))), tokenizer.end]
            if len(ids) > length:
                raise ConfigError(
                    f"The class {name!r} is too long: in the sentence {template!r} it makes {len(ids)} tokens, start and "
                    f"end among them, and the text encoder reads {length}. Shorten it{_WHERE}"
                )
            result[row, column, : len(ids)] = torch.tensor(ids)
    return result
