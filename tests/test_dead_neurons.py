"""The study of dead units: many nets at once are each the net it would be alone, and the figures add up."""

import dataclasses
import json
import math
import os
import statistics
import struct
import sys
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
    by_p = {p: [row["start"] for row in rows if row["p"] == p] for p in TINY.p}
    assert by_p[0.0] == by_p[0.5]
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

        *hidden, logits = forward(digits.test_images)
        assert row["start"]["dead"] == pytest.approx(
            [(~(h > 0).any(0)).double().mean().item() for h in hidden]
        )
        step = getattr(torch.optim, optimiser)(parameters, lr=lr)
        order = torch.randperm(200, generator=torch.Generator().manual_seed(row["seed"]))
        for batch in order.split(50):
            step.zero_grad()
            F.cross_entropy(forward(digits.train_images[batch])[-1], digits.train_labels[batch]).backward()
            step.step()
        *hidden, logits = forward(digits.test_images)
        assert row["finite"]
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
    whole, took = dead_neurons.study(TINY, digits, tmp_path / "whole")
    assert len(whole) == 2 * 2 * 2 * 2 * 2 * 2
    assert (took["parts"], took["kept"]) == (8, 0)
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
    content = path.read_bytes()
    digit = content.replace(b'"accuracy": 0.', b'"accuracy": 1.', 1)
    assert digit != content
    for damaged in (content[:-20], b"", digit, b"[]", b"\xff\n" + content):
        path.write_bytes(damaged)
        trained.clear()
        again, took = dead_neurons.study(TINY, digits, tmp_path / "parts")
        assert again == whole
        assert f"{path} is damaged" in capsys.readouterr().out
        assert len(trained) in (1, 6)  # at first also the five that were never reached
        assert took["kept"] == 8 - len(trained)
    trained.clear()
    again, took = dead_neurons.study(TINY, digits, tmp_path / "parts")
    assert again == whole
    assert (trained, took["kept"]) == ([], 8)
    assert took["cpu_seconds"] > 0  # of the parts, whenever they trained


@pytest.mark.skipif(sys.platform != "linux", reason="several processes on Linux only")
def test_processes_share_the_parts(digits, tmp_path, monkeypatch):
    whole, _ = dead_neurons.study(TINY, digits, tmp_path / "alone")
    shared, took = dead_neurons.study(TINY, digits, tmp_path / "shared", processes=3)
    assert shared == whole
    assert took["kept"] == 0
    # One process is killed: the study says so, and the parts that were done are kept.
    train = dead_neurons.train
    killed = dead_neurons.Part(depth=1, optimiser="SGD", lr=1e-1, activation="ELU")
    monkeypatch.setattr(
        dead_neurons, "train", lambda grid, part, *a: os._exit(9) if part == killed else train(grid, part, *a)
    )
    with pytest.raises(ChildProcessError, match="a process ended with 9"):
        dead_neurons.study(TINY, digits, tmp_path / "killed", processes=2)
    monkeypatch.undo()
    again, took = dead_neurons.study(TINY, digits, tmp_path / "killed", processes=2)
    assert again == whole
    assert 4 <= took["kept"] <= 7  # deep ones come first


def test_a_part_of_another_grid_trains_again(digits, tmp_path, monkeypatch, capsys):
    dead_neurons.study(TINY, digits, tmp_path)
    part, another, *_ = TINY.parts()
    path = tmp_path / f"{part.name}.json"
    settings = dead_neurons.part_settings
    assert dead_neurons.load_part(path, settings(TINY, part, digits)) is not None
    assert capsys.readouterr().out == ""
    others = [
        settings(dataclasses.replace(TINY, hidden=4), part, digits),
        settings(TINY, part, dataclasses.replace(digits, source="other data")),
        settings(TINY, another, digits),
    ]
    for name, value in (("versions", {"torch": "another"}), ("describe_device", "another")):
        with monkeypatch.context() as patch:
            patch.setattr(dead_neurons, name, lambda *_, value=value: value)
            others.append(settings(TINY, part, digits))
    for other in others:
        assert dead_neurons.load_part(path, other) is None
        assert f"{path} is of another" in capsys.readouterr().out


def row(seed, p, dead, accuracy, **other):
    factors = {"activation": "ReLU", "lr": 0.1, "init": "he", "optimiser": "SGD", "depth": 1}
    start = {"accuracy": 0.1, "dead": [0.0]}
    results = {"start": start, "dead": [dead], "accuracy": accuracy, "finite": True}
    return {**factors, "p": p, "seed": seed, **results, **other}


TRAINED = {"trained": True}


