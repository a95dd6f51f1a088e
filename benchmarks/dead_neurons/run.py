"""All jobs of some regimes, several at a time, with the time that is left."""

import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import torch

from benchmarks.mnist_data import Digits

from . import store
from .job import perform
from .regimes import Job


def run(jobs: Sequence[Job], digits: Digits, folder: Path, processes: int) -> None:
    """Run the jobs whose results `folder` lacks, and write these there."""
    folder.mkdir(parents=True, exist_ok=True)
    data = store.digest(digits)
    todo = [job for job in jobs if store.load(job, data, folder) is None]
    if len(todo) < len(jobs):
        print(f"{len(jobs) - len(todo)} of {len(jobs)} jobs are in {folder}")
    if not todo:
        return
    context = multiprocessing.get_context("spawn")
    waiting: Queue[Job | None] = context.Queue()
    told: Queue[tuple[str, float]] = context.Queue()
    for job in [*todo, *[None] * processes]:
        waiting.put(job)
    workers = [
        context.Process(target=_work, args=(waiting, told, digits, data, folder), daemon=True)
        for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    _report(todo, told, workers)


def _work(waiting: Any, told: Any, digits: Digits, data: str, folder: Path) -> None:
    torch.set_num_threads(1)  # results depend on it, in the last digits
    while (job := waiting.get()) is not None:
        result = perform(job, digits, lambda share, name=job.name: told.put((name, share)))  # type: ignore[misc]
        store.save(job, result, data, folder)
        told.put((job.name, 1.0))


def _report(todo: Sequence[Job], told: Any, workers: Sequence[Any]) -> None:
    """Print a line for each job that is done. A job's weight is its steps, times its layers."""
    weights = {job.name: _weight(job) for job in todo}
    shares = dict.fromkeys(weights, 0.0)
    start = time.perf_counter()
    while sum(share == 1.0 for share in shares.values()) < len(todo):
        try:
            name, share = told.get(timeout=5)
        except Exception as error:  # the queue's Empty: is anybody still at work?
            if any(worker.exitcode not in (None, 0) for worker in workers):
                raise SystemExit("a process of the study ended early; run it again to go on") from error
            continue
        shares[name] = share
        done = sum(weights[job] * share for job, share in shares.items()) / sum(weights.values())
        if share == 1.0 and done > 0:
            left = (time.perf_counter() - start) * (1 - done) / done
            print(f"{name}: {done:.0%} done, about {left / 60:.0f} minutes left", flush=True)


def _weight(job: Job) -> float:
    regime = job.regime
    steps = regime.tasks * regime.epochs * regime.train / regime.batch
    return steps * len(job.arms) * (1 + 0.25 * (len(regime.hidden) - 1))
