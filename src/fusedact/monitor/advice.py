"""What to do about dead units: each sentence with the section of the study that supports it.

The study compares ReLU nets (docs/dead-neurons.md): of other activations nothing is said. It found no
difference beyond noise for He initialisation, and measured neither dormant nor saturated units.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .report import LayerActivity

STUDY = "docs/dead-neurons.md"
MEASURED = "how-it-was-measured"
LEAKY, ELU = "is-leakyrelu-a-remedy", "is-elu-a-remedy"
LEARNING_RATE, LOWER_P = "does-a-lower-learning-rate-help-relu", "does-a-lower-p-help-relu"
FEW = 100  # samples: a unit that is silent in fewer may still fire in 3% of all (rule of three)


def advice(layer: "LayerActivity") -> Iterator[str]:
    """Yield remedies whose causes are in a layer's figures, each with them."""
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
        f"{which} never fired in {layer.samples} samples. Nets with LeakyReLU or ELU had fewer such units, "
        f"and were more accurate {_see(LEAKY, ELU)}."
    )
    if dead == units:
        return  # nothing passes the layer, so that no choice of learning rate or p matters
    if layer.newly_dead is not None and layer.revived is not None:
        died, revived = int(layer.newly_dead.sum()), int(layer.revived.sum())
        if died > revived:
            yield (
                f"{layer.layer}: {died} units died since the last window and {revived} revived. With Adam, a "
                f"lower learning rate left fewer dead units {_see(LEARNING_RATE)}."
            )
    if layer.p is not None and layer.p >= 0.5:
        yield (
            f"{which} never fired, at p = {layer.p:g}. A lower p left fewer dead units, and higher accuracy "
            f"{_see(LOWER_P)}."
        )


def _see(*sections: str) -> str:
    return f"({', '.join(f'{STUDY}#{section}' for section in sections)})"
