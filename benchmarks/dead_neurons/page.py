"""The study's page, written from its results: python -m benchmarks.dead_neurons --page."""

import json
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from .figures import NAMES, draw, figures
from .questions import ACCURACY, SILENT, TUTORIAL, Answer, At, Question, Results, answers
from .regimes import ACTIVATIONS, ADAM, FAST_ADAM, PROBABILITIES, REGIMES, SGD, Regime
from .text import NOT_TESTED, SECTIONS, Section, effect, most


class Study(NamedTuple):
    """The results and answers that the page is written from."""

    results: Results
    answers: list[Answer]
    jobs: list[dict[str, Any]]

    def of(self, key: str) -> list[Answer]:
        """Return a section's answers, in the order of its questions."""
        return [answer for answer in self.answers if answer.question.section == key]


def sign(value: float) -> str:
    """Return a difference with its sign, and 0 without."""
    return f"{value:+.2f}" if abs(value) >= 0.005 else "0.00"


def said(answer: Answer) -> str:
    """Return an answer as one line of a list."""
    q, unit = answer.question, "points"
    interval = f"95 % interval {sign(answer.low)} to {sign(answer.high)}"
    values = f"{answer.old:.2f} → {answer.new:.2f} %"
    if answer.clear:
        words = ("higher", "lower") if q.measure == ACCURACY else ("more", "fewer")
        word = words[int(answer.difference < 0)]
        ending = (
            f"**{word}**, {sign(answer.difference)} {unit} ({interval}, {probability(answer.probability)})"
        )
    else:
        ending = (
            f"**no difference beyond noise** ({interval}, {probability(answer.probability)}); "
            f"these data allow up to {most(answer):.2f} {unit}"
        )
    return f"- {q.measure.capitalize()}, {changed(q)}: {values}: {ending}."


def probability(value: float) -> str:
    return "P < 0.001" if value < 0.001 else f"P = {value:.3f}"


def changed(question: Question) -> str:
    """Return the settings in which the two arms differ, and those that they share."""
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
    """Return the table of the nets trained."""
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


def summary(study: Study) -> str:
    """Return the answer in a paragraph."""
    works, remedies = study.of("works"), study.of("remedies")
    dead = [
        study.results.at(replace(TUTORIAL, optimiser=optimiser), SILENT).mean()
        for optimiser in (ADAM, FAST_ADAM, SGD)
    ]
    return (
        f"ReLU and dropout work together: with the tutorial's own net, p = 0.5 {effect(works[0])}. "
        f"Units die, and the optimiser decides how many. At p = 0.5, Adam at 0.001 leaves {dead[0]:.1f} % "
        f"dead, Adam at 0.01 {dead[1]:.1f} %, and SGD at 0.1 {dead[2]:.1f} %. "
        f"LeakyReLU for ReLU {effect(remedies[1])}; ELU {effect(remedies[3])}."
    )


def advised(study: Study) -> str:
    """Return the tutorial's advice, each piece kept, corrected or dropped, and additions to it."""
    results = study.results
    works, remedies, rate, p = (study.of(key) for key in ("works", "remedies", "rate", "p"))
    killed = replace(TUTORIAL, optimiser=FAST_ADAM, p=0.0)
    silent, accuracy = (results.at(killed, measure).mean() for measure in (SILENT, ACCURACY))
    held = holds(results.at(TUTORIAL, ACCURACY).min() > 90, "ReLU and dropout work together.")
    return f"""- **"ReLU + dropout just works": kept.** {held} Where a net doesn't overfit, dropout has a
  price: p = 0.5 {effect(works[0])}.
- **"Monitor for dead neurons": kept.** Accuracy doesn't show them. Without dropout, and with Adam at 0.01,
  nets with {silent:.0f} % of their units dead still reach {accuracy:.1f} %.
- **"Try LeakyReLU or ELU": corrected.** A lower learning rate spares units too. With Adam at 0.001 LeakyReLU
  {effect(remedies[1])}, and ELU {effect(remedies[3])}. At 0.01 LeakyReLU {effect(remedies[4])}, and ELU
  {effect(remedies[5])}.
- **"Adjust p": corrected.** Adjust it to how much the net overfits. Here p = 0.2 for 0.5 {effect(p[0])}.
- **Lower Adam's learning rate first: added.** 0.001 for 0.01 {effect(rate[0])}, and {effect(rate[1])}."""


