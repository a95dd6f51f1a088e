"""The study: its nets are PyTorch's, its counts the monitor's, its files and statistics can be trusted."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from cases import ROOT
from torch import nn

import fusedact
from benchmarks.dead_neurons import __main__ as page_command
from benchmarks.dead_neurons import job as jobs
from benchmarks.dead_neurons import page, questions, store
from benchmarks.dead_neurons.nets import Stack, loss_of, measure, optimiser_of
from benchmarks.dead_neurons.questions import ACCURACY, SILENT, At, Question, Results
from benchmarks.dead_neurons.regimes import ACTIVATIONS, ADAM, FAST_ADAM, HE, PYTORCH, SGD, Arm, Job, Regime
from benchmarks.dead_neurons.text import SECTIONS
from benchmarks.mnist_data import Digits

TINY = Regime("tutorial", hidden=(12, 8), train=96, epochs=2, seeds=2, batch=16, test=64)
MODULES = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "elu": nn.ELU}
ARMS = [Arm(name, p, init) for name in ACTIVATIONS for p in (0.0, 0.5) for init in (PYTORCH, HE)]


@pytest.fixture(scope="module")
def digits():
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(160, 20, generator=generator), torch.arange(160) % 10
    return Digits(images[:96], labels[:96], images[96:], labels[96:], "made up")


def net_of(stack, i):
    """One net of a stack, as people write it."""
    layers = []
    for weight, bias in zip(stack.weights, stack.biases, strict=True):
        linear = nn.Linear(*weight[i].shape)
        linear.weight.data, linear.bias.data = weight[i].detach().t().clone(), bias[i, 0].detach().clone()
        layers += [linear, MODULES[stack.arms[i].activation](), nn.Dropout(stack.arms[i].p)]
    return nn.Sequential(*layers[:-2])


def test_silent_units_are_those_that_the_monitor_calls_dead_or_never_positive(digits):
    stack = Stack(ARMS, (20, 12, 8, 10), seed=1)
    for bias in stack.biases:
        bias.data[:, :, ::3] -= 4.0
    measured = measure(stack, digits.test_images, digits.test_labels, chunk=24)
    for i in range(len(ARMS)):
        net = net_of(stack, i).eval()
        with fusedact.ActivityMonitor(net) as monitor:
            logits = net(digits.test_images)
        for layer, silent in zip(monitor.report().layers, measured.silent, strict=True):
            assert 0 < silent[i].sum() < len(silent[i])
            assert torch.equal(layer.fired == 0, silent[i])
            if ARMS[i].activation == "relu":
                assert torch.equal(layer.dead, silent[i])
        accuracy = (logits.argmax(1) == digits.test_labels).float().mean()
        torch.testing.assert_close(measured.accuracy[i], accuracy)


@pytest.mark.parametrize("optimiser", [ADAM, FAST_ADAM, SGD], ids=str)
def test_each_net_trains_as_it_would_alone(digits, optimiser):
    arms = [arm for arm in ARMS if arm.p == 0]
    stack = Stack(arms, (20, 12, 8, 10), seed=2)
    nets = [net_of(stack, i) for i in range(len(arms))]
    together = optimiser_of(stack, optimiser)
    for images, labels in zip(digits.train_images.split(16), digits.train_labels.split(16), strict=True):
        together.zero_grad()
        loss_of(stack(images, torch.Generator())[0], labels).sum().backward()
        together.step()
    kind = getattr(torch.optim, optimiser.name)
    for i, net in enumerate(nets):
        alone = kind(net.parameters(), lr=optimiser.lr)
        for images, labels in zip(digits.train_images.split(16), digits.train_labels.split(16), strict=True):
            alone.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()
            alone.step()
        torch.testing.assert_close(net[0].weight, stack.weights[0][i].t(), rtol=1e-4, atol=1e-5)


def test_dropout_keeps_and_scales_as_pytorchs():
    stack = Stack([Arm(name, 0.8, PYTORCH) for name in ACTIVATIONS], (20, 4000, 10), seed=3)
    stack.weights[0].data.zero_()
    stack.biases[0].data.fill_(1.0)
    stack.weights[1].data.fill_(1 / 4000)
    stack.biases[1].data.zero_()
    logits, _ = stack(torch.randn(50, 20), torch.Generator().manual_seed(1))
    assert logits.std() > 0
    torch.testing.assert_close(logits.mean(), torch.tensor(1.0), rtol=0, atol=0.02)
    torch.testing.assert_close(stack(torch.randn(2, 20))[0], torch.ones(3, 2, 10), rtol=1e-4, atol=0)


@pytest.mark.parametrize("init", [PYTORCH, HE])
def test_initial_weights_are_pytorchs(init):
    stack = Stack([Arm(name, 0.5, init) for name in ACTIVATIONS], (784, 128, 10), seed=4)
    linear = nn.Linear(784, 128)
    if init == HE:
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        assert not stack.biases[0].any()
    torch.testing.assert_close(stack.weights[0].std(), linear.weight.std(), rtol=0.02, atol=0)
    torch.testing.assert_close(stack.weights[0].abs().max(), linear.weight.abs().max(), rtol=0.25, atol=0)
    assert torch.equal(stack.weights[0][0], stack.weights[0][2])


@pytest.mark.parametrize("tasks", [1, 3])
def test_a_job_gives_the_same_result_to_the_last_digit(digits, tasks):
    job = Job(dataclasses.replace(TINY, tasks=tasks), FAST_ADAM, 1)
    first, second = (jobs.perform(job, digits)["nets"] for _ in range(2))
    assert first == second
    assert first != jobs.perform(dataclasses.replace(job, seed=0), digits)["nets"]
    assert {len(net["accuracy"]) for net in first} == {job.evaluations}
    for net in first:
        changes = np.diff(np.array(net["silent"]), axis=0)
        assert (np.array(net["revived"]) >= -changes).all()
    assert any(sum(map(sum, net["revived"])) for net in first)


def study(folder, *options):
    """The command, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.dead_neurons", *map(str, options), "--work", str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_a_stored_job_is_read_again_unless_its_settings_or_digits_differ(digits, tmp_path):
    job, data = Job(TINY, ADAM, 0), store.digest(digits)
    assert store.load(job, data, tmp_path) is None
    store.save(job, {"nets": [1]}, data, tmp_path)
    assert store.load(job, data, tmp_path)["nets"] == [1]
    assert store.load(Job(dataclasses.replace(TINY, epochs=3), ADAM, 0), data, tmp_path) is None
    assert store.load(job, "other", tmp_path) is None


