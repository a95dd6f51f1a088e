"""A run's results: the files that it will write, and the packages that draw its plots.

Both are checked before the run begins, so that nothing is lost at its end.
"""

import importlib
import os
from pathlib import Path
from typing import Any


class OutputError(Exception):
    """Results can't be written or drawn; the message says why and what helps."""


def prepare(folder: Path, *names: str) -> None:
    """Make `folder` and try to open each file in it for writing.

    Raises:
        OutputError: the folder can't be made, or a file can't be written.
    """
    path = folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in (folder / name for name in names):
            new = not path.exists()
            with path.open("ab"):
                pass
            if new:
                path.unlink()
    except OSError as error:
        raise OutputError(
            f"{path} can't be written ({error.strerror}); --out has to name a folder that can"
        ) from None


def require(module: str, extra: str) -> Any:
    """Import `module`, which the package's `extra` installs.

    matplotlib refuses to import where MPLBACKEND names a package that isn't there. A notebook's kernel sets
    it for every process that it starts, so it is out of sight during the import.

    Raises:
        OutputError: the module doesn't import.
    """
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        return importlib.import_module(module)
    except Exception as error:  # of a broken installation any
        raise OutputError(f"{module} doesn't import ({error}): pip install -e '.[{extra}]'") from None
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


def new_figure(**options: Any) -> Any:
    """A `matplotlib.figure.Figure`, which draws to a file and needs no backend."""
    return require("matplotlib.figure", "mnist").Figure(layout="constrained", **options)
