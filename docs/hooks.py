"""MkDocs: the API page is written from the code, and links to the repository's files work on the site.

- In a page, `<!--entries fusedact.nn-->` becomes an entry for each public name that is defined there, and
  `<!--activations-->` the table of all activations.
- A link such as `../LICENSE` leads to the same file on the site as in the repository. Of a folder, and of
  a page that the site doesn't have, only the name remains.
"""

import enum
import importlib
import inspect
import re
import types
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

import fusedact
from fusedact.activations import Activation, Saves, own_rows

ROOT = Path(__file__).parents[1]
KEPT = {
    Saves.MASK: "1 bit",
    Saves.ONE_BIT: "1 bit",
    Saves.TWO_BITS: "2 bits",
    Saves.INPUT: "1 bit and the input",
}


def on_page_markdown(markdown: str, *, config: Any, files: Files, **_: Any) -> str:
    def link(match: "re.Match[str]") -> str:
        text, uri = match.groups()
        if (ROOT / uri).is_dir() or uri.endswith(".md"):
            return f"{text} (`{uri}`)"
        if (ROOT / uri).is_file() and files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / uri)))
        return f"[{text}]({uri})"

    return re.sub(r"\[([^]]*)\]\(\.\./([^)#]+)\)", link, written(markdown))


def written(markdown: str) -> str:
    """The page with its placeholders filled."""
    markdown = markdown.replace("<!--activations-->", activations())
    return re.sub(r"<!--entries ([\w.]+)-->", lambda match: "\n".join(map(entry, paths(match[1]))), markdown)


def entry(path: str) -> str:
    """A class's entry names its methods: inspected attributes would bring the texts of their types."""
    module, _, name = path.rpartition(".")
    value = getattr(importlib.import_module(module), name)
    if not isinstance(value, type):
        return f"::: {path}"
    methods = [
        name
        for name, member in vars(value).items()
        if isinstance(member, types.FunctionType | property)
        and not name.startswith("_")
        and name not in getattr(value, "__dataclass_fields__", ())
    ]
    lines = [f"::: {path}", "    options:", f"      members: {methods or 'false'}"]
    if issubclass(value, enum.Enum):
        lines += ["", *(f"- `{member}`: {member.value}" for member in value), ""]
    return "\n".join(lines)


def paths(room: str) -> list[str]:
    """The paths of a module's public names, in the order of its source. An alias has no entry."""
    module = importlib.import_module(room)
    public = {*fusedact.__all__, *getattr(module, "__all__", ()), *map(function_name, own_rows())}
    return [
        f"{room}.{name}"
        for name, value in vars(module).items()
        if name in public and getattr(value, "__name__", None) == name and value.__module__.startswith(room)
    ]


def function_name(row: Activation) -> str:
    return "dropout" if row.saves is Saves.MASK else f"{row.name}_dropout"


def activations() -> str:
    """One line for each activation: formula, parameters, bits, bytes."""
    lines = [
        "| activation | formula | parameters | kept for backward, per element | bytes moved | eager's bits |",
        "|---|---|---|---|---:|---|",
    ]
    for row in own_rows():
        parameters = ", ".join(
            name if default is inspect.Parameter.empty else f"{name}={default!r}"
            for name, default in row.defaults
        )
        cells = [
            function_name(row).removesuffix("_dropout"),
            f"`{row.formula}`",
            f"`{parameters}`" if parameters else "",
            KEPT[row.saves] + ("; in place, 1 bit and the output" if row.from_output else ""),
            f"{bytes_moved(row, 2):g}",
            "yes" if row.exact else "no",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def bytes_moved(row: Activation, itemsize: int) -> float:
    """Per element, forward and backward: four tensors, the bits twice, the input again where it is kept."""
    bits = 2 if row.saves is Saves.TWO_BITS else 1
    return 4 * itemsize + 2 * bits / 8 + (itemsize if row.saves is Saves.INPUT else 0)
