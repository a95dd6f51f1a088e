"""The GPU owner's command: order, resuming, damage, failures. Its steps here are small and need no GPU."""

import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import Step

MACHINE = {"device": "none", "versions": {}, "code": "0"}


def step(name, program, seconds=60, **files):
    """Notes that it ran in `ran`, beside what it writes."""
    program = f"open('ran', 'a').write('{name} ')\n{program}"
    return Step(
        name,
        [sys.executable, "-c", f"import os; os.chdir({str(files.pop('out'))!r})\n{program}"],
        seconds,
        **files,
    )


@pytest.fixture
def plan(tmp_path):
    return [
        step("first", "open('a', 'w').write('1'); print('fine')", writes=("a",), out=tmp_path),
        step("second", "open('b', 'w').write(open('a').read())", reads=("a",), writes=("b",), out=tmp_path),
        step("third", "", out=tmp_path),
    ]


def ran(out: Path) -> list[str]:
    """What ran since the last call, in order."""
    path = out / "ran"
    names = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return names


def test_runs_in_order_and_skips_what_is_done(plan, tmp_path, capsys):
    assert gpu.run(plan, tmp_path, MACHINE) == []
    assert ran(tmp_path) == ["first", "second", "third"]
    assert "first: done in 0 s. fine" in capsys.readouterr().out
    assert gpu.run(plan, tmp_path, MACHINE) == []
    assert ran(tmp_path) == []
    assert capsys.readouterr().out.count("done before") == 3


def test_goes_on_where_it_stopped(plan, tmp_path):
    gpu.run(plan[:1], tmp_path, MACHINE)
    ran(tmp_path)
    gpu.run(plan, tmp_path, MACHINE)
    assert ran(tmp_path) == ["second", "third"]


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"settings": {}}'])
def test_a_damaged_record_is_noticed(plan, tmp_path, capsys, damage):
    gpu.run(plan, tmp_path, MACHINE)
    ran(tmp_path)
    (tmp_path / "third.done.json").write_text(damage)
    gpu.run(plan, tmp_path, MACHINE)
    assert ran(tmp_path) == ["third"]
    assert "third.done.json is damaged" in capsys.readouterr().out


def test_a_changed_result_is_noticed(plan, tmp_path, capsys):
    gpu.run(plan, tmp_path, MACHINE)
    ran(tmp_path)
    (tmp_path / "b").write_text("2")
    gpu.run(plan, tmp_path, MACHINE)
    assert ran(tmp_path) == ["second"]
    assert "b changed since it was written" in capsys.readouterr().out
    (tmp_path / "b").unlink()
    gpu.run(plan, tmp_path, MACHINE)
    assert ran(tmp_path) == ["second"]


def test_a_changed_input_runs_again_what_reads_it(plan, tmp_path):
    gpu.run(plan, tmp_path, MACHINE)
    ran(tmp_path)
    plan[0] = step("first", "open('a', 'w').write('2')", writes=("a",), out=tmp_path)
    gpu.run(plan, tmp_path, MACHINE)
    assert ran(tmp_path) == ["first", "second"]
    assert (tmp_path / "b").read_text() == "2"


@pytest.mark.parametrize("name", MACHINE)
def test_another_machine_or_code_runs_all_again(plan, tmp_path, capsys, name):
    gpu.run(plan, tmp_path, MACHINE)
    ran(tmp_path)
    gpu.run(plan, tmp_path, {**MACHINE, name: "other"})
    assert ran(tmp_path) == ["first", "second", "third"]
    assert "of other code, versions, device or input" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("program", "files", "why"),
    [
        ("print('said before'); raise SystemExit(3)", {}, "exit code 3"),
        ("print('said before')", {"writes": ("missing",)}, "it wrote no missing"),
        ("print('said before')", {"says": "3 passed"}, "its output has no '3 passed'"),
        (
            "print('said before', flush=True); import time; time.sleep(60)",
            {"seconds": 2},
            "stopped after 2 s",
        ),
    ],
)
def test_a_failing_step_is_reported_and_repeated_alone(plan, tmp_path, capsys, program, files, why):
    plan[1] = step("second", program, out=tmp_path, **files)
    for expected in (["first", "second", "third"], ["second"]):
        assert gpu.run(plan, tmp_path, MACHINE) == ["second"]
        assert ran(tmp_path) == expected
        output = capsys.readouterr().out
        assert "  said before\n" in output
        assert why in output
        assert str(tmp_path / "second.log") in output


def test_what_an_earlier_run_wrote_is_no_result_of_a_failed_one(plan, tmp_path):
    gpu.run(plan, tmp_path, MACHINE)
    plan[0] = step("first", "raise SystemExit(1)", writes=("a",), out=tmp_path)
    gpu.run(plan, tmp_path, MACHINE)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("failing", [False, True])
def test_the_exit_code_and_what_to_commit(plan, tmp_path, monkeypatch, capsys, failing):
    if failing:
        plan[1] = step("second", "raise SystemExit(1)", out=tmp_path)
    monkeypatch.setattr(gpu, "steps", lambda out: plan)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Made-up GPU 80GB")
    if failing:
        with pytest.raises(SystemExit) as left:
            gpu.main(["--out", str(tmp_path)])
        assert left.value.code == 1
    else:
        gpu.main(["--out", str(tmp_path)])
    captured = capsys.readouterr()
    assert f"cp {tmp_path / 'suite.json'} benchmarks/results/gpu/made-up-gpu-80gb.json" in captured.out
    assert ("failed: second." in captured.err) == failing


def test_without_a_gpu_it_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as left:
        gpu.main(["--out", str(tmp_path)])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert "finds no GPU here" in error
    assert error.count("\n") == 1
    gpu.main(["--dry-run", "--out", str(tmp_path)])
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["masks", "tests", "suite", "mnist-fused", "mnist-eager", "report"]
    assert not list(tmp_path.iterdir())


def test_the_steps_run_what_is_there(tmp_path):
    for each in gpu.steps(tmp_path):
        for argument in each.command:
            if argument.startswith(("tests/", "benchmarks/")):
                assert (gpu.ROOT / argument).exists(), f"{each.name} runs {argument}"
