"""What is timed launches fusedact's kernels. Times themselves are no matter for tests."""

import json

import pytest
import torch
from cases import both, representatives
from torch import nn

from benchmarks import host_forms, host_time, pair_time


@pytest.fixture(autouse=True)
def short(monkeypatch, cuda):
    monkeypatch.setattr(host_time, "CALLS", 1)


@representatives
def test_a_row_has_the_times_of_eager_module_and_pair(activation, kernels_of):
    rows = []
    names = kernels_of(lambda: rows.extend(host_time.measure([activation], rounds=1)))
    assert [row["direction"] for row in rows] == ["forward", "forward and backward"]
    assert all(min(row[name] for name in ("eager", "module", "pair")) > 0 for row in rows)
    for row in rows:  # in one round
        assert row["pair / eager"] == row["fastest pair"] / row["fastest eager"] == row["pair"] / row["eager"]
    runs = 2 * (host_time.WARM + 1)  # of module and pair, per direction
    assert (names.count("forward_kernel"), names.count("backward_kernel")) == (2 * runs, runs)


def test_the_forms_that_launch_are_dropout():
    x, dy = torch.randn(2, 3, 64, device="cuda").requires_grad_(), torch.randn(2, 3, 64, device="cuda")
    expected = both(nn.Dropout(host_forms.P), x, dy)
    empty, *forms = host_forms.forms(x).values()
    assert len(forms) == 5
    for form in forms:
        for got, value in zip(both(form, x, dy), expected, strict=True):
            assert torch.equal(torch.as_tensor(got), torch.as_tensor(value))
    result, dx, offset = both(empty, x, dy)
    assert result.shape == dx.shape == x.shape
    assert offset == 0


def test_each_form_is_timed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(host_time, "on_one_core", lambda: None)
    path = tmp_path / "forms.json"
    host_forms.main(["--rounds", "1", "--json", str(path)])
    rows = json.loads(path.read_text())["rows"]
    assert [row["direction"] for row in rows] == ["forward", "forward and backward"]
    names = ["eager", *host_forms.forms(torch.ones(8, device="cuda", requires_grad=True))]
    assert all(row[name] > 0 for row in rows for name in names)
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == [
        "| `nn.Dropout`",
        *(f"| {name}" for name in names[1:]),
    ]


def test_all_ways_of_writing_a_pair_take_the_kernels_path(kernels_of, tmp_path, monkeypatch):
    monkeypatch.setattr(host_time, "on_one_core", lambda: None)
    path = tmp_path / "times.json"
    names = kernels_of(lambda: pair_time.main(["--rounds", "1", "--json", str(path)]))
    rows = json.loads(path.read_text())["rows"]
    assert len(rows) == 4 * 3
    assert all(row["pair"] > 0 and row["module"] > 0 and row["eager"] > 0 for row in rows)
    assert names.count("forward_kernel") == 2 * (host_time.WARM + 1) * len(rows)
