"""The sweep over other people's models, on models of our own."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.zoo import __main__ as zoo
from benchmarks.zoo import running, table
from benchmarks.zoo.models import Model


class Net(nn.Module):
    """Three pairs that run; of one of them the activation's result is used again."""

    def __init__(self):
        super().__init__()
        self.fc, self.act, self.drop = nn.Linear(8, 8), nn.GELU(), nn.Dropout(0.1)
        self.seq = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.1))

    def forward(self, x):
        x = self.seq(self.drop(self.act(self.fc(x))))
        h = F.silu(x)
        return F.dropout(h, 0.5, self.training) + h


@pytest.fixture(autouse=True)
def inputs(monkeypatch):
    monkeypatch.setattr(running, "inputs", lambda model: iter([{"y": None}, {"x": torch.zeros(4, 8)}]))


def test_row_of_a_model():
    row = running.sweep(Model("ours", "net", (Net,)), 60)
    assert row["found_running"] == {"gelu": 1, "relu": 1, "silu": 1}
    assert row["used_again"] == {"silu": 1}
    assert row["ran_fused"] == {"gelu": 1, "relu": 1}
    assert (row["fused"], len(row["left"])) == (2, 1)
    assert "| ours | 1 | 1 | 3 | 2 | 66.7% | 0 |" in table.table([row], [])


def test_rows_of_failures(monkeypatch):
    def broken():
        raise KeyError

    class Picky(Net):
        def forward(self, x, y):
            return x

    def error(*_):
        raise RuntimeError("broken")

    assert "KeyError" in running.sweep(Model("ours", "broken", (broken,)), 60)["not_built"]
    row = running.sweep(Model("ours", "picky", (Picky,)), 60)
    assert "missing 1 required positional argument" in row["not_run"][0]
    monkeypatch.setattr(running, "composition", error)
    row = running.sweep(Model("ours", "net", (Net,)), 60)
    assert row["error"] == "running fused: RuntimeError: broken"
    assert "| ours | 1 | 0 | 0 | 0 | - | 1 |" in table.table([row], [])


def test_bits(monkeypatch):
    model = Model("ours", "net", (), (Net,))
    row = running.compare_bits(model, 60)
    assert row["pairs"] == 2
    assert row["ran_fused"] == {"gelu": 1, "relu": 1}
    assert len(row["same"]) == 4
    assert all(row["same"].values())
    assert row["difference"] == 0
    composition = running.composition
    monkeypatch.setattr(running, "composition", lambda *args: composition(*args) + 1e-7)
    row = running.compare_bits(model, 60)
    assert [way for way, same in row["same"].items() if not same] == ["composed, training"]
    assert 0 < row["difference"] < 1e-5
    assert "In 0 models all bits were the plain model's. The largest difference was" in table.table([], [row])


@pytest.mark.filterwarnings("ignore")
def test_a_sweep_goes_on_where_it_was_stopped(monkeypatch, tmp_path, capsys):
    models = [Model("ours", name, (Net,), (Net,)) for name in ("one", "two")]
    monkeypatch.setattr(zoo, "torchvision_models", lambda: models)
    monkeypatch.setattr(zoo, "transformers_models", list)
    path = tmp_path / "zoo.json"
    assert zoo.main(["--match", "one", "--bits", "1", "--json", str(path)]) == 0
    assert [row["model"] for row in json.loads(path.read_text())["rows"]] == ["one"]
    capsys.readouterr()
    assert zoo.main(["--bits", "1", "--json", str(path)]) == 0
    assert [row["model"] for row in json.loads(path.read_text())["rows"]] == ["one", "two"]
    assert '"model": "one"' not in capsys.readouterr().out


def test_a_model_whose_process_ends(monkeypatch):
    def work(model, seconds):
        if model.name == "1":
            raise KeyError
        return {"model": model.name}

    rows = list(zoo.apart(work, [Model("ours", str(i), (Net,)) for i in range(4)], 2))
    assert sorted(row["model"] for row in rows) == ["0", "1", "2", "3"]
    assert [row.get("not_run") for row in rows if row["model"] == "1"] == [["its process ended"]]
