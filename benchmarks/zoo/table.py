"""The sweep's rows as the table of the docs."""

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def table(rows: Sequence[Row], bits: Sequence[Row]) -> str:
    """A line per library, and a sentence on the models that ran in earnest."""
    lines = [
        "| | models built | ran | pairs while running | ran fused | share | errors |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for library in dict.fromkeys(row["library"] for row in rows):
        mine = [row for row in rows if row["library"] == library]
        built = sum("fused" in row or "error" in row for row in mine)
        ran = [row for row in mine if "found_running" in row]
        found = sum(sum(row["found_running"].values()) for row in ran)
        fused = sum(  # of those that were found
            min(n, row["ran_fused"].get(name, 0)) for row in ran for name, n in row["found_running"].items()
        )
        errors = sum("error" in row for row in mine)
        share = f"{fused / found:.1%}" if found else "-"
        lines.append(f"| {library} | {built} | {len(ran)} | {found} | {fused} | {share} | {errors} |")
    if not bits:
        return "\n".join(lines)
    same = sum(all(row["same"].values()) for row in bits)
    calls = sum(sum(row["ran_fused"].values()) for row in bits)
    largest = max(row["difference"] for row in bits)
    others = f" The largest difference was {largest:.0e} of a tensor's largest value." if largest else ""
    return "\n".join(lines) + (
        f"\n\nOn the CPU {len(bits)} small models ran with values, forward and backward, in both modes.\n"
        f"Fused calls: {calls}. In {same} models all bits were the plain model's.{others}"
    )
