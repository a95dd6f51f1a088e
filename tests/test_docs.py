"""The code in README, docs and docstrings runs; figures and drawing are those of what they were made from."""

import doctest
import json
import re
import runpy
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

import fusedact

ROOT = Path(__file__).parents[1]
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


def test_there_are_blocks():
    """In the README and in pages; and no fence that the pattern wouldn't find."""
    assert len({block.id.rpartition("-")[0] for block in BLOCKS}) >= 4
    assert len(EXAMPLES) >= 4
    assert sum(len(re.findall(r"```\s*py", text)) for text in PAGES.values()) == len(BLOCKS)


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


def test_readmes_links_lead_somewhere():
    """Those of the site's pages are mkdocs's to check."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_api_page_has_every_public_name():
    page = set(re.findall(r"^::: fusedact\.\w+\.(\w+)$", PAGES["api.md"], re.MULTILINE))
    functions = {f"{row.name}_dropout" for row in fusedact.functional.ACTIVATIONS}
    assert page >= functions | set(fusedact.__all__) - {"functional"}


def test_drawing_is_to_scale():
    """It shows ReLU in bfloat16, so b = 2 in the README's table of bytes."""
    rows = re.findall(r"^\| (eager ReLU \+ dropout|fused ReLU) \|(.*)\|$", README, re.MULTILINE)
    expected = {
        f"{row.split()[0]}-{way}": eval(re.sub(r"(\d)b", r"\1*b", cell), {"b": 2})
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

    assert report.rewritten(README) == README


def test_the_masks_figures_are_the_committed_results():
    """Each row of the page's table is one of the file's comparisons, in order; sentences name the rest."""
    record = json.loads((ROOT / "benchmarks" / "results" / "dropout-verification.json").read_text())
    page = PAGES["randomness.md"]
    rows = re.findall(r"^\| (.*) \| ([\d,]+) \| ([\d,]+) \|$", page.split("<!-- masks -->")[1], re.MULTILINE)
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