def test_differences_are_paired_by_seed():
    from scipy.stats import ttest_rel

    before, after = [0.1, 0.5, 0.3], [0.2, 0.65, 0.4]
    rows = [row(s, 0.0, before[s], 0.9) for s in range(3)] + [row(s, 0.5, after[s], 0.9) for s in range(3)]
    rows += [row(s, 0.5, 1.0, 0.1, init="default") for s in range(3)]  # without a partner
    comparison = dead_neurons.Comparison("", "", "p", 0.0, 0.5, TRAINED)
    found = dead_neurons.paired(dead_neurons.states(rows), comparison, dead_neurons.dead, {})
    expected = ttest_rel(after, before)
    interval = expected.confidence_interval()
    assert (found.pairs, found.seeds) == (3, 3)
    assert (found.before, found.after) == pytest.approx((30, 100 * statistics.fmean(after)))
    assert found.mean == pytest.approx(100 * (statistics.fmean(after) - statistics.fmean(before)))
    assert found.probability == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((100 * interval.low, 100 * interval.high))
    states = dead_neurons.states(rows)
    assert dead_neurons.paired(states, comparison, dead_neurons.accuracy, {}).probability == 1
    assert dead_neurons.paired(states, comparison, dead_neurons.dead, {"depth": 4}) is None


def test_no_difference_but_for_rounding():
    rows = [row(s, p, dead, 0.9) for s in range(3) for p, dead in ((0.0, 0.3), (0.5, 0.1 + 0.2))]
    comparison = dead_neurons.Comparison("", "", "p", 0.0, 0.5, TRAINED)
    found = dead_neurons.paired(dead_neurons.states(rows), comparison, dead_neurons.dead, {})
    assert (found.mean, found.probability) == (0, 1)


def test_pairs_of_one_seed_are_one_value():
    rows = [row(s, p, p * s / 10, 0.9, lr=lr) for s in (1, 2) for p in (0.0, 0.5) for lr in (0.1, 0.01)]
    comparison = dead_neurons.Comparison("", "", "p", 0.0, 0.5, TRAINED)
    found = dead_neurons.paired(dead_neurons.states(rows), comparison, dead_neurons.dead, {})
    assert (found.pairs, found.seeds) == (4, 2)


def test_nets_that_diverged_count_by_their_accuracy_alone():
    rows = [row(s, p, s / 10, 0.9 - p, lr=lr) for s in range(3) for p in (0.0, 0.5) for lr in (0.1, 0.01)]
    rows[-1]["finite"] = False
    comparison = dead_neurons.Comparison("", "", "p", 0.0, 0.5, TRAINED)
    states = dead_neurons.states(rows)
    assert dead_neurons.paired(states, comparison, dead_neurons.dead, {}).pairs == 5
    assert dead_neurons.paired(states, comparison, dead_neurons.accuracy, {}).pairs == 6
    assert "diverged to infinity or NaN (ReLU 1)" in dead_neurons._diverged(rows)
    assert dead_neurons._diverged(rows[:-1]) == "No net diverged to infinity or NaN."


def test_blocked_nets_are_apart():
    """And arms: two that cancel on average are each found."""
    start = {"accuracy": 0.1, "dead": [1.0]}
    rows = [
        row(s, p, 0.3 + sign * p * (1 + s / 100), 0.9 - p, optimiser=optimiser)
        for s in range(5)
        for p in (0.0, 0.5)
        for optimiser, sign in (("SGD", 0.5), ("Adam", -0.5))
    ]
    rows += [
        row(s, 0.5, dead + s / 100, 0.5, activation=activation, start=start)
        for s in range(5)
        for activation, dead in (("ReLU", 0.9), ("ELU", 0.2))
    ]
    found = {(f["text"], str(f["arm"]), f["figure"]): f for f in dead_neurons.findings(rows)}
    average = found["p = 0.5 for 0", "{}", "dead"]
    assert average["pairs"] == 10  # no blocked net
    assert dead_neurons.direction(average) == "no difference beyond noise"
    arms = [f for f in found.values() if f["text"] == "p = 0.5 for 0" and f["arm"] and f["figure"] == "dead"]
    assert {f["arm"]["optimiser"]: dead_neurons.direction(f) for f in arms} == {
        "SGD": "more",
        "Adam": "fewer",
    }
    assert dead_neurons.verdict(average, arms).endswith("; of 2 arms fewer in 1, more in 1.")
    assert ("ELU for ReLU", "{}", "dead") not in found
    assert found["ELU for ReLU in blocked nets", "{}", "dead"]["mean"] == pytest.approx(-70)
    assert found["after training for before", "{}", "dead"]["before"] == 0


def test_holm():
    assert dead_neurons.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert dead_neurons.holm([]) == []


