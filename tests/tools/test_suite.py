"""The benchmark suite: no row without synchronising, none without a check, and the check finds mistakes."""

import functools
import json
import subprocess
import sys

import pytest
import torch
from cases import ROOT, activations, environment
from torch import nn

from benchmarks import backends, correctness, report
from fusedact import rows


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs rows of the suite: its output, its exit code and what it stored."""
    pytest.importorskip("pytest_benchmark", reason="needs the extra `bench`")
    pytest.importorskip("tqdm", reason="needs the extra `mnist`")

    def rows(*arguments, plugin=""):
        folder = tmp_path_factory.mktemp("run")
        (folder / "planted.py").write_text(plugin)
        path = folder / "run.json"
        command = [sys.executable, "-m", "pytest", "benchmarks", "--benchmark-only", "-p", "no:cacheprovider"]
        command += ["-p", "planted", "--quick", "--benchmark-json", str(path), *arguments]
        # A worker of xdist times nothing.
        alone = {name: v for name, v in environment(folder).items() if not name.startswith("PYTEST_")}
        done = subprocess.run(
            command, cwd=ROOT, env=alone, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        stored = json.loads(path.read_text()) if path.exists() and path.stat().st_size else None
        return done.stdout, done.returncode, stored, path

    return rows


@pytest.fixture(scope="module")
def small(run):
    return run("-k", "8192 and (copy or relu-fused or relu-eager)")


def test_rows_record_what_the_report_reads(small):
    output, code, stored, path = small
    assert code == 0, output
    loaded = report.load(path)
    assert {row.info["kind"] for row in loaded.rows} == {"copy", "layer"}
    assert {row.info["direction"] for row in loaded.rows if row.is_a(kind="layer")} == {
        "forward",
        "backward",
        "both",
    }
    assert not [row for row in loaded.rows if row.refused]
    for row in loaded.rows:
        assert row.info["gigabytes_per_second"] == pytest.approx(row.info["bytes"] / row.seconds / 1e9)
    assert stored["benchmarks"][0]["extra_info"]["versions"]["torch"] == torch.__version__


def test_every_row_is_timed_by_the_clock_that_synchronises(small):
    assert {row["options"]["timer"] for row in small[2]["benchmarks"]} == {"synchronised_clock"}


def test_a_wrong_row_is_red_stored_and_refused(run):
    plugin = "from benchmarks import correctness\ncorrectness.wrong = lambda *arguments: 'planted'\n"
    output, code, stored, path = run("-k", "8192 and relu-fused-forward", plugin=plugin)
    assert code == 1, output
    assert {row["extra_info"]["wrong"] for row in stored["benchmarks"]} == {"planted"}
    assert "refused: wrong result" in report.text(report.load(path))


def test_other_activations_are_chosen_by_name(run):
    output, code, _, _ = run(
        "--collect-only", "-q", "-k", "8192 and fused-both", "--activations", "mish,gelu_tanh"
    )
    assert code == 0, output
    cases = [line.partition("[")[2] for line in output.splitlines() if "test_layer[" in line]
    assert cases == ["float32-8192-gelu_tanh-fused-both]", "float32-8192-mish-fused-both]"]
    output, code, _, _ = run("--activations", "mish,gleu")
    assert code != 0
    assert "gleu: choose of relu" in output


def test_the_run_ends_in_time_and_says_what_it_left_out(run):
    output, code, stored, _ = run("-k", "copy", "--minutes", "0")
    assert code == 0, output
    assert "the run's 0 minutes are over" in output
    assert stored is None
    if not torch.cuda.is_available():
        assert "no GPU here, so left out are" in output


@activations
def test_a_backend_has_the_rows_parameters(activation):
    """Of fusedact's layers and eager's, the same formula."""
    layer = backends.fused(activation)
    own, given = backends.call(activation)
    assert layer.row is own
    assert {name: getattr(layer, name) for name in given} == given
    x = torch.linspace(-3, 3, 100)
    expected = activation.function(x, *backends.values(activation))
    assert torch.equal(layer.eval()(x), expected)
    assert torch.equal(backends.alone(activation)(x), expected)


class Dropout(nn.Module):
    """activation + dropout with a mistake."""

    def __init__(self, activation, mistake=None):
        super().__init__()
        self.activation, self.mistake = backends.alone(activation), mistake

    def forward(self, x):
        p = 0.45 if self.mistake == "rate" else backends.P
        keep = torch.rand(x.shape, device=x.device) >= p
        scale = 1.0 if self.mistake == "scale" else 1 / (1 - backends.P)
        y = (x if self.mistake == "activation" else self.activation(x)) * keep * scale
        if self.mistake == "gradient":
            return y.detach() + (x - x.detach())
        return y


@pytest.fixture
def x():
    return torch.randn(2, 20_000).unbind()


@activations
def test_right_layers_pass_the_check(activation, x):
    assert correctness.wrong("fused", activation, backends.fused(activation), *x) is None
    assert correctness.wrong("compiled", activation, Dropout(activation), *x) is None


@activations
@pytest.mark.parametrize("mistake", ["rate", "scale", "activation", "gradient"])
def test_wrong_layers_do_not(activation, mistake, x):
    if activation is rows.IDENTITY and mistake == "activation":
        pytest.skip("an identity left out is no mistake")
    assert correctness.wrong("compiled", activation, Dropout(activation, mistake), *x)


@activations
def test_another_mask_is_not_eagers(activation, x):
    assert (
        correctness.wrong("fused", activation, Dropout(activation), *x)
        == "value is not eager's of the same seed"
    )


@activations
def test_replays(activation):
    x, dy = torch.rand(2, 1000).add(1).unbind()
    first, second = (torch.rand(2, 1000) < 0.5).unbind()
    x.requires_grad_()
    value = backends.alone(activation)(x)
    (gradient,) = torch.autograd.grad(value, x, dy)
    x, value = x.detach(), value.detach()
    y, dx, earlier = 2 * value * second, 2 * gradient * second, 2 * value * first
    wrong = functools.partial(correctness.wrong_replay, activation, x, dy)
    assert wrong(y, dx, earlier) is None
    assert wrong(y, dx, y) == "two replays draw one mask"
    assert wrong(y / 2, dx, earlier).startswith("value")
    if gradient.any():  # hardtanh's is 0 from 1 on
        assert wrong(y, 2 * gradient * first, earlier).startswith("gradient")
