"""What is wrong with a dataset, collected completely before anybody is told, then told once."""

import functools
import json
import logging
from dataclasses import asdict, dataclass, field
from typing import Iterator

from tabulate import tabulate

from lowrank_d2.errors import DataError

EXAMPLES = 3
LEVELS = ("error", "warning", "info")

logger = logging.getLogger(__name__)


@dataclass
class Problem:
    """One kind of problem with everything that shows it.

    Attributes:
        level: "error" (training would be wrong or crash), "warning" (records dropped or repaired) or "info" (harmless).
        kind: a short name, stable for scripts.
        what: one sentence.
        fix: one sentence; may be empty for "info".
        count: how often it was seen.
        examples: the first few places with the values seen there.
    """

    level: str
    kind: str
    what: str
    fix: str
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        if not self.examples:
            return f"{self.what} {self.fix}".rstrip()
        shown = "; ".join(self.examples)
        more = f"; and {self.count - len(self.examples)} more" if self.count > len(self.examples) else ""
        return f"{self.what} ({self.count}): {shown}{more}. {self.fix}".rstrip()


class Report:
    """Collects problems by kind. `subject` is the file or dataset that the report is about."""

    def __init__(self, subject: str = ""):
        self.subject = subject
        self._problems: dict[tuple[str, str], Problem] = {}

    def add(self, level: str, kind: str, where: str, what: str, fix: str = "", count: int = 1) -> None:
        """Notes one place; `what` and `fix` of the first call for a kind stand for all of it.

        An empty `where` is for a `what` that says by itself what is wrong, where and how to mend it.
        """
        problem = self._problems.setdefault((level, kind), Problem(level, kind, what, fix))
        problem.count += count
        if where and len(problem.examples) < EXAMPLES:
            problem.examples.append(where)

    def __iter__(self) -> Iterator[Problem]:
        return iter(sorted(self._problems.values(), key=lambda problem: LEVELS.index(problem.level)))

    def of(self, level: str) -> list[Problem]:
        return [problem for problem in self if problem.level == level]

    def __getitem__(self, kind: str) -> Problem:
        return next(problem for problem in self if problem.kind == kind)

    def __contains__(self, kind: str) -> bool:
        return any(problem.kind == kind for problem in self)

    def extend(self, other: "Report") -> None:
        """Adds everything that `other` holds."""
        for (level, kind), problem in other._problems.items():
            mine = self._problems.setdefault((level, kind), Problem(level, kind, problem.what, problem.fix))
            mine.count += problem.count
            mine.examples += problem.examples[: EXAMPLES - len(mine.examples)]

    def copy(self) -> "Report":
        twin = Report(self.subject)
        twin.extend(self)
        return twin

    def log_warnings(self) -> None:
        """Logs every warning, each text once a process however often its dataset is read."""
        for problem in self.of("warning"):
            _warn_once(self.subject, str(problem))

    def raise_errors(self) -> None:
        """Raises one DataError with all errors; does nothing without any."""
        errors = self.of("error")
        if errors:
            lines = "\n".join(f"  {problem}" for problem in errors)
            raise DataError(f"{self.subject} cannot be used:\n{lines}")

    def table(self) -> str:
        rows = [
            (
                problem.level,
                problem.count,
                _wrapped(problem.what),
                _wrapped("; ".join(problem.examples)),
                _wrapped(problem.fix),
            )
            for problem in self
        ]
        return tabulate(
            rows, headers=("level", "count", "what", "where", "fix"), tablefmt="simple_grid", disable_numparse=True
        )

    def as_json(self) -> str:
        return json.dumps(
            {"subject": self.subject, "problems": [asdict(problem) for problem in self]}, ensure_ascii=False
        )


@functools.lru_cache(maxsize=1024)
def _warn_once(subject: str, text: str) -> None:
    logger.warning("%s: %s", subject, text)


def _wrapped(text: str, width: int = 42) -> str:
    """Breaks a cell into lines; words longer than a line, such as paths, stay whole."""
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return "\n".join(lines + [line])