@pytest.mark.parametrize(
    "damage", [lambda text: text[:-20], lambda text: "", lambda text: text.replace("1", "2")]
)
def test_a_damaged_file_is_noticed(digits, tmp_path, damage):
    job, data = Job(TINY, ADAM, 0), store.digest(digits)
    store.save(job, {"nets": [1]}, data, tmp_path)
    path = store.path_of(job, tmp_path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(store.DamagedError, match=f"{path.name} is damaged. Delete it"):
        store.load(job, data, tmp_path)


def test_results_are_collected_only_when_they_are_whole(digits, tmp_path):
    data, all_jobs = store.digest(digits), dataclasses.replace(TINY, optimisers=(ADAM,)).jobs()
    for job in all_jobs[:1]:
        store.save(job, jobs.perform(job, digits), data, tmp_path)
    with pytest.raises(store.DamagedError, match=all_jobs[1].name):
        store.collect(all_jobs, data, "made up", tmp_path, tmp_path / "out" / "tutorial.json")
    store.save(all_jobs[1], jobs.perform(all_jobs[1], digits), data, tmp_path)
    store.collect(all_jobs, data, "made up", tmp_path, tmp_path / "out" / "tutorial.json")
    found = json.loads((tmp_path / "out" / "tutorial.json").read_text())
    results = Results(found["jobs"])
    assert results.series(At("tutorial"), ACCURACY).shape == (2, 3)
    assert 0 <= results.series(At("tutorial"), SILENT).max() <= 100


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--processes", "0"), "'0': it must be a whole number from 1 on"),
        (("--regime", "deeper"), "invalid choice: 'deeper'"),
        (("--data", "nowhere"), "is missing"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, options, said):
    done = study(tmp_path, *options)
    assert done.returncode
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def made_up(effect, noise, seeds=10):
    """A regime's jobs in which p = 0.5 changes the accuracy by `effect`."""
    generator = np.random.default_rng(0)
    found = []
    for seed in range(seeds):
        base = generator.normal(90, 1)
        nets = [
            {
                "activation": "relu",
                "p": p,
                "init": PYTORCH,
                "silent": [[0], [64]],
                "accuracy": [10.0, base + (p > 0) * effect + generator.normal(0, noise)],
            }
            for p in (0.0, 0.5)
        ]
        regime = {"name": "tutorial", "hidden": [128]}
        found.append({"settings": {"regime": regime, "optimiser": str(ADAM), "seed": seed}, "nets": nets})
    return Results(found)


def test_an_effect_is_found_and_none_is_not_made_up():
    question = Question("works", ACCURACY, At("tutorial", p=0.0), At("tutorial", p=0.5))
    (answer,) = questions.answers(made_up(-0.5, 0.1), [question])
    assert answer.clear
    assert answer.low < -0.5 < answer.high < 0
    assert answer.seeds == 10
    (answer,) = questions.answers(made_up(0.0, 0.1), [question])
    assert not answer.clear
    assert answer.low < 0 < answer.high
    silent = Question("kills", SILENT, At("tutorial", time=0), At("tutorial"))
    (answer,) = questions.answers(made_up(0.0, 0.1), [silent])
    assert answer.clear
    assert (answer.old, answer.new, answer.low, answer.high) == (0, 50, 50, 50)


def test_probabilities_are_adjusted_as_holm_has_it():
    """The example of Holm's article's table, by hand: 4 p1, 3 p2, 2 p3, p4, never falling."""
    assert questions.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert questions.holm([0.5, 0.9]) == [1.0, 1.0]


def test_the_page_and_its_figures_are_what_the_results_make(tmp_path):
    """Byte for byte. Another matplotlib may draw the same with other bytes."""
    study = page.load(page_command.RESULTS)
    page.write(study, tmp_path)
    assert (tmp_path / "study.md").read_text() == (ROOT / "docs" / "study.md").read_text()
    made = sorted(path.name for path in tmp_path.glob("*.svg"))
    assert made == sorted(path.name for path in (ROOT / "docs").glob("study-*.svg"))
    assert made == sorted(f"study-{section.key}.svg" for section in SECTIONS)
    again = tmp_path / "again"
    again.mkdir()
    page.write(study, again)
    assert all((again / name).read_bytes() == (tmp_path / name).read_bytes() for name in made)


def test_there_are_nets_whose_units_die_and_nets_whose_units_do_not():
    results = page.load(page_command.RESULTS).results
    at = At("tutorial", p=0.5)
    assert results.at(dataclasses.replace(at, optimiser=FAST_ADAM), SILENT).min() > 10
    assert results.at(dataclasses.replace(at, optimiser=SGD), SILENT).max() < 1
    assert results.at(dataclasses.replace(at, time=0), SILENT).max() < 1


def test_a_sentence_that_the_results_do_not_support_stops_the_page():
    assert page.holds(True, "It is so.") == "It is so."
    with pytest.raises(ValueError, match="don't support this sentence any more: It is so"):
        page.holds(False, "It is so.")
