"""What the wheel and the source distribution hold, and that both work alone."""

import importlib.util
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import fusedact

ROOT = Path(__file__).parents[2]
NAME = f"fusedact-{fusedact.__version__}"


def run(*command: str, cwd: Path, path: str = "") -> str:
    environment = {**os.environ, "PYTHONPATH": path}
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def files(*folders: str) -> set[str]:
    """The repository's files in them, without what isn't committed."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    names = {path.relative_to(ROOT).as_posix() for path in found}
    return {name for name in names if "__pycache__" not in name and not name.startswith("benchmarks/data/")}


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    pytest.importorskip("hatchling", reason="needs hatchling, which builds the package")
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-d", str(folder), cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def sdist(dist, tmp_path_factory) -> Path:
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(dist / f"{NAME}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / NAME


def test_wheel_holds_the_package_alone(dist):
    with zipfile.ZipFile(dist / f"{NAME}-py3-none-any.whl") as archive:
        names = set(archive.namelist())
    info = {f"{NAME}.dist-info/{name}" for name in ("METADATA", "WHEEL", "RECORD", "licenses/LICENSE")}
    assert names == {name.removeprefix("src/") for name in files("src/fusedact")} | info
    assert "fusedact/py.typed" in names


@pytest.mark.parametrize("hide", ["", "sys.modules['triton'] = None; "], ids=["as it is", "no Triton"])
def test_wheel_works_alone(dist, tmp_path, hide):
    with zipfile.ZipFile(dist / f"{NAME}-py3-none-any.whl") as archive:
        archive.extractall(tmp_path)
    code = f"import sys; {hide}import fusedact; from fusedact import env; "
    code += "print(fusedact.__file__, env.main(), env.versions()['triton'] == 'not installed')"
    last = run(sys.executable, "-c", code, cwd=tmp_path, path=str(tmp_path)).splitlines()[-1]
    missing = bool(hide) or importlib.util.find_spec("triton") is None
    assert last == f"{tmp_path / 'fusedact' / '__init__.py'} 0 {missing}"


def test_sdist_holds_what_its_tests_and_documentation_need(sdist):
    top = {"CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "README.md", "mkdocs.yml"}
    built = {".gitignore", "PKG-INFO", "pyproject.toml"}
    held = {path.relative_to(sdist).as_posix() for path in sdist.rglob("*") if path.is_file()}
    assert held == files("src", "tests", "benchmarks", "docs") | top | built


def test_sdist_tests_run(sdist):
    """Those that read the most of what isn't code."""
    files = ("tests/tools/test_docs.py", "tests/tools/test_import.py")
    run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, cwd=sdist)


def test_changelog_has_the_version():
    assert f"\n## {fusedact.__version__}" in (ROOT / "CHANGELOG.md").read_text()
