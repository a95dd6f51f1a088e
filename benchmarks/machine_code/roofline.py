"""Predicted times, from counts. They come from a model and are no measurements.

A kernel's time is that of its busiest resource. Memory counts at 92 % of its bandwidth. The four
schedulers count at 85 % of one warp instruction per clock each, the pipes at their lanes per clock. Tensors
are assumed to be large, so launches, tails and caches are left out. Clocks are those that a loaded GPU
sustains.
"""

from typing import NamedTuple

from benchmarks.machine_code.sass import Pipes

BANDWIDTH = 0.92
ISSUE = 0.85
# Lanes per clock and multiprocessor.
ISSUED, ALU, FMA_HEAVY, XU = 128, 64, 64, 16


class Gpu(NamedTuple):
    """The facts about a GPU that the model uses.

    Attributes:
        name: the name in tables.
        target: the target of its machine code.
        multiprocessors: number of multiprocessors.
        gigahertz: sustained clock.
        terabytes: memory bandwidth in TB/s.
        fma: lanes per clock and multiprocessor of the whole FMA pipe.
    """

    name: str
    target: str
    multiprocessors: int
    gigahertz: float
    terabytes: float
    fma: int


GPUS = (
    Gpu("A100", "sm_80", 108, 1.41, 2.039, 64),
    Gpu("H100", "sm_90", 132, 1.755, 3.35, 128),
    Gpu("H200", "sm_90", 132, 1.755, 4.8, 128),
    Gpu("B200", "sm_100", 148, 1.85, 8.0, 128),
)


class Prediction(NamedTuple):
    """A predicted time.

    Attributes:
        picoseconds: predicted time per element.
        bound_by: the resource that is busy the longest.
        over_memory: the predicted time divided by the memory time.
    """

    picoseconds: float
    bound_by: str
    over_memory: float


def predict(gpu: Gpu, instructions: float, pipes: Pipes, bytes: float) -> Prediction:
    """Predict the time per element of a kernel, from its counts per element."""
    slots = gpu.multiprocessors * gpu.gigahertz * 1e-3  # per picosecond, of one lane each
    times = {
        "memory": bytes / (BANDWIDTH * gpu.terabytes),
        "issue": instructions / (ISSUE * ISSUED * slots),
        "ALU": pipes.alu / (ALU * slots),
        "FMA": (pipes.fma + pipes.fma_heavy) / (gpu.fma * slots),
        "FMA-heavy": pipes.fma_heavy / (FMA_HEAVY * slots),
        "XU": pipes.xu / (XU * slots),
    }
    bound_by = max(times, key=times.__getitem__)
    return Prediction(round(times[bound_by], 4), bound_by, round(times[bound_by] / times["memory"], 3))
