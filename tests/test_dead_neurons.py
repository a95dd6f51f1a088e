"""The study of dead units: many nets at once are each the net it would be alone, and the figures add up."""

import dataclasses
import json
import math
import statistics
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

dead_neurons = pytest.importorskip("benchmarks.dead_neurons", reason="needs the extra `mnist`")
pytest.importorskip("scipy", reason="tests differences with scipy")

Digits = dead_neurons.Digits

ROOT = Path(__file__).parents[1]
TINY = dead_neurons.Grid(
    activation=("ReLU", "ELU"),
    p=(0.0, 0.5),
    lr=(1e-3, 1e-1),
    init=("default", "negative"),
    optimiser=("SGD",),
    depth=(1, 2),
    seeds=2,
    hidden=8,
    epochs=1,
    batch_size=50,
)


@pytest.fixture
def digits():
    labels = torch.arange(300) % 10
    images = torch.randn(300, 784) + torch.randn(10, 784)[labels]  # quickly learned
    return Digits(images[:200], labels[:200], images[200:], labels[200:], "noise")


@pytest.fixture
def silent():
    with dead_neurons.tqdm(disable=True) as progress:
        yield progress


@pytest.mark.parametrize(("optimiser", "lr"), [("SGD", 0.5), ("Adam", 0.01)])
def test_nets_that_train_at_once_are_those_that_train_alone(optimiser, lr, digits, silent):
    part = dead_neurons.Part(depth=2, optimiser=optimiser, lr=lr, activation="ReLU")
    rows = dead_neurons.train(TINY, part, digits, silent)
    for row in rows:
        if row["p"] > 0:
            continue  # their masks are drawn together
        layers = dead_neurons._initial([784, 8, 8, 10], row["init"], row["seed"])
        parameters = [nn.Parameter(tensor) for layer in layers for tensor in layer]

        def forward(x, parameters=parameters):
            hidden = []
            for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
                x = F.relu(x) if hidden else x
                x = x @ weight + bias
                hidden.append(x)
            return hidden

        step = getattr(torch.optim, optimiser)(parameters, lr=lr)
        order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
        for batch in order.split(50):
            step.zero_grad()
            F.cross_entropy(forward(digits.train_images[batch])[-1], digits.train_labels[batch]).backward()
            step.step()
        *hidden, logits = forward(digits.test_images)
        assert row["dead"] == pytest.approx([(~(h > 0).any(0)).double().mean().item() for h in hidden])
        accuracy = (logits.argmax(1) == digits.test_labels).double().mean().item()
        assert row["accuracy"] == pytest.approx(accuracy, abs=0.011)  # a tie may fall either way


def test_initialisations():
    sizes = [784, 50, 10]
    (w, b), (_, last) = dead_neurons._initial(sizes, "default", 3)
    assert w.abs().max() <= 1 / 28
    assert b.abs().max() <= 1 / 28
    negative = dead_neurons._initial(sizes, "negative", 3)
    assert torch.equal(negative[0][0], w)
    assert (negative[0][1] == -1).all()
    assert torch.equal(negative[1][1], last)
    he = dead_neurons._initial(sizes, "he", 3)
    assert he[0][0].std().item() == pytest.approx((2 / 784) ** 0.5, rel=0.05)
    assert not he[0][1].any()