def test_verdicts():
    numbers = {"before": 10.0, "after": 15.0, "mean": 5.0, "low": 2.0, "high": 8.0, "adjusted": 0.0001}
    finding = {"figure": "dead", "text": "p = 0.5 for 0", "arm": {}, "seeds": 5, "pairs": 9, **numbers}
    assert dead_neurons.verdict(finding, []) == (
        "Dead units, p = 0.5 for 0: 10.0 → 15.0%, **more** "
        "(+5.0 points, 95% interval +2.0 to +8.0, P < 0.001, 9 pairs, 5 seeds)."
    )
    noise = {**finding, "adjusted": 0.05}
    assert "15.0%, **no difference beyond noise** (+5.0 points" in dead_neurons.verdict(noise, [])
    accuracy = {**finding, "figure": "accuracy", "mean": -5.0}
    assert "15.0%, **lower** (-5.0 points" in dead_neurons.verdict(accuracy, [])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--processes", "0"], "argument --processes: 0 is not at least 1"),
        (["--hidden", "0"], "argument --hidden: 0 is not at least 1"),
        (["--epochs", "x"], "argument --epochs: invalid int value: 'x'"),
        (["--device", "abacus"], "argument --device: abacus: "),
        (
            ["--device", "meta", "--processes", "2"],
            "argument --processes: more than 1 only on a CPU and under Linux",
        ),
        (["--data", "nowhere"], "nowhere/MNIST/raw/train-images-idx3-ubyte is missing"),
    ],
)
def test_bad_arguments_are_named(arguments, error, capsys):
    with pytest.raises(SystemExit) as stop:
        dead_neurons.main(arguments)
    assert stop.value.code == 2
    assert error in capsys.readouterr().err


def described(png):
    """The description that stands in a PNG."""
    content, found = png.read_bytes()[8:], {}
    while content:
        (length,) = struct.unpack(">I", content[:4])
        if content[4:8] == b"tEXt":
            name, _, text = content[8 : 8 + length].partition(b"\0")
            found[name.decode()] = text.decode()
        content = content[12 + length :]
    return found["Description"]


def test_the_command_writes_everything(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dead_neurons, "load", lambda _: digits)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    dead_neurons.main(["--out", str(tmp_path), "--hidden", "4", "--processes", "1"], TINY)
    result = json.loads((tmp_path / "dead_neurons.json").read_text())
    assert result["command"] == "python benchmarks/dead_neurons.py --hidden 4"
    assert len(result["rows"]) == 64
    assert all(math.isfinite(finding["mean"]) for finding in result["findings"])
    page = (tmp_path / "dead-neurons.md").read_text()
    assert "64 nets on noise: 784 - 4 x depth" in page
    assert "Not measured: the whole grid (`--full`, meant for a GPU), with 128 units and 5 epochs" in page
    assert "5 epochs and also activation LeakyReLU, p 0.2, 0.8, learning rate 0.01, init" in page
    for depth in TINY.depth:
        assert f"](dead-neurons-depth{depth}.png)" in page
        png = tmp_path / f"dead-neurons-depth{depth}.png"
        assert described(png) == dead_neurons.digest(result["rows"])
    assert "Written to" in capsys.readouterr().out


@pytest.mark.parametrize("module", ["scipy.stats", "matplotlib.figure"])
def test_what_it_needs_is_tried_before_training(module, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dead_neurons, "load", lambda _: pytest.fail("too late"))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit) as stop:
        dead_neurons.main(["--out", str(tmp_path)], TINY)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert f"{module} doesn't import" in error
    assert "pip install -e '.[study]'" in error


@pytest.mark.parametrize(
    "taken", ["dead_neurons.json", "dead-neurons-depth2.png", "parts/ELU-depth1-SGD-lr0.1.json"]
)
def test_out_is_tried_before_training(taken, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dead_neurons, "load", lambda _: pytest.fail("too late"))
    (tmp_path / taken).mkdir(parents=True)
    with pytest.raises(SystemExit) as stop:
        dead_neurons.main(["--out", str(tmp_path)], TINY)
    assert stop.value.code == 2
    assert f"{taken} can't be written (Is a directory); --out has to" in capsys.readouterr().err


def test_the_page_is_the_committed_results():
    path = ROOT / "benchmarks" / "results" / "dead-neurons" / "dead_neurons.json"
    result = json.loads(path.read_text())
    assert dead_neurons.page(result) == (ROOT / "docs" / "dead-neurons.md").read_text()
    for stored, found in zip(result["findings"], dead_neurons.findings(result["rows"]), strict=True):
        numbers = [name for name, value in found.items() if isinstance(value, int | float)]
        assert [stored[name] for name in numbers] == pytest.approx([found[name] for name in numbers])
        assert {**stored, **{name: found[name] for name in numbers}} == found
    for depth in result["grid"]["depth"]:
        assert described(ROOT / "docs" / f"dead-neurons-depth{depth}.png") == dead_neurons.digest(
            result["rows"]
        )


def test_the_committed_study_is_the_reduced_one_from_scratch():
    """On all digits, within its five minutes."""
    result = json.loads((ROOT / "benchmarks" / "results" / "dead-neurons" / "dead_neurons.json").read_text())
    assert result["command"] == "python benchmarks/dead_neurons.py"
    assert result["grid"] == json.loads(json.dumps(dataclasses.asdict(dead_neurons.REDUCED)))
    assert result["grid"]["seeds"] >= 5
    assert (result["data"]["train"], result["data"]["test"]) == (60000, 10000)
    assert result["took"]["kept"] == 0
    assert result["took"]["seconds"] < 300


def test_the_whole_grid():
    grid = dead_neurons.Grid()
    assert len(list(grid.parts())) * len(grid.nets()) >= 3 * 4 * 3 * 3 * 2 * 2 * 5
