"""The regimes of training, and the arms of each."""

import itertools
from dataclasses import asdict, dataclass
from typing import Any

ACTIVATIONS = ("relu", "leaky_relu", "elu")
PROBABILITIES = (0.0, 0.2, 0.5, 0.8)
PYTORCH, HE = "pytorch", "he"


@dataclass(frozen=True)
class Optimiser:
    """One of PyTorch's, with its learning rate."""

    name: str
    lr: float

    def __str__(self) -> str:
        return f"{self.name}-{self.lr:g}"


ADAM, FAST_ADAM, SGD = Optimiser("Adam", 1e-3), Optimiser("Adam", 1e-2), Optimiser("SGD", 0.1)


@dataclass(frozen=True)
class Arm:
    """The settings in which the nets of one job differ."""

    activation: str
    p: float
    init: str


@dataclass(frozen=True)
class Regime:
    """How nets are trained.

    Attributes:
        name: of the option and of the files.
        hidden: units of each hidden layer.
        train: training digits, of each task.
        epochs: of each task.
        tasks: each permutes the pixels anew; 1 leaves them as they are.
        every: epochs from one evaluation to the next.
        seeds: how many.
        optimisers: each trains a job of its own.
        inits: initialisations of the arms.
        narrow: with another optimiser than Adam at 0.001, PyTorch's initialisation alone.
        batch: digits of a step.
        test: digits on which units and accuracy are measured.
    """

    name: str
    hidden: tuple[int, ...] = (128,)
    train: int = 60_000
    epochs: int = 5
    tasks: int = 1
    every: int = 1
    seeds: int = 10
    optimisers: tuple[Optimiser, ...] = (ADAM, FAST_ADAM, SGD)
    inits: tuple[str, ...] = (PYTORCH, HE)
    narrow: bool = False
    batch: int = 64
    test: int = 10_000

    def jobs(self) -> list["Job"]:
        """Return every job, seed by seed."""
        return [Job(self, optimiser, seed) for seed in range(self.seeds) for optimiser in self.optimisers]


@dataclass(frozen=True)
class Job:
    """The nets of one regime, optimiser and seed, which are trained at once."""

    regime: Regime
    optimiser: Optimiser
    seed: int

    @property
    def name(self) -> str:
        return f"{self.regime.name}-{self.optimiser}-{self.seed}"

    @property
    def arms(self) -> list[Arm]:
        inits = (PYTORCH,) if self.regime.narrow and self.optimiser != ADAM else self.regime.inits
        return [Arm(*axes) for axes in itertools.product(ACTIVATIONS, PROBABILITIES, inits)]

    @property
    def evaluations(self) -> int:
        """How often the nets are measured; the first time is before training."""
        return 1 + (self.regime.tasks if self.regime.tasks > 1 else self.regime.epochs // self.regime.every)

    def settings(self) -> dict[str, Any]:
        """Return the settings that decide the job's result, for its file."""
        regime = {key: value for key, value in asdict(self.regime).items() if key != "seeds"}
        return {"regime": regime, "optimiser": str(self.optimiser), "seed": self.seed}


REGIMES = (
    Regime("tutorial", narrow=True),
    Regime("deep", hidden=(128,) * 4, seeds=5, optimisers=(ADAM, SGD), narrow=True),
    Regime("overfitting", train=5_000, epochs=60, every=5, seeds=5, optimisers=(ADAM, SGD), inits=(PYTORCH,)),
    Regime("continual", train=10_000, epochs=1, tasks=60, seeds=5, optimisers=(ADAM, SGD), inits=(PYTORCH,)),
)
# The same questions in five minutes: they show that everything runs, and no effect.
QUICK = (
    Regime("tutorial", train=6_000, epochs=2, seeds=2, narrow=True, test=2_000),
    Regime(
        "deep",
        hidden=(128,) * 4,
        train=6_000,
        epochs=1,
        seeds=2,
        optimisers=(ADAM, SGD),
        narrow=True,
        test=2_000,
    ),
    Regime(
        "overfitting",
        train=1_000,
        epochs=10,
        every=5,
        seeds=2,
        optimisers=(ADAM, SGD),
        inits=(PYTORCH,),
        test=2_000,
    ),
    Regime(
        "continual",
        train=1_000,
        epochs=1,
        tasks=6,
        seeds=2,
        optimisers=(ADAM, SGD),
        inits=(PYTORCH,),
        test=2_000,
    ),
)