def holds(condition: bool, sentence: str) -> str:
    """Return a sentence that the results have to support."""
    if not condition:
        raise ValueError(f"the results don't support this sentence any more: {sentence}")
    return sentence


def section(part: Section, found: Sequence[Answer]) -> str:
    """Return one question's section: figure, verdict, comparison, effects."""
    effects = "\n".join(map(said, found))
    figure = f"![{part.caption}](study-{part.key}.svg)"
    return f"## {part.heading}\n\n{figure}\n\n**{part.verdict(found)}**\n\n{part.text}\n\n{effects}\n"


def how(study: Study) -> str:
    """Return the section on methods, versions and device."""
    jobs, questions = study.jobs, len(study.answers)
    cpu = sum(job["seconds"]["cpu"] for job in jobs) / 60
    versions = {name: sorted({job["versions"][name] for job in jobs}) for name in ("python", "torch")}
    made = ", ".join(f"{name} {' and '.join(values)}" for name, values in versions.items())
    nets = sum(len(job["nets"]) for job in jobs)
    return f"""{nets:,} nets were trained on MNIST, in batches of 64. He's initialisation was tried with
Adam at 0.001 alone.

{settings()}

- A unit is **silent** if, with dropout off, its activation's input is positive for none of the 10,000
  held-out digits. A silent ReLU unit is dead. In continual learning these digits are permuted as the task's.
- Units and accuracy were measured before training and after every epoch. In overfitting it was every fifth
  epoch, in continual learning every task. `ActivityMonitor` counts the same units, which a test compares.
- Arms are paired by seed: same initial weights, same order of digits. Effects are mean differences. The
  intervals and P come from paired t-tests. P is adjusted after Holm for all {questions} questions. They were
  written down before any result was looked at.
- Bands in the figures reach from the lowest to the highest seed.

`python -m benchmarks.dead_neurons` trains them. It took {cpu:.0f} minutes of CPU time ({made}). `--quick`
takes five, and `--page` writes this page from the [raw results](../benchmarks/results/dead-neurons)."""


def load(folder: Path) -> Study:
    """Read the regimes' files, and answer the questions."""
    files = (json.loads((folder / f"{regime.name}.json").read_text()) for regime in REGIMES)
    jobs = [job for file in files for job in file["jobs"]]
    results = Results(jobs)
    return Study(results, answers(results), jobs)


def write(study: Study, docs: Path) -> None:
    """Write the page and its figures."""
    for name, panels in figures(study.results):
        draw(panels, docs / f"study-{name}.svg")
    (docs / "study.md").write_text(page(study))


def readme(study: Study) -> str:
    """Return the README's sentences."""
    words = textwrap.fill(f"{summary(study)} [The study](docs/study.md) has the details.", 118)
    kills = next(part for part in SECTIONS if part.key == "kills")
    return f"{words}\n\n![{kills.caption}](docs/study-{kills.key}.svg)"


def page(study: Study) -> str:
    """Return the page's text."""
    sections = "\n".join(section(part, study.of(part.key)) for part in SECTIONS)
    tables = "\n\n".join(
        f"### {regime.name.capitalize()}\n\n{appendix(study.results, regime)}" for regime in REGIMES
    )
    return f"""# Do ReLU and dropout kill units?

{summary(study)}

{sections}
## What to do

{advised(study)}

## What was not tested

{NOT_TESTED}

## How it was measured

{how(study)}

## All arms

Means over the seeds, and the lowest to the highest.

{tables}
"""
