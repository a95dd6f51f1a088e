"""The study's sections in words. What depends on results is worded by them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from .questions import ACCURACY, Answer

Answers = Sequence[Answer]


def most(answer: Answer) -> float:
    """Return the largest change that the 95 % interval allows, in points."""
    return max(abs(answer.low), abs(answer.high))


def effect(answer: Answer) -> str:
    """Return the change's effect, as the end of a sentence."""
    what = "accuracy" if answer.question.measure == ACCURACY else "the share of silent units"
    if not answer.clear:
        return f"changes {what} by at most {most(answer):.2f} points, if at all"
    verb = "raises" if answer.difference > 0 else "lowers"
    return f"{verb} {what} from {answer.old:.1f} to {answer.new:.1f} %"


class Section(NamedTuple):
    """One question.

    Attributes:
        key: of its questions and figure.
        heading: as on the page.
        caption: of the figure.
        verdict: one sentence or a few, from the section's answers in their order.
        text: how that compares with the tutorial and with others.
    """

    key: str
    heading: str
    caption: str
    verdict: Callable[[Answers], str]
    text: str


SECTIONS = (
    Section(
        "works",
        "Does ReLU with dropout just work?",
        "Accuracy on held-out digits of ReLU nets trained with Adam at 0.001.",
        lambda a: (
            f"With the tutorial's own net and five epochs, p = 0.5 {effect(a[0])}. "
            f"Where 5,000 digits are learned for 60 epochs, it {effect(a[1])}. "
            f"With four hidden layers, it {effect(a[2])}."
        ),
        "The tutorial says that ReLU and dropout just work together. All of these nets learn, so that much "
        "holds. "
        "Dropout is meant against overfitting, and costs training time and width "
        "([Srivastava et al. 2014](https://jmlr.org/papers/v15/srivastava14a.html)). "
        "A comparison after five epochs on all digits therefore shows its price, and the one with few "
        "digits its use.",
    ),
    Section(
        "kills",
        "Does dropout kill units, or save them?",
        "Silent units of the tutorial's net over the epochs.",
        lambda a: (
            f"Training without dropout {effect(a[0])}. p = 0.2 for 0 {effect(a[1])}. p = 0.5 for 0 "
            f"{effect(a[2])}. p = 0.8 for 0 {effect(a[3])}. "
            f"In four hidden layers p = 0.5 for 0 {effect(a[4])}."
        ),
        "A ReLU unit that is silent for every digit gets no gradient from any, so it is dead. "
        "The optimiser decides far more than dropout does: compare the panels.",
    ),
    Section(
        "remedies",
        "Are LeakyReLU and ELU remedies?",
        "Silent units and accuracy of the tutorial's net at the end, by activation.",
        lambda a: (
            f"At p = 0.5, LeakyReLU for ReLU {effect(a[0])} and {effect(a[1])}. ELU for ReLU {effect(a[2])} "
            f"and "
            f"{effect(a[3])}. At Adam's tenfold learning rate, LeakyReLU {effect(a[4])}, and ELU "
            f"{effect(a[5])}."
        ),
        "A silent unit of LeakyReLU or ELU is not dead: it still passes a gradient, ELU's the smaller the "
        "further "
        "below 0. The tutorial recommends both against dead units. The question for a net is what its "
        "accuracy gains.",
    ),
    Section(
        "rate",
        "Does a lower learning rate help?",
        "Silent units and accuracy of ReLU nets at the end, by optimiser.",
        lambda a: (
            f"At p = 0.5, Adam at 0.001 for 0.01 {effect(a[0])} and {effect(a[1])}. SGD at 0.1 for Adam at "
            f"0.001 "
            f"{effect(a[2])}."
        ),
        "Adam moves every weight by about its learning rate at each step, however small the gradient. A "
        "bias can "
        "so be carried below everything that its unit receives. Of all that was varied, this matters most.",
    ),
    Section(
        "init",
        "Does He's initialisation help?",
        "Silent units of ReLU nets over the epochs, Adam at 0.001, p = 0.5.",
        lambda a: f"In the tutorial's net, He's for PyTorch's {effect(a[0])} and {effect(a[1])}.",
        "In deep and narrow ReLU nets whole layers can be born dead "
        "([Lu et al. 2019](https://arxiv.org/abs/1903.06733)). Nets of 128 units and at most four hidden "
        "layers are neither: the panels show how many units are silent before training. With four hidden "
        "layers more units fell silent in training with He's. That was no question beforehand, so it has "
        "no test.",
    ),
    Section(
        "p",
        "Which p?",
        "Accuracy and silent units of ReLU nets at the end, by p, trained with Adam at 0.001.",
        lambda a: f"p = 0.2 for 0.5 {effect(a[0])} in one hidden layer, and {effect(a[1])} in four.",
        "What p is best depends on how much a net overfits, and on how many layers drop: compare the lines.",
    ),
    Section(
        "continual",
        "What happens in continual learning?",
        "60 tasks one after the other, each with the pixels permuted anew. The accuracy is the task's own.",
        lambda a: (
            f"From the first task to the last, learning without dropout {effect(a[0])} and {effect(a[2])}. "
            f"At the last task, p = 0.5 for 0 {effect(a[1])} and {effect(a[3])}, and LeakyReLU for ReLU "
            f"without "
            f"dropout {effect(a[4])}."
        ),
        "Nets that go on learning can lose the ability to learn, while dead units become more "
        "([Dohare et al. 2024](https://doi.org/10.1038/s41586-024-07711-7)); so do dormant ones in "
        "reinforcement "
        "learning ([Sokar et al. 2023](https://arxiv.org/abs/2302.12902)). Their runs on permuted digits "
        "have 800 "
        "tasks of 60,000 digits, these 60 of 10,000. Units that fall silent in one task fire again in later "
        "ones, "
        "whose pixels are others. That none stays silent here says nothing of longer runs.",
    ),
)

NOT_TESTED = """- Convolutions, normalisation layers, transformers, and other data than MNIST's.
- Weight decay, momentum, and learning rates that change.
- Dormant units, which fire but hardly, and saturated ones.
- Remedies that restart units.
- Interval-wise dropout ([Park et al. 2025](https://arxiv.org/abs/2502.01342)).
- Whether dead units can be pruned without loss."""
