"""The simulated GPU's shared libraries: requirements, build, and the environment that loads them.

They are built once into a folder of the user's cache, whose name is a hash of all their sources. They have to
be loaded before PyTorch's own, so they run in a process of their own: `python -m tests.simulator`.
"""

import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

# Versions of torch and Triton that this was tried with. To add a pair, add a line and run the tests.
KNOWN = {
    ("2.11", "3.6"),
    ("2.14", "3.8"),
}

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[1]
_FLAGS = ["-O1", "-g", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-fvisibility=hidden"]
_RUNTIME = ("runtime.cpp", "registered.cpp")  # the other sources are the driver's


def _minor(package: str) -> str:
    return ".".join(version(package).split(".")[:2])


def _folder_of(package: str) -> Path:
    """Return a package's folder without importing the package."""
    return Path(importlib.util.find_spec(package).submodule_search_locations[0])


def _headers() -> list[Path]:
    """Where CUDA's headers are: those of PyTorch's CUDA first, since its libraries ask for their functions.

    PyTorch's wheels lack crt/, which Triton has, of a CUDA that may be another.
    """
    runtime = distribution("nvidia-cuda-runtime").files or []
    (own,) = (path.locate().parent for path in runtime if path.name == "cuda_runtime_api.h")
    return [Path(own), _folder_of("triton") / "backends" / "nvidia" / "include"]


def unavailable() -> str | None:
    """Return the reason why GPUs can't be simulated here, or None."""
    import torch

    if torch.version.cuda is None:
        return "needs a CUDA build of PyTorch"
    if not importlib.util.find_spec("triton"):
        return "needs Triton"
    if torch.cuda.is_available():
        return "there is a real GPU, on which the same tests run"
    if missing := [tool for tool in ("gcc", "g++", "nm") if not shutil.which(tool)]:
        return f"needs {missing[0]}"
    pair = _minor("torch"), _minor("triton")
    if pair not in KNOWN:
        return f"wasn't tried with torch {pair[0]} and Triton {pair[1]}: see KNOWN in {Path(__file__).name}"
    try:
        _headers()
    except PackageNotFoundError as error:
        return f"needs CUDA's headers, which are in {error.name}"
    return None


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fusedact-simulator"


def _sources() -> list[Path]:
    """Return the libraries' sources, without headers."""
    return [path for path in sorted((_HERE / "driver").iterdir()) if path.suffix in (".c", ".cpp")]


def _hash(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@functools.cache
def build() -> Path:
    """Return the folder of the libraries; the first process builds them."""
    cache = _cache()
    sources = _hash(Path(__file__), *sorted((_HERE / "driver").iterdir()))
    key = f"torch{version('torch')}-triton{version('triton')}-{sources}"
    folder, made = cache / key, cache / f"{key}.unfinished"
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f"{key}.lock"):
        if not folder.exists():
            shutil.rmtree(made, ignore_errors=True)  # of a process that was ended
            made.mkdir()
            _build_into(made)
            made.rename(folder)
    return folder


def _run(*command: str | Path) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{result.stderr}")
    return result.stdout


def _imported() -> tuple[str, list[str]]:
    """The CUDA runtime's file that PyTorch's libraries ask for, and the functions that they import of it."""
    found = set()
    for library in (_folder_of("torch") / "lib").glob("*.so"):
        text = _run("nm", "-D", "--undefined-only", library)
        found.update(re.findall(r"\b((?:__)?cuda\w+)@(libcudart\.so\.\d+)", text))
    (file,) = {file for _, file in found}
    return file, sorted(function for function, _ in found)


def _build_into(folder: Path) -> None:
    headers = [f"-I{path}" for path in _headers()]

    def compiled(source: Path) -> Path:
        made = folder / f"{source.name}.o"
        language = ["g++", "-std=c++17"] if source.suffix == ".cpp" else ["gcc"]
        _run(*language, *_FLAGS, *headers, "-c", source, "-o", made)
        return made

    driver = [compiled(path) for path in _sources() if path.name not in _RUNTIME]
    runtime = [compiled(path) for path in _sources() if path.name in _RUNTIME]
    libcuda = folder / "libcuda.so.1"
    _run("g++", "-shared", *driver, "-Wl,-soname,libcuda.so.1", "-o", libcuda, "-ldl", "-lpthread")
    file, functions = _imported()
    # A function that PyTorch imports and these sources lack is an error only when it is called.
    defined = _run("nm", "--defined-only", "--format=posix", *runtime)
    named = folder / "named_runtime.c"
    named.write_text(
        "\n".join(
            ["extern void sim_missing(const char*);"]
            + [
                f'__attribute__((visibility("default"))) int {name}(void)'
                f' {{ sim_missing("{name}"); return 801; /* cudaErrorNotSupported */ }}'
                for name in functions
                if not re.search(rf"^{name} ", defined, re.MULTILINE)
            ]
        )
    )
    exported = folder / "runtime.map"  # PyTorch's libraries ask for symbols of this version
    exported.write_text(f"{file} {{ global: cuda*; __cuda*; local: *; }};\n")
    linked = [*runtime, compiled(named), libcuda, "-Wl,-rpath,$ORIGIN"]
    versioned = [f"-Wl,-soname,{file}", f"-Wl,--version-script={exported}"]
    _run("g++", "-shared", *linked, *versioned, "-o", folder / file)


def environment() -> dict[str, str]:
    """Return the environment of a process with simulated GPUs; it inherits the SIMULATOR_ settings."""
    folder = build()
    cuda, runtime = folder / "libcuda.so.1", next(folder.glob("libcudart.so.*"))
    kernels = _cache() / f"kernels-{_hash(*sorted((_HERE / 'ptx').glob('*.*')))}"
    kernels.mkdir(exist_ok=True)
    kept = {
        name: value
        for name, value in os.environ.items()
        if name != "TRITON_INTERPRET" and not name.startswith("PYTEST_")
    }
    path = [str(_ROOT / "src"), str(_ROOT), *filter(None, [kept.get("PYTHONPATH")])]
    return {
        **kept,
        "LD_PRELOAD": f"{cuda} {runtime}",
        "OMP_NUM_THREADS": "1",  # pytest-xdist runs as many processes as there are cores
        "PYTHONPATH": os.pathsep.join(path),
        "SIMULATOR_KERNELS": str(kernels),
        "TRITON_CACHE_DIR": str(_cache() / "triton"),
        "TRITON_LIBCUDA_PATH": str(folder),
        "TORCHINDUCTOR_CACHE_DIR": str(_cache() / "inductor"),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        # It would load cubins without Triton's hook, which translates the kernels.
        "TORCHINDUCTOR_USE_STATIC_CUDA_LAUNCHER": "0",
        "TORCHINDUCTOR_USE_STATIC_TRITON_LAUNCHER": "0",
    }


def pytest_command(*arguments: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.simulator.plugin",
        "-p",
        "no:cacheprovider",
        *arguments,
    ]
