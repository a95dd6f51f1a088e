"""The docs' code runs; names, signatures and defaults are the package's; figures are the results' own."""

import ast
import doctest
import importlib.util
import inspect
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

import fusedact
from fusedact import activations
from fusedact.activations import own_rows

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
BLOCKS = [
    pytest.param(block, text, id=f"{name}-{i}")
    for name, text in PAGES.items()
    for i, block in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
]
EXAMPLES = [
    found
    for name in fusedact.__all__
    for found in doctest.DocTestFinder(recurse=False).find(getattr(fusedact, name), name)
    if found.examples
]


def _sentences(page: str):
    """Of paragraphs and list items; code, tables and headings aside. A colon ends one too."""
    page = re.sub(r"```.*?```|<!--.*?-->|^[|#{!].*?$", "", page, flags=re.DOTALL | re.MULTILINE)
    for paragraph in re.split(r"\n\s*\n|\n\s*(?:-|\d\.) ", re.sub(r"\]\([^)]*\)", "]", page)):
        yield from re.split(r"(?<=[.!?:])\s+(?=[A-Z`*\[])", " ".join(paragraph.split()))


def test_sentences_are_short():
    """25 words at most. The study's page is its script's."""
    pages = {name: text for name, text in PAGES.items() if name != "study.md"}
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        pages[name] = (ROOT / name).read_text()
    found = [(name, sentence) for name, text in pages.items() for sentence in _sentences(text)]
    assert len(found) > 200
    assert [each for each in found if len(each[1].split()) > 25] == []


def test_code_is_as_wide_as_a_page():
    """The site scrolls longer lines on a desktop."""
    lines = [(block.id, line) for block in BLOCKS for line in block.values[0].splitlines()]
    assert [each for each in lines if len(each[1]) > 84] == []


def test_there_are_blocks():
    """In the README and in pages; and no fence that the pattern wouldn't find."""
    assert len({block.id.rpartition("-")[0] for block in BLOCKS}) >= 4
    assert len(EXAMPLES) >= 4
    assert sum(len(re.findall(r"```\s*py", text)) for text in PAGES.values()) == len(BLOCKS)


@pytest.fixture
def registry(monkeypatch):
    """Rows that a page registers are gone afterwards."""
    for name in ("ROWS", "_BY_MODULE"):
        monkeypatch.setattr(activations, name, dict(getattr(activations, name)))


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(("block", "page"), BLOCKS)
def test_code_blocks_run(block, page, tmp_path, capsys):
    """As files; what they print is in the block that follows."""
    path = tmp_path / "block.py"
    path.write_text(block)
    runpy.run_path(str(path))
    output = capsys.readouterr().out
    assert not output or f"{block}```\n\n```text\n{output}```\n" in page


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda found: found.name)
def test_docstrings_examples_run(example):
    names = {**vars(nn), **vars(fusedact), "nn": nn, "torch": torch}
    names["train"] = lambda net: net(torch.randn(8, 784)).sum().backward()
    exec("".join(line.source for line in example.examples), names)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the command is for a machine without a GPU")
def test_the_check_of_ones_own_activation_runs(tmp_path):
    pytest.importorskip("triton", reason="the kernels run in its interpreter")
    page = PAGES["own-activation.md"]
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (command,) = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    (tmp_path / "star_relu.py").write_text(block)
    command = command.replace("python -c", f"{shlex.quote(sys.executable)} -c")
    path = {"PYTHONPATH": str(ROOT / "src")}
    subprocess.run(command, shell=True, check=True, cwd=tmp_path, env={**os.environ, **path})


def test_readmes_links_lead_somewhere():
    """Those of the site's pages are mkdocs's to check."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.fixture(scope="module")
def hooks():
    pytest.importorskip("mkdocs", reason="needs the extra `docs`")
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_api_page_has_every_public_name(hooks):
    page = hooks.written(PAGES["api.md"])
    assert "<!--" not in page
    entries = re.findall(r"^::: (fusedact\.[\w.]+)$", page, re.MULTILINE)
    assert len(entries) == len(set(entries))
    names = {entry.rpartition(".")[2] for entry in entries}
    aliases = {"FusedLeakyReLUDropout"}
    assert names >= set(fusedact.__all__) - {"functional", "testing"} - aliases
    assert names >= {"check_activation", "eager_mask", "fast_mask"}
    for row in own_rows():
        assert f"fusedact.functional.{hooks.function_name(row)}" in entries
    for alias in aliases:
        assert f"`{alias}`" in page


def test_the_table_of_activations(hooks):
    """Its bytes are those that the benchmark suite counts by."""
    cases = pytest.importorskip("benchmarks.cases", reason="needs the extra `bench`")
    head, _, *lines = (line.strip("| ").split(" | ") for line in hooks.activations().splitlines())
    column = head.index("bytes moved")
    for row, line in zip(own_rows(), lines, strict=True):
        assert float(line[column]) == cases.floor_bytes(row, torch.bfloat16, 1)["both"]
        assert f"`{row.formula}`" in line


KEPT = {"MASK": "1 bit", "ONE_BIT": "1 bit", "TWO_BITS": "2 bits", "INPUT": "1 bit and the input"}


def test_the_readme_has_every_module():
    """Each in the line of what it keeps, in the order of the rows."""
    lines = dict(re.findall(r"^\| ([^|]*) \| (`Fused[^|]*) \|$", README, re.MULTILINE))
    assert set(lines) == set(KEPT.values())
    modules = {cls.row: name for name, cls in vars(fusedact.nn).items() if hasattr(cls, "row")}
    modules |= {fusedact.rows.LEAKY_RELU: "FusedLeakyDropout"}
    for kept, line in lines.items():
        found = [name for name in re.findall(r"`(Fused\w+)`", line) if name != "FusedLeakyReLUDropout"]
        assert found == [modules[row] for row in own_rows() if KEPT[row.saves.name] == kept]


# Calls in backticks, as `fuse(model, inplace=True)`. One with an ellipsis says nothing of arguments.
CALLS = [
    pytest.param(call, id=f"{name}: {call}")
    for name, text in PAGES.items()
    for call in sorted(set(re.findall(r"`((?:fusedact\.)?\w+(?:\.\w+)*\([^`]*\))`", text)))
    if "..." not in call
]


def _public(dotted: str):
    """What a page means by a name, if it is one of the package's."""
    for room in (fusedact, fusedact.functional, fusedact.masks, fusedact.testing):
        value = room
        for name in dotted.removeprefix("fusedact.").split("."):
            value = getattr(value, name, None)
        if value is not None:
            return value
    return None


