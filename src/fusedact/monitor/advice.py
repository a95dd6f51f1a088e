"""Advice about dead units. Each sentence names the section of the study that supports it.

The study (docs/study.md) trained nets on MNIST. It covers dead units of ReLU alone, and no dormant or
saturated units.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .report import LayerActivity

STUDY = "docs/study.md"
MEASURED = "how-it-was-measured"
KILLS = "does-dropout-kill-units-or-save-them"
REMEDIES = "are-leakyrelu-and-elu-remedies"
RATE = "does-a-lower-learning-rate-help"
FEW = 100  # samples: a unit that is silent in fewer may still fire in 3% of all (rule of three)


def advice(layer: "LayerActivity") -> Iterator[str]:
    """Yield the remedies that a layer's figures call for, each with these figures."""
    if layer.activation != "ReLU" or layer.dead is None or not layer.dead.any():
        return
    dead, units = int(layer.dead.sum()), layer.units
    which = f"{layer.layer}: {dead} of {units} units ({dead / units:.1%})"
    if layer.samples < FEW:
        yield (
            f"{layer.layer}: {dead} units silent in {layer.samples} samples, too few to tell. Take a longer "
            f"window; the study goes by thousands of digits {_see(MEASURED)}."
        )
        return
    yield (
        f"{which} never fired in {layer.samples} samples. With Adam, a tenth of the learning rate left fewer "
        f"such units, and made nets more accurate {_see(RATE)}."
    )
    yield (
        f"{layer.layer}: LeakyReLU and ELU left fewer units silent. Nets became more accurate only with ELU, "
        f"at a learning rate that kills units {_see(REMEDIES)}."
    )
    if layer.p is not None and layer.p >= 0.8:
        much = "A p of 0.8 left more dead units than no dropout"
        yield f"{layer.layer}: p = {layer.p:g}. {much} {_see(KILLS)}."


def _see(*sections: str) -> str:
    return f"({', '.join(f'{STUDY}#{section}' for section in sections)})"
