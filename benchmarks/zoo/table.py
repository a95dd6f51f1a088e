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
        found, fused = (sum(sum(row[key].values()) for row in ran) for key in ("found_running", "ran_fused"))
        errors = sum("error" in row for row in mine)
        share = f"{fused / found:.1%}" if found else "-"
        lines.append(f"| {library} | {built} | {len(ran)} | {found} | {fused} | {share} | {errors} |")
    if not bits:
        return "\n".join(lines)
    same = sum(all(row["same"].values()) for row in bits)
    calls = sum(sum(row["ran_fused"].values()) for row in bits)
    return "\n".join(lines) + (
        f"\n\nOn the CPU {len(bits)} small models ran with values, forward and backward, in both modes.\n"
        f"The plain model's bits had {same}. Fused calls: {calls}."
    )
