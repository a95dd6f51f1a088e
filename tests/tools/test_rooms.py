"""Arrows run one way: what each file of the package imports stands below it (CONTRIBUTING.md, Rooms)."""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src" / "fusedact"

# From the kernels up to the user. What stands in one line is one room.
ROOMS = [
    ["_torch", "checks"],
    ["activations"],
    ["rows"],
    ["masks"],
    ["watcher", "observer"],
    ["kernels"],
    ["composition", "autograd", "operators"],
    ["dispatch"],
    ["text", "functional", "nn"],
    ["testing"],
    ["fusion"],
    ["monitor"],
    ["env"],
    ["__init__"],
]
HEIGHT = {name: height for height, names in enumerate(ROOMS) for name in names}


def room(path):
    """The folder or the file that stands for it directly below the package."""
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imported(path):
    """The rooms that a file imports, at its top or when it runs; what only a type checker reads left out."""
    tree = ast.parse(path.read_text())
    typed = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    ]
    hidden = {node for branch in typed for part in branch.body for node in ast.walk(part)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.level or node in hidden:
            continue
        folder = path.parents[node.level - 1]
        if folder != SRC:
            yield room(path)
        elif node.module:
            yield node.module.split(".")[0]
        else:
            yield from (alias.name for alias in node.names if alias.name in HEIGHT)


def test_each_file_has_a_room():
    assert {room(path) for path in SRC.rglob("*.py")} == set(HEIGHT)


@pytest.mark.parametrize("path", sorted(SRC.rglob("*.py")), ids=lambda path: str(path.relative_to(SRC)))
def test_arrows_run_one_way(path):
    mine = HEIGHT[room(path)]
    assert not [name for name in imported(path) if HEIGHT[name] > mine]