def test_there_are_calls():
    found = [call.values[0] for call in CALLS if _public(call.values[0].partition("(")[0]) is not None]
    assert len(found) >= 5


@pytest.mark.parametrize("call", CALLS)
def test_calls_in_sentences_have_the_arguments_that_there_are(call):
    function = _public(call.partition("(")[0])
    if function is None:
        return
    node = ast.parse(call, mode="eval").body
    inspect.signature(function).bind(*node.args, **{keyword.arg: keyword.value for keyword in node.keywords})


def test_signatures_that_pages_state():
    """`(p=0.5, inplace=False, *, rng="eager")` is what every module has, but for its own parameters."""
    stated = re.findall(r"`\((.*?)\)`", README)
    assert stated == ['p=0.5, inplace=False, *, rng="eager"']
    for row in own_rows():
        module = next(cls for cls in vars(fusedact.nn).values() if getattr(cls, "row", None) is row)
        parameters = [
            p.replace(annotation=inspect.Parameter.empty)
            for p in inspect.signature(module).parameters.values()
            if p.name not in row.names
        ]
        assert str(inspect.Signature(parameters)).replace("'", '"') == f"({stated[0]})"


def test_modules_in_names_exist():
    """`fusedact.x.y` in a sentence or a block is there."""
    for name, text in PAGES.items():
        for dotted in re.findall(r"\bfusedact((?:\.[a-zA-Z_]\w*)+)", re.sub(r"::: .*|https?:\S*", "", text)):
            value = fusedact
            for part in dotted.strip(".").split("."):
                if part in ("env", "kernels"):  # which `import fusedact` leaves out
                    value = importlib.import_module(f"fusedact.{part}")
                else:
                    assert hasattr(value, part), f"{name}: fusedact{dotted}"
                    value = getattr(value, part)


def test_paths_in_sentences_exist():
    """Such as `tests/engine/test_cuda.py`, and the rooms of CONTRIBUTING."""
    pages = {**PAGES, "CONTRIBUTING.md": (ROOT / "CONTRIBUTING.md").read_text()}
    for name, text in pages.items():
        for path in re.findall(r"`((?:src|tests|benchmarks|docs)/[\w./-]*)`", text):
            assert (ROOT / path).exists(), f"{name}: {path}"


def test_drawing_is_to_scale():
    """It shows ReLU in bfloat16, so b = 2 in the table of bytes."""
    rows = re.findall(r"^\| (eager ReLU \+ dropout|fused, 1 bit) \|(.*)\|$", PAGES["speed.md"], re.MULTILINE)
    expected = {
        f"{row.split()[0].strip(',')}-{way}": eval(re.sub(r"(\d)b", r"\1*b", cell), {"b": 2})
        for row, cells in rows
        for way, cell in zip(("forward", "backward", "kept"), cells.split("|"), strict=True)
    }
    svg = "{http://www.w3.org/2000/svg}"
    groups = ElementTree.parse(ROOT / "docs" / "bytes.svg").getroot().iter(f"{svg}g")
    drawn = {g.get("id"): sum(float(rect.get("width")) for rect in g.iter(f"{svg}rect")) / 48 for g in groups}
    assert drawn == expected


def test_blocks_are_the_committed_results():
    pytest.importorskip("tqdm", reason="needs the extra `mnist`")
    pytest.importorskip("triton", reason="the host's time is measured with it")
    from benchmarks import report

    assert list(report.update(ROOT / "README.md")) == []


def test_the_masks_figures_are_the_committed_results():
    """Each row of the page's table is one of the file's comparisons, in order; sentences name the rest."""
    record = json.loads((ROOT / "benchmarks" / "results" / "dropout-verification.json").read_text())
    page = PAGES["randomness.md"]
    rows = re.findall(r"^\| (.*) \| ([\d,]+) \| ([\d,]+) \|$", page.split("<!--masks-->")[1], re.MULTILINE)
    figures = [tuple(int(cell.replace(",", "")) for cell in row[1:]) for row in rows]
    assert figures == [(found["cases"], found["mismatches"]) for found in record["comparisons"]]
    text = " ".join(page.split())
    identical = record["sass_identical"]
    assert f"{identical['kernels']} of {identical['kernels']} kernels are identical" in text
    *most, last = identical["torch 2.14.1"]
    assert (
        f"torch 2.14.1 for {', '.join(most)} and {last}, torch 2.11.0 for {identical['torch 2.11.0'][0]}"
        in text
    )
    assert f"{record['comparisons'][0]['elements'] / 1e6} million elements" in rows[0][0]
    assert f"fusedact's {record['fusedact'].split(',')[0]}" in text
    for exception in ("time", "the last bits of approximate instructions", "torch 2.7 to 2.10", "ROCm"):
        assert exception in record["not_covered"]
        assert exception in text.split("This shows nothing about")[1]
