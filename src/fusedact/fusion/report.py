"""What was found in a model: pairs that run fused, and those that don't, each with its reason."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Pair:
    """An activation and a dropout, one on the other's result.

    Attributes:
        path: in an `nn.Sequential` of its dropout, else of the module whose code has the pair; empty for the
            model itself.
        pair: the two, in the order of their calls.
        reason: why it runs as it is written; empty if it is fused.
        saves: what is kept for backward where it is fused.
    """

    path: str
    pair: str
    reason: str = ""
    saves: str = ""


@dataclass
class FusionReport:
    """The pairs of a model. Prints as a table.

    Attributes:
        fused: the pairs that run as one kernel each way, where a kernel can run.
        left: the pairs that run as they are written, each with its reason.
    """

    fused: list[Pair] = field(default_factory=list)
    left: list[Pair] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [
            (pair.path or "(the model)", pair.pair, pair.reason or f"fused, keeps {pair.saves}")
            for pair in self.fused + self.left
        ]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
        lines = [f"{path:{widths[0]}}  {pair:{widths[1]}}  {what}" for path, pair, what in rows]
        return "\n".join([*lines, f"{len(self.fused)} fused, {len(self.left)} left"])
