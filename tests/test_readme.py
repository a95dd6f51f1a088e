"""The README's code runs, and its figures are those of the committed raw results."""

import json
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_are_blocks():
    assert BLOCKS


@pytest.mark.parametrize("block", BLOCKS)
def test_code_blocks_run(block, tmp_path, capsys):
    """As files; what they print is in the block that follows."""
    path = tmp_path / "block.py"
    path.write_text(block)
    runpy.run_path(str(path))
    output = capsys.readouterr().out
    assert not output or f"{block}```\n\n```text\n{output}```\n" in README


def test_mnist_table_is_the_committed_results():
    mnist = pytest.importorskip("benchmarks.mnist", reason="needs the extra `mnist`")
    path = ROOT / "benchmarks" / "results" / "mnist-cpu" / "activation_comparison.json"
    result = json.loads(path.read_text())
    table = mnist.table(result["summary"], len(result["seeds"]))
    assert f"<!-- mnist -->\n```text\n{table}\n```\n<!-- /mnist -->" in README
    assert result["summary"] == mnist.summary(result["runs"])


def test_host_time_table_is_the_committed_results():
    host_time = pytest.importorskip("benchmarks.host_time", reason="needs Triton")
    rows = json.loads((ROOT / "benchmarks" / "results" / "host-time.json").read_text())["rows"]
    assert f"<!-- host time -->\n{host_time.table(rows)}\n<!-- /host time -->" in README
