"""The kernels' machine code: no shared memory, barriers or spills, and no more of it than torch.compile's.

Kernels compile in processes of their own: the other tests may have chosen Triton's interpreter.
"""

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cases import ENGINE, EVERY, ROOT, environment

from benchmarks.machine_code import __main__ as command
from benchmarks.machine_code import forms, kernels, peers, tables
from benchmarks.machine_code.row import Row, load, save

RESULTS = ROOT / "benchmarks" / "results" / "machine-code"
# The compiler spills four registers here, for Blackwell.
SPILLED = {("fusedact", "forward", "relu6", "bfloat16", "eager", "sm_100")}
SLACK = 0.25  # instructions per element: what the compiler's order of the same work may change


def count(file: Path, *options: str) -> list[Row]:
    """Of kernels compiled here and now."""
    pytest.importorskip("triton", reason="needs Triton's compiler")
    line = [sys.executable, "-m", "benchmarks.machine_code", "--json", str(file), *options]
    done = subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return load(file)


def wasteful(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.shared_bytes or row.barriers or row.spill_bytes or row.narrow_accesses]


def test_every_row(tmp_path):
    """In bfloat16 for sm_90: nothing wasted, and no more instructions than are committed."""
    rows = count(tmp_path / "rows.json", "--target", "sm_90", "--dtype", "bfloat16")
    assert {row.activation for row in rows} == {row.name for row in EVERY}
    assert not wasteful(rows)
    committed = {row.key: row for row in load(RESULTS / "fusedact.json")}
    if {row.triton for row in rows} != {row.triton for row in committed.values()}:
        pytest.skip("instructions are not compared: none are committed for this Triton")
    more = [
        row
        for row in rows
        if row.instructions_per_element > committed[row.key].instructions_per_element + SLACK
    ]
    assert not more, "more instructions than are committed: see CONTRIBUTING.md"


def committed() -> Iterator[tuple[Row, Row]]:
    """Each kernel's committed counts, and those of torch.compile's for the same."""
    theirs = {
        (row.activation, row.kernel, row.dtype, row.target): row for row in load(RESULTS / "peers.json")
    }
    for row in load(RESULTS / "fusedact.json"):
        if row.kernel in ("forward", "backward"):
            yield row, theirs[row.activation, row.kernel, row.dtype, row.target]


def test_no_kernel_is_predicted_slower_than_torch_compiles():
    """By the committed counts: each kernel, eager's mapping and fast's, on every GPU."""
    slower = {
        (mine.key, gpu)
        for mine, theirs in committed()
        for gpu, predicted in mine.predicted.items()
        if predicted["picoseconds"] > theirs.predicted[gpu]["picoseconds"]
    }
    assert not slower


def test_more_instructions_than_torch_compiles_are_accounted_for():
    """In docs/kernels.md: where accuracy in float32 takes them, in kernels that memory binds."""
    more = {
        (mine.activation, mine.kernel, mine.dtype)
        for mine, theirs in committed()
        if mine.instructions_per_element > theirs.instructions_per_element and mine.target == "sm_90"
    }
    names = ("celu", "hardswish", "quick_gelu", "sigmoid", "silu", "softplus", "tanhshrink")
    assert more == {(name, "backward", "float32") for name in names}


@pytest.mark.parametrize(
    "options",
    [
        ("--target", "sm_90", "--dtype", "float16", "float32"),
        ("--target", "sm_80", "sm_100", "gfx942", "--dtype", "bfloat16"),
    ],
    ids=["dtypes", "targets"],
)
def test_no_kind_of_kernel_wastes(options, tmp_path):
    """One row for each kind of saving, in the other dtypes and for the other targets."""
    names = [row.name for row in ENGINE]
    rows = count(tmp_path / "rows.json", *options, "--activation", *names)
    assert not wasteful(rows)


def test_the_committed_counts_are_whole():
    """Of every kernel, and of torch.compile's for every pair."""
    mine, theirs = load(RESULTS / "fusedact.json"), load(RESULTS / "peers.json")
    anew = "count them anew: see CONTRIBUTING.md"
    assert {row.key for row in mine} == {
        ("fusedact", case.kernel, case.activation.name, build.dtype, case.rng, build.target)
        for case in kernels.cases()
        for build in kernels.USUAL
    }, anew
    assert {row.key for row in theirs} == {
        ("torch.compile", kernel, activation.name, build.dtype, "", build.target)
        for kernel in ("forward", "backward")
        for activation in EVERY
        for build in kernels.USUAL
    }, anew
    assert {row.key for row in wasteful(mine)} == SPILLED


def made_up(**changes: object) -> Row:
    predicted = {"H100": {"picoseconds": 2.0, "bound_by": "memory", "over_memory": 1.0}}
    row = Row(
        *("fusedact", "forward", "relu", "bfloat16", "eager", "sm_90"),
        *(22.0, 0, 0, 0, 70, 0, 4.125, 0.125, 14.0, 1.0, 10.0, 0.0, 0.5, "3.8.0", predicted),
    )
    return dataclasses.replace(row, **changes)


def test_rows_return_from_their_file(tmp_path):
    rows = [made_up(), made_up(rng="fast", alu=None)]
    save(rows, tmp_path / "rows.json")
    assert load(tmp_path / "rows.json") == rows
    assert len((tmp_path / "rows.json").read_text().splitlines()) == 4


def test_json_has_these_keys():
    assert {field.name for field in dataclasses.fields(Row)} >= {
        *("kernel", "activation", "dtype", "rng", "target", "instructions_per_element", "shared_bytes"),
        *("barriers", "spill_bytes", "registers", "narrow_accesses", "bytes_per_element"),
        *("saved_bytes_per_element", "alu", "fma", "fma_heavy", "xu", "memory", "predicted"),
    }


def test_the_comparison():
    slow = {"H100": {"picoseconds": 4.0, "bound_by": "issue", "over_memory": 1.5}}
    peer = made_up(backend="torch.compile", rng="", instructions_per_element=40.5, predicted=slow)
    rows = [made_up(), made_up(kernel="backward", instructions_per_element=7.0), peer]
    rows += [dataclasses.replace(peer, kernel="backward", saved_bytes_per_element=3.0)]
    head, _, line = tables.comparison(rows, "bfloat16", "H100").splitlines()
    found = dict(zip(head.split(" | ")[1:], line.split(" | ")[1:], strict=True))
    assert found["instructions, eager"] == "22 + 7"
    assert found["instructions, fast"] == "-"
    assert found["instructions, torch.compile"] == "40.5 + 40.5"
    assert found["predicted, ps, eager"] == "4.00"
    assert found["over torch.compile, eager"] == "2.00"


def test_refuses_the_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit, match=r"\ATRITON_INTERPRET is set: [^\n]+\Z"):
        command.main([])


def test_refuses_without_triton(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(SystemExit, match=r"\ATriton is not installed[^\n]+\Z"):
        command.main([])


def test_peers_need_a_device(monkeypatch):
    monkeypatch.setattr(peers.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--peers needs a CUDA device"):
        next(peers.measure_all(EVERY, kernels.USUAL))


def test_every_form_fits_the_source_and_is_counted():
    """`--forms` replaces text of the source, and docs/kernels.md shows what it counts."""
    for changes in forms.FORMS.values():
        for change in changes:
            assert (forms.PACKAGE / change.file).read_text().count(change.old) == 1, change
    for name in ("forms.json", "forms-other-dtypes.json"):
        assert {row.backend for row in load(RESULTS / name)} == set(forms.FORMS)
