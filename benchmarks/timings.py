"""The suite's results, read from their files: rows, and the figures that they give.

A row has no figure if its result was wrong, or if it was timed by another clock than the suite's. Nor has a
comparison with such a row.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.suite import synchronised_clock

KEY = ("kind", "model", "activation", "dtype", "n", "direction", "backend")


@dataclass(frozen=True)
class Row:
    """One timed row.

    Attributes:
        info: the facts that the suite recorded with the times.
        seconds: per call, the median of the rounds.
        refused: why it has no figure, or None.
    """

    info: dict[str, Any]
    seconds: float
    refused: str | None

    def is_a(self, **wanted: Any) -> bool:
        return all(self.info.get(name) == value for name, value in wanted.items())


class Run:
    """One results file."""

    def __init__(self, content: dict[str, Any]) -> None:
        """`content` is pytest-benchmark's JSON."""
        self.rows = [_row(benchmark) for benchmark in content["benchmarks"]]
        if not self.rows:
            raise ValueError("no rows")
        self.date = content["datetime"][:10]
        self.device = self.rows[0].info["device"]
        self.versions = self.rows[0].info["versions"]
        for row in self.rows:
            if (row.info["device"], row.info["versions"]) != (self.device, self.versions):
                raise ValueError("rows of more than one device or version")

    @property
    def title(self) -> str:
        """Device, versions and date."""
        return ", ".join([self.device, *(f"{name} {v}" for name, v in self.versions.items()), self.date])

    def find(self, **wanted: Any) -> Row | None:
        """The one row that is so."""
        return next((row for row in self.rows if row.is_a(**wanted)), None)

    def beside(self, row: Row, **other: Any) -> Row | None:
        """The row that differs in `other` alone."""
        return self.find(**{name: row.info.get(name) for name in KEY} | other)

    def values(self, name: str, **wanted: Any) -> list[Any]:
        """Of the rows that are so, in their order, each once."""
        return list(dict.fromkeys(row.info[name] for row in self.rows if row.is_a(**wanted)))


def _row(benchmark: dict[str, Any]) -> Row:
    info = benchmark["extra_info"]
    timer = benchmark["options"]["timer"]
    refused = None
    if timer.rpartition(".")[2] != synchronised_clock.__name__:
        refused = "refused: not synchronised"
    if info["wrong"] is not None:
        refused = "refused: wrong result"
    return Row(info, benchmark["stats"]["median"], refused)


def load(path: Path) -> Run:
    """One results file.

    Raises:
        ValueError: it holds no results of this suite.
    """
    try:
        return Run(json.loads(path.read_text()))
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} holds no results of benchmarks/: {type(error).__name__}: {error}") from None


Figure = float | str


def figure(rows: Sequence[Row | None], compute: Callable[..., float]) -> Figure:
    """Return `compute(*rows)`, unless a row is missing or refused."""
    found = [row for row in rows if row is not None]
    if len(found) < len(rows):
        return "-"
    refused = next((row.refused for row in found if row.refused), None)
    return refused or compute(*found)


def cell(value: Figure, text: str) -> str:
    return value if isinstance(value, str) else text.format(value)


def microseconds(row: Row | None) -> str:
    return cell(figure([row], lambda mine: mine.seconds * 1e6), "{:.1f}")


def speed_up(row: Row | None, base: Row | None) -> Figure:
    """How many times as fast as `base`."""
    return figure([row, base], lambda mine, other: other.seconds / mine.seconds)


def bandwidth(row: Row) -> float:
    """Bytes per second, of those that the fused kernels move."""
    return float(row.info["bytes"]) / row.seconds


def fraction(run: Run, row: Row | None) -> Figure:
    """Of the bandwidth of a copy of as many elements of the dtype."""
    copy = row and run.find(kind="copy", dtype=row.info["dtype"], n=row.info["n"])
    return figure([row, copy], lambda mine, other: bandwidth(mine) / bandwidth(other))


def kept(row: Row | None) -> Figure:
    """Bytes per element that forward leaves for backward, beyond its input and its output."""
    if row is None or row.info["kept_bytes"] is None:
        return "-"
    return figure([row], lambda mine: mine.info["kept_bytes"] / mine.info["n"])