def test_an_interrupted_study_goes_on(digits, tmp_path, monkeypatch, capsys):
    whole, *_ = dead_neurons.study(TINY, digits, tmp_path / "whole")
    assert len(whole) == 2 * 2 * 2 * 2 * 2 * 2
    trained = []
    train = dead_neurons.train

    def interrupted(grid, part, *rest):
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(part)
        return train(grid, part, *rest)

    monkeypatch.setattr(dead_neurons, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dead_neurons.study(TINY, digits, tmp_path / "parts")
    monkeypatch.setattr(dead_neurons, "train", lambda *a: trained.append(a[1]) or train(*a))
    # One of the three is damaged, in one of several ways.
    path = tmp_path / "parts" / f"{trained[1].name}.json"
    content = path.read_text()
    rows = json.loads(content)
    rows["rows"].pop()
    for damaged in (content[:-20], "", json.dumps(rows), "[]", content.replace('"accuracy"', '"x"')):
        path.write_text(damaged)
        trained.clear()
        again, *_ = dead_neurons.study(TINY, digits, tmp_path / "parts")
        assert again == whole
        assert f"{path} is damaged" in capsys.readouterr().out
        assert len(trained) in (1, 6)  # at first also the five that were never reached
    trained.clear()
    assert dead_neurons.study(TINY, digits, tmp_path / "parts")[0] == whole
    assert trained == []


def test_a_part_of_another_grid_trains_again(digits, tmp_path):
    dead_neurons.study(TINY, digits, tmp_path)
    other = dataclasses.replace(TINY, hidden=4)
    part = next(other.parts())
    path = tmp_path / f"{part.name}.json"
    assert dead_neurons.load_part(path, TINY, part, "noise") is not None
    assert dead_neurons.load_part(path, other, part, "noise") is None
    assert dead_neurons.load_part(path, TINY, part, "other data") is None


def row(seed, p, dead, accuracy, **other):
    factors = {"activation": "ReLU", "lr": 0.1, "init": "he", "optimiser": "SGD", "depth": 1}
    return {**factors, "p": p, "seed": seed, "dead": [dead], "accuracy": accuracy, "finite": True, **other}


def test_differences_are_paired_by_seed():
    from scipy.stats import ttest_rel

    before, after = [0.1, 0.5, 0.3], [0.2, 0.65, 0.4]
    rows = [row(s, 0.0, before[s], 0.9) for s in range(3)] + [row(s, 0.5, after[s], 0.9) for s in range(3)]
    rows += [row(s, 0.5, 1.0, 0.1, init="default") for s in range(3)]  # without a partner
    rows += [row(0, p, 1.0, 0.1, lr=0.2, finite=p == 0) for p in (0.0, 0.5)]  # diverged
    comparison = dead_neurons.Comparison("", "", "p", 0.0, 0.5, {})
    found = dead_neurons.paired(rows, comparison, dead_neurons.dead)
    expected = ttest_rel(after, before)
    interval = expected.confidence_interval()
    assert (found.pairs, found.seeds) == (3, 3)
    assert found.mean == pytest.approx(100 * (statistics.fmean(after) - statistics.fmean(before)))
    assert found.probability == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((100 * interval.low, 100 * interval.high))
    assert dead_neurons.paired(rows, comparison, lambda r: r["accuracy"]).probability == 1
    elsewhere = dead_neurons.Comparison("", "", "p", 0.0, 0.5, {"depth": 4})
    assert dead_neurons.paired(rows, elsewhere, dead_neurons.dead) is None


def test_holm():
    assert dead_neurons.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert dead_neurons.holm([]) == []


def test_verdicts():
    finding = {
        "figure": "dead",
        "mean": 5.0,
        "low": 2.0,
        "high": 8.0,
        "adjusted": 0.0001,
        "seeds": 5,
        "pairs": 9,
    }
    assert dead_neurons.verdict(finding) == (
        "dead units **+5.0 points** (95% interval +2.0 to +8.0, adjusted p < 0.001, 9 pairs, 5 seeds)"
    )
    assert "no difference beyond noise (+5.0 points" in dead_neurons.verdict({**finding, "adjusted": 0.05})


def test_the_command_writes_everything(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dead_neurons, "load", lambda _: digits)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    dead_neurons.main(["--out", str(tmp_path)], TINY)
    result = json.loads((tmp_path / "dead_neurons.json").read_text())
    assert len(result["rows"]) == 64
    assert all(math.isfinite(finding["mean"]) for finding in result["findings"])
    assert "64 nets on noise" in (tmp_path / "dead-neurons.md").read_text()
    assert (tmp_path / "dead-neurons.png").stat().st_size > 10_000
    assert "Written to" in capsys.readouterr().out


def test_the_page_is_the_committed_results():
    path = ROOT / "benchmarks" / "results" / "dead-neurons" / "dead_neurons.json"
    result = json.loads(path.read_text())
    assert dead_neurons.page(result) == (ROOT / "docs" / "dead-neurons.md").read_text()
    for stored, found in zip(result["findings"], dead_neurons.findings(result["rows"]), strict=True):
        assert stored == pytest.approx(found)
