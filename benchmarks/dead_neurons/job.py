"""One job: its nets trained, and measured on the way."""

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.mnist_data import Digits

from .nets import CLASSES, Measured, Stack, loss_of, measure, optimiser_of
from .regimes import Job


def perform(
    job: Job, digits: Digits, progress: Callable[[float], None] = lambda share: None
) -> dict[str, Any]:
    """Train a job's nets and return its result; `progress` is told the share that is done.

    The result depends on the job, the digits and the number of threads alone, to the last digit.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    regime = job.regime
    order = torch.Generator().manual_seed(2**20 + job.seed)  # of digits and pixels: the same for all jobs
    masks = torch.Generator().manual_seed(2**21 + job.seed)
    stack = Stack(job.arms, (digits.train_images.shape[1], *regime.hidden, CLASSES), job.seed)
    optimiser = optimiser_of(stack, job.optimiser)
    test_images, test_labels = digits.test_images[: regime.test], digits.test_labels[: regime.test]
    history = [measure(stack, test_images, test_labels)]
    steps = regime.tasks * regime.epochs * -(-regime.train // regime.batch)
    done = 0
    for _ in range(regime.tasks):
        pixels = _pixels(regime.tasks > 1, digits.train_images.shape[1], order)
        chosen = torch.randperm(len(digits.train_labels), generator=order)[: regime.train]
        for epoch in range(regime.epochs):
            for batch in _batches(chosen, regime.batch, order):
                logits, _ = stack(digits.train_images[batch][:, pixels], masks)
                optimiser.zero_grad()
                loss_of(logits, digits.train_labels[batch]).sum().backward()
                optimiser.step()
                done += 1
                if done % 50 == 0:
                    progress(done / steps)
            if regime.tasks == 1 and (epoch + 1) % regime.every == 0:
                history.append(measure(stack, test_images, test_labels))
        if regime.tasks > 1:
            history.append(measure(stack, test_images[:, pixels], test_labels))
    seen = measure(
        stack, digits.train_images[chosen[: regime.test]], digits.train_labels[chosen[: regime.test]]
    )
    seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    nets = [_net(job, i, history) for i in range(len(job.arms))]
    if regime.tasks == 1:
        for net, accuracy in zip(nets, seen.accuracy.tolist(), strict=True):
            net["train_accuracy"] = round(100 * accuracy, 3)
    return {"nets": nets, "seconds": {name: round(value, 1) for name, value in seconds.items()}}


def _pixels(permuted: bool, count: int, order: torch.Generator) -> Tensor:
    return torch.randperm(count, generator=order) if permuted else torch.arange(count)


def _batches(chosen: Tensor, size: int, order: torch.Generator) -> Iterator[Tensor]:
    yield from chosen[torch.randperm(len(chosen), generator=order)].split(size)


def _net(job: Job, i: int, history: list[Measured]) -> dict[str, Any]:
    """One net's figures, a list entry for each time it was measured and, for units, each hidden layer."""
    arm = job.arms[i]
    silent = [[layer[i] for layer in measured.silent] for measured in history]
    pairs = itertools.pairwise(silent)
    return {
        "activation": arm.activation,
        "p": arm.p,
        "init": arm.init,
        "accuracy": [round(100 * measured.accuracy[i].item(), 3) for measured in history],
        "loss": [_rounded(measured.loss[i].item()) for measured in history],
        "silent": [[int(layer.sum()) for layer in layers] for layers in silent],
        "revived": [[int((old & ~new).sum()) for old, new in zip(*pair, strict=True)] for pair in pairs],
        "finite": bool(history[-1].finite[i]),
    }


def _rounded(value: float) -> float | None:
    """To five digits; None where JSON has no number for it."""
    return float(f"{value:.5g}") if value == value and abs(value) != float("inf") else None
