"""The house rules that a machine can check: which way imports look, and what each room may import at all."""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A room may import the rooms listed beside it (and itself). Everything below a package belongs to its first name.
ALLOWED = {
    "errors": set(),
    "files": {"errors"},
    "config": {"errors", "files"},
    "layers": {"errors", "files"},
    "peft": {"errors", "files", "layers"},
    "modeling": {"errors", "files", "config", "layers", "peft"},
    "data": {"errors", "files", "config", "layers"},
    "evaluation": {"errors", "files", "config", "layers"},
    "engine": {"errors", "files", "config", "layers", "peft", "modeling", "data", "evaluation", "env"},
    "env": {"errors", "files", "config", "layers"},
    "__init__": {"errors", "config", "modeling", "data"},
}
PURE_TORCH = {"errors", "files", "layers", "peft"}


def imports_of(path: Path) -> set[str]:
    """Dotted names of every module that the file imports, also inside functions; relative ones made absolute."""
    package = list(path.relative_to(ROOT).with_suffix("").parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join(base + ([node.module] if node.module else []))
            found.add(module)
            found.update(f"{module}.{name.name}" for name in node.names)
    return found


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "lowrank_d2").with_suffix("").parts[0]


SOURCES = sorted((ROOT / "lowrank_d2").rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_look_downwards(path):
    room = room_of(path)
    for name in imports_of(path):
        parts = name.split(".")
        assert parts[0] not in ("projects", "tools", "tests"), f"{path} imports {name}: the library knows no project or tool"
        assert parts[0] != "torchvision", f"{path} imports torchvision, which is optional"
        if parts[0] == "detectron2":
            assert room not in PURE_TORCH, f"{path} imports {name}: {room} is usable without Detectron2"
        if parts[0] == "lowrank_d2" and len(parts) > 1 and (ROOT / "lowrank_d2" / parts[1]).exists():
            assert parts[1] == room or parts[1] in ALLOWED[room], f"{path} imports {name}: {room} may not see {parts[1]}"


@pytest.mark.parametrize("path", sorted((ROOT / "d2lite").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_light_runtime_imports_nothing_of_ours(path):
    assert not [name for name in imports_of(path) if name.split(".")[0] == "lowrank_d2"]


def test_the_library_does_not_ask_which_runtime_it_has():
    allowed = {ROOT / "lowrank_d2" / "env.py", ROOT / "lowrank_d2" / "__init__.py"}
    asking = [path for path in SOURCES if path not in allowed and "__runtime__" in path.read_text(encoding="utf-8")]
    assert asking == []
