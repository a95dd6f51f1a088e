"""The report on a model: its fused pairs, and its other pairs with their reasons."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Pair:
    """Describe an activation and a dropout, of which one takes the other's result.

    Attributes:
        path: the name of the module whose code calls the two; empty for the model itself. For neighbours in
            an `nn.Sequential`, the name of the second.
        pair: the two, in the order of their calls.
        reason: the reason why it runs as it is written; empty if it is fused.
        saves: the memory that a fused pair keeps for backward; empty if it isn't fused.
    """

    path: str
    pair: str
    reason: str = ""
    saves: str = ""


@dataclass
class FusionReport:
    """List the pairs of a model. It prints as a table.

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
