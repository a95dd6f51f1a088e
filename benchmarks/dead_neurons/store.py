"""Files: one for each job while the study runs, and all of them in one when it is done."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import versions
from benchmarks.mnist_data import Digits

from .regimes import Job


class DamagedError(Exception):
    """A file can't be used; the message names the file, the reason and the cure."""


def digest(digits: Digits) -> str:
    """Return a digest that identifies a set of digits."""
    sums = hashlib.sha256()
    for tensor in (digits.train_images, digits.train_labels, digits.test_images, digits.test_labels):
        sums.update(tensor.numpy().tobytes())
    return sums.hexdigest()[:16]


def path_of(job: Job, folder: Path) -> Path:
    return folder / f"{job.name}.json"


def save(job: Job, result: dict[str, Any], data: str, folder: Path) -> None:
    """Write a job's file, whole or not at all."""
    text = json.dumps({"settings": job.settings(), "data": data, "versions": versions(), **result})
    path = path_of(job, folder)
    half = path.with_suffix(f".{os.getpid()}")
    half.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}\n")
    half.replace(path)


def load(job: Job, data: str, folder: Path) -> dict[str, Any] | None:
    """Return the content of a job's file; None if it is missing, or has other settings or digits.

    Raises:
        DamagedError: the file was cut or changed.
    """
    path = path_of(job, folder)
    if not path.exists():
        return None
    first, _, rest = path.read_text(errors="replace").partition("\n")
    text = rest.removesuffix("\n")
    if hashlib.sha256(text.encode()).hexdigest() != first:
        raise DamagedError(f"{path} is damaged. Delete it, and its nets are trained again")
    content: dict[str, Any] = json.loads(text)
    same = content["settings"] == json.loads(json.dumps(job.settings())) and content["data"] == data
    return content if same else None


def collect(jobs: Sequence[Job], data: str, source: str, folder: Path, out: Path) -> None:
    """Write all jobs' results into one file, a line for each job."""
    found = {job: load(job, data, folder) for job in jobs}
    if missing := [job.name for job in jobs if found[job] is None]:
        raise DamagedError(f"{folder} lacks {', '.join(missing)}. Run the study again, and it trains those")
    lines = ",\n".join(json.dumps(found[job], separators=(",", ":")) for job in jobs)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(f'{{"source": {json.dumps(source)}, "jobs": [\n{lines}\n]}}\n')
