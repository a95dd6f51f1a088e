"""The study's page, written from its results: python -m benchmarks.dead_neurons --page."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from .figures import NAMES
from .questions import ACCURACY, SILENT, Answer, At, Question, Results
from .regimes import ACTIVATIONS, PROBABILITIES, REGIMES, Regime

HELD_OUT = "digits that the nets never saw"


def sign(value: float) -> str:
    """Return a difference with its sign, and 0 without."""
    return f"{value:+.2f}" if abs(value) >= 0.005 else "0.00"


def said(answer: Answer) -> str:
    """Return an answer as one line of a list."""
    q, unit = answer.question, "points"
    interval = f"95 % interval {sign(answer.low)} to {sign(answer.high)}"
    values = f"{answer.old:.2f} → {answer.new:.2f} %"
    if answer.clear:
        verdict = "**more**" if answer.difference > 0 else "**less**"
        ending = (
            f"{verdict}, by {sign(answer.difference)} {unit} ({interval}, {probability(answer.probability)})"
        )
    else:
        most = max(abs(answer.low), abs(answer.high))
        ending = (
            f"**no difference beyond noise** ({interval}, {probability(answer.probability)}); "
            f"these data allow up to {most:.2f} {unit}"
        )
    return f"- {q.measure.capitalize()}, {changed(q)}: {values}: {ending}."


def probability(value: float) -> str:
    return "P < 0.001" if value < 0.001 else f"P = {value:.3f}"


def changed(question: Question) -> str:
    """Return what the two arms differ in, and what they share."""
    old, new = question.old, question.new
    parts, shared = [], [_regime(old.regime).name]
    for name, label in (
        ("activation", lambda at: NAMES[at.activation]),
        ("p", lambda at: f"p = {at.p:g}"),
        ("optimiser", lambda at: f"{at.optimiser.name} at {at.optimiser.lr:g}"),
        ("init", lambda at: {"pytorch": "PyTorch's initialisation", "he": "He's initialisation"}[at.init]),
        ("time", lambda at: _time(at)),
    ):
        if getattr(old, name) != getattr(new, name):
            parts.append(f"{label(new)} for {label(old)}")
        elif name in ("activation", "p", "optimiser"):
            shared.append(label(old))
    return f"{', '.join(parts)} ({', '.join(shared)})"


def _time(at: At) -> str:
    if at.regime == "continual":
        return {1: "the first task", -1: "the last task"}[at.time]
    return {0: "before training", -1: "after training"}[at.time]


def _regime(name: str) -> Regime:
    return next(regime for regime in REGIMES if regime.name == name)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * left + "---:|" * (len(head) - left)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def settings() -> str:
    """Return the table of what was trained."""
    rows = []
    for regime in REGIMES:
        layers = "-".join(map(str, (784, *regime.hidden, 10)))
        tasks = f"{regime.tasks} tasks, pixels permuted anew" if regime.tasks > 1 else "1"
        optimisers = ", ".join(f"{o.name} {o.lr:g}" for o in regime.optimisers)
        rows.append(
            [
                regime.name,
                layers,
                f"{regime.train:,}",
                str(regime.epochs),
                tasks,
                optimisers,
                str(regime.seeds),
            ]
        )
    return table(["regime", "layers", "digits", "epochs", "tasks", "optimisers", "seeds"], rows, 1)


def appendix(results: Results, regime: Regime) -> str:
    """Return every arm's figures at the end: mean, and lowest to highest seed."""
    rows = []
    for optimiser in regime.optimisers:
        for init in regime.inits:
            for activation in ACTIVATIONS:
                for p in PROBABILITIES:
                    at = At(regime.name, activation, p, optimiser, init)
                    if not results.has(at):
                        continue
                    nets = results.nets(at).values()
                    before = results.at(replace(at, time=0), SILENT)
                    after, accuracy = results.at(at, SILENT), results.at(at, ACCURACY)
                    revived = sum(sum(map(sum, net["revived"])) for net in nets) / len(nets)
                    rows.append(
                        [
                            f"{optimiser.name} {optimiser.lr:g}",
                            {"pytorch": "PyTorch", "he": "He"}[init],
                            NAMES[activation],
                            f"{p:g}",
                            spread(before),
                            spread(after),
                            f"{revived:.1f}",
                            spread(accuracy),
                            str(sum(not net["finite"] for net in nets)),
                        ]
                    )
    head = ["optimiser", "init", "activation", "p", "silent before, %", "silent at the end, %"]
    return table([*head, "revivals per net", "accuracy, %", "diverged"], rows, 3)


def spread(values: Iterable[float]) -> str:
    values = list(values)
    mean = sum(values) / len(values)
    return f"{mean:.2f} ({min(values):.2f} to {max(values):.2f})"
