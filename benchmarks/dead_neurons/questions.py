"""The questions, stated before any result was looked at, and the statistics that answer them.

Each question compares two arms of one regime, or one arm at two times. Arms are paired by seed: the nets of
one seed begin with the same weights, and see the same digits in the same order. The effect is the mean
difference. Its 95 % interval and its probability come from a paired t-test. The probabilities are adjusted
for all questions together (Holm, "A simple sequentially rejective multiple test procedure", 1979).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from .regimes import ADAM, FAST_ADAM, HE, PYTORCH, SGD, Optimiser

ACCURACY, SILENT = "accuracy", "silent units"


@dataclass(frozen=True)
class At:
    """One arm of one regime, at one of its measurements."""

    regime: str
    activation: str = "relu"
    p: float = 0.5
    optimiser: Optimiser = ADAM
    init: str = PYTORCH
    time: int = -1  # of the measurements


@dataclass(frozen=True)
class Question:
    """The effect of replacing the arm `old` by the arm `new`."""

    section: str
    measure: str
    old: At
    new: At


def _against(section: str, measure: str, old: At, **changes: Any) -> Question:
    return Question(section, measure, old, replace(old, **changes))


TUTORIAL, DEEP, OVERFITTING, CONTINUAL = (
    At(regime) for regime in ("tutorial", "deep", "overfitting", "continual")
)
PLAIN = replace(TUTORIAL, p=0.0)
LAST_PLAIN = replace(CONTINUAL, p=0.0)
QUESTIONS = (
    _against("works", ACCURACY, PLAIN, p=0.5),
    _against("works", ACCURACY, replace(OVERFITTING, p=0.0), p=0.5),
    _against("works", ACCURACY, replace(DEEP, p=0.0), p=0.5),
    _against("kills", SILENT, replace(PLAIN, time=0), time=-1),
    _against("kills", SILENT, PLAIN, p=0.2),
    _against("kills", SILENT, PLAIN, p=0.5),
    _against("kills", SILENT, PLAIN, p=0.8),
    _against("kills", SILENT, replace(DEEP, p=0.0), p=0.5),
    _against("remedies", SILENT, TUTORIAL, activation="leaky_relu"),
    _against("remedies", ACCURACY, TUTORIAL, activation="leaky_relu"),
    _against("remedies", SILENT, TUTORIAL, activation="elu"),
    _against("remedies", ACCURACY, TUTORIAL, activation="elu"),
    _against("remedies", ACCURACY, replace(TUTORIAL, optimiser=FAST_ADAM), activation="leaky_relu"),
    _against("remedies", ACCURACY, replace(TUTORIAL, optimiser=FAST_ADAM), activation="elu"),
    _against("rate", SILENT, replace(TUTORIAL, optimiser=FAST_ADAM), optimiser=ADAM),
    _against("rate", ACCURACY, replace(TUTORIAL, optimiser=FAST_ADAM), optimiser=ADAM),
    _against("rate", SILENT, TUTORIAL, optimiser=SGD),
    _against("init", SILENT, TUTORIAL, init=HE),
    _against("init", ACCURACY, TUTORIAL, init=HE),
    _against("p", ACCURACY, TUTORIAL, p=0.2),
    _against("p", ACCURACY, DEEP, p=0.2),
    _against("continual", SILENT, replace(LAST_PLAIN, time=1), time=-1),
    _against("continual", SILENT, LAST_PLAIN, p=0.5),
    _against("continual", ACCURACY, replace(LAST_PLAIN, time=1), time=-1),
    _against("continual", ACCURACY, LAST_PLAIN, p=0.5),
    _against("continual", ACCURACY, LAST_PLAIN, activation="leaky_relu"),
)


class Answer(NamedTuple):
    """A question's effect.

    Attributes:
        question: which.
        old: the mean of the old arm, in % of the digits or of the hidden units.
        new: of the new one.
        difference: new minus old, in points.
        low: the 95 % interval's lower end.
        high: its upper end.
        probability: adjusted.
        seeds: how many pairs.
    """

    question: Question
    old: float
    new: float
    difference: float
    low: float
    high: float
    probability: float
    seeds: int

    @property
    def clear(self) -> bool:
        return self.probability < 0.05


class Results:
    """The nets of some regimes' files."""

    def __init__(self, jobs: Sequence[dict[str, Any]]) -> None:
        self._nets: dict[At, dict[int, dict[str, Any]]] = {}
        self._units: dict[str, int] = {}
        for job in jobs:
            regime, (name, lr) = job["settings"]["regime"], job["settings"]["optimiser"].rsplit("-", 1)
            self._units[regime["name"]] = sum(regime["hidden"])
            for net in job["nets"]:
                at = At(
                    regime["name"], net["activation"], net["p"], Optimiser(name, float(lr)), net["init"], 0
                )
                self._nets.setdefault(at, {})[job["settings"]["seed"]] = net

    def has(self, at: At) -> bool:
        """Return whether that arm was trained."""
        return replace(at, time=0) in self._nets

    def nets(self, at: At) -> dict[int, dict[str, Any]]:
        """Return the nets of one arm, by seed."""
        return self._nets[replace(at, time=0)]

    def series(self, at: At, measure: str) -> np.ndarray:
        """Return a measure in %, [seeds, measurements], silent units of all hidden layers together."""
        rows = []
        for _, net in sorted(self.nets(at).items()):
            if measure == SILENT:
                rows.append([100 * sum(layers) / self._units[at.regime] for layers in net["silent"]])
            else:
                rows.append(net[measure])
        return np.array(rows, dtype=float)

    def at(self, at: At, measure: str) -> np.ndarray:
        """Return a measure at the arm's time, by seed."""
        values: np.ndarray = self.series(at, measure)[:, at.time]
        return values


def answers(results: Results, questions: Sequence[Question] = QUESTIONS) -> list[Answer]:
    """Answer all of them; the probabilities are adjusted for their number."""
    from scipy import stats

    found = []
    for question in questions:
        old, new = (results.at(at, question.measure) for at in (question.old, question.new))
        difference = new - old
        if np.ptp(difference) == 0:  # no spread: a t-test has no answer, and none is needed
            mean = float(difference.mean())
            low, high, probability = mean, mean, float(mean == 0)
        else:
            test = stats.ttest_rel(new, old)
            low, high = test.confidence_interval(0.95)
            probability = test.pvalue
        found.append(
            Answer(question, old.mean(), new.mean(), difference.mean(), low, high, probability, len(old))
        )
    adjusted = holm([answer.probability for answer in found])
    return [answer._replace(probability=p) for answer, p in zip(found, adjusted, strict=True)]


def holm(probabilities: Sequence[float]) -> list[float]:
    """Return the probabilities adjusted for their number."""
    order = np.argsort(probabilities)
    count = len(probabilities)
    raised = np.maximum.accumulate([min(1.0, (count - i) * probabilities[at]) for i, at in enumerate(order)])
    result = dict(zip(order.tolist(), raised.tolist(), strict=True))
    return [result[at] for at in range(count)]
