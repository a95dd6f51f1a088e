"""All tests and measurements that need a GPU, in one command of at most 20 minutes.

    PYTHONPATH=src python -m benchmarks.gpu [--out DIR] [--dry-run]

The first step compares masks and values with `nn.Dropout`'s, bit for bit. Then the tests, the benchmark
suite, MNIST and the report run. The command needs no network.

A step that passed is recorded and not repeated, so an interrupted run continues with the next step. A step
runs again if it failed, if its record or files are damaged, or if its code, versions or device have changed.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe_device, versions

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("pytest", "pytest_benchmark", "matplotlib", "scipy", "tqdm", "triton")
# The tests that can fail on a GPU and pass on a CPU; the masks' own tests run before them.
TESTS = ("tests/engine", "tests/contract", "tests/monitor")


@dataclass(frozen=True)
class Step:
    """One command, run in the repository's root.

    Attributes:
        seconds: the time limit, after which the step is stopped.
        reads, writes: files in the folder of the results. The record holds a digest of the files read. If a
            file to write is missing afterwards, the step has failed.
        says: a text that the output must have, since tests that were all skipped have shown nothing.
    """

    name: str
    command: list[str]
    seconds: float
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    says: str = ""


def steps(out: Path) -> list[Step]:
    """Return the steps in the order in which they run."""
    python = sys.executable
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    parallel = ["-n", "4"] if importlib.util.find_spec("xdist") else []
    mnist = [python, "benchmarks/mnist.py", "--device", "cuda", "--seeds", "0", "1", "2"]
    suite = [*pytest, "benchmarks", "--benchmark-only", "--minutes", "5"]
    comparison = "activation_comparison.json"
    return [
        Step(
            "masks",
            [*pytest, "tests/engine/test_cuda.py", "tests/engine/test_cuda_graphs.py"],
            180,
            says=" passed",
        ),
        Step("tests", [*pytest, *parallel, *TESTS], 300, says=" passed"),
        Step("suite", [*suite, "--benchmark-json", str(out / "suite.json")], 420, (), ("suite.json",)),
        *(
            Step(
                f"mnist-{backend}",
                [*mnist, "--backend", backend, "--out", str(out / f"mnist-{backend}")],
                120,
                writes=(f"mnist-{backend}/{comparison}",),
            )
            for backend in ("fused", "eager")
        ),
        Step(
            "report",
            [python, "-m", "benchmarks.report", str(out / "suite.json"), "--plots", str(out)],
            60,
            ("suite.json",),
            ("suite.png",),
        ),
    ]


def digest(*paths: Path) -> str:
    """Return a digest of the files' contents; a missing file changes it too."""
    found = hashlib.sha256()
    for path in paths:
        found.update(path.read_bytes() if path.exists() else b"missing")
        found.update(b"\0")
    return found.hexdigest()


def code() -> str:
    """Return a digest of all files in this tree that a step's result depends on."""
    files = sorted(
        path for folder in ("src", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")
    )
    return digest(*files)


def settings(step: Step, out: Path, machine: dict[str, Any]) -> dict[str, Any]:
    """Return the conditions under which a step's record is valid."""
    return {"command": step.command, "reads": digest(*(out / name for name in step.reads)), **machine}


def is_done(step: Step, out: Path, machine: dict[str, Any]) -> bool:
    """Whether the step is recorded as done; report a damaged record."""
    path = out / f"{step.name}.done.json"
    try:
        record = json.loads(path.read_text())
        same, written = record["settings"] == settings(step, out, machine), record["writes"]
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError) as error:
        print(f"{step.name}: {path} is damaged ({type(error).__name__}: {error}): runs again")
        return False
    if not same:
        print(f"{step.name}: {path} is of other code, versions, device or input: runs again")
        return False
    if written != digest(*(out / name for name in step.writes)):
        print(f"{step.name}: {', '.join(step.writes)} changed since it was written: runs again")
        return False
    return True


def perform(step: Step, out: Path, machine: dict[str, Any]) -> str | None:
    """Run the step with its output in a log, and record success; return the reason for a failure, or None."""
    record, log = out / f"{step.name}.done.json", out / f"{step.name}.log"
    for path in (record, *(out / name for name in step.writes)):
        path.unlink(missing_ok=True)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    try:
        with log.open("w") as file:
            code = subprocess.run(
                step.command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=step.seconds,
            ).returncode
    except subprocess.TimeoutExpired:
        return f"stopped after {step.seconds:g} s"
    if code:
        return f"exit code {code}"
    for name in step.writes:
        if not (out / name).exists():
            return f"it wrote no {name}"
    if step.says not in log.read_text(errors="replace"):
        return f"its output has no {step.says!r}"
    content = {
        "settings": settings(step, out, machine),
        "writes": digest(*(out / name for name in step.writes)),
    }
    new = record.with_suffix(".new")
    new.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(new, record)  # whole or not at all
    return None


def run(plan: Sequence[Step], out: Path, machine: dict[str, Any]) -> list[str]:
    """Run all steps, in spite of failures; return the names of the failed ones."""
    out.mkdir(parents=True, exist_ok=True)
    failed = []
    for step in plan:
        if is_done(step, out, machine):
            print(f"{step.name}: done before")
            continue
        print(f"{step.name}: at most {step.seconds:g} s ...", flush=True)
        start = time.monotonic()
        why = perform(step, out, machine)
        took = f"{time.monotonic() - start:.0f} s"
        log = out / f"{step.name}.log"
        lines = log.read_text(errors="replace").splitlines()
        if why is None:
            print(f"{step.name}: done in {took}. {lines[-1] if lines else ''}", flush=True)
        else:
            failed.append(step.name)
            print("\n".join(f"  {line}" for line in lines[-20:]))
            print(f"{step.name}: FAILED after {took}: {why}. All of it: {log}", flush=True)
    return failed


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "results" / "gpu",
        metavar="DIR",
        help="write the results to DIR (default: results/gpu)",
    )
    parser.add_argument("--dry-run", action="store_true", help="list the steps, run none")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    plan = steps(out)
    if options.dry_run:
        for step in plan:
            print(f"{step.name} (at most {step.seconds:g} s): {' '.join(step.command)}")
        return
    if not torch.cuda.is_available():
        parser.exit(
            2, f"{parser.prog}: torch {torch.__version__} finds no GPU here; --dry-run lists the steps\n"
        )
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        parser.exit(2, f"{parser.prog}: needs {', '.join(missing)}: pip install -e '.[test]'\n")
    device = describe_device(torch.device("cuda"))
    failed = run(plan, out, {"device": device, "versions": versions(), "code": code()})
    name = re.sub(r"\W+", "-", device.lower()).strip("-")
    print(f"\nRaw results: {out / 'suite.json'}; logs, tables (report.log) and plots beside it.")
    folder = "benchmarks/results/gpu"
    raw = f"{folder}/{name}.json"
    print(
        f"To commit them, with README.md and {folder}:\n"
        f"  mkdir -p {folder} && cp {out / 'suite.json'} {raw}\n"
        f"  PYTHONPATH=src python -m benchmarks.report {raw} --plots {folder} --readme README.md"
    )
    if failed:
        parser.exit(1, f"{parser.prog}: failed: {', '.join(failed)}. Run it again to repeat these alone.\n")


if __name__ == "__main__":
    main()
