"""What is published: the source distribution, the wheel built of it, and the wheel where there is no C compiler.

Each is built once, offline, outside the repository; the wheels are installed into folders of their own.
"""

from __future__ import annotations

import email
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import small

import quantkit

ROOT = Path(__file__).parents[1]
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
COMPILER = os.environ.get("CC", "cc").split()[0]
FOLDERS = ("csrc", "quantkit", "recipes", "tests")
INFO = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "licenses/NOTICE"}
# what tools leave in the folders of a checkout
LEFT = {"__pycache__", "node_modules", ".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache"}
RECIPES = ("llama.cpp", "classic")


@dataclass(frozen=True)
class Wheel:
    """What a build is to give.

    environment  of the build
    tag          pattern of the tag in the wheel's name
    libraries    what it holds beside the repository's texts
    backend      of its kernels
    says         on stderr, of a command that is quiet
    """

    environment: dict[str, str]
    tag: str
    libraries: set[str]
    backend: str
    says: str


WHEELS = {
    "native": Wheel({}, r"cp311-abi3-\w+", {"quantkit/_native.abi3.so"}, "native", ""),
    "pure": Wheel(
        {"CC": "/bin/false"},
        "py3-none-any",
        set(),
        "numpy",
        "quantkit: no C kernels in this installation; the slower NumPy ones give the same bytes\n",
    ),
}


@dataclass(frozen=True)
class Installed:
    """A wheel, what it is to be, and the folder it is installed in."""

    expected: Wheel
    wheel: Path
    folder: Path

    def python(self, *arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Python with this copy first and the dependencies behind it; -S: an editable install's hook would win."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("QUANTKIT_")}
        dependencies = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        kept["PYTHONPATH"] = os.pathsep.join([str(self.folder), *dependencies])
        command = [sys.executable, "-S", *map(str, arguments)]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=kept | environment, timeout=60)

    def quantkit(self, *arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """The installed program itself."""
        return self.python(self.folder / "bin" / "quantkit", *arguments, cwd=cwd, **environment)


def texts(*folders: str) -> set[str]:
    """The repository's files in those folders, from its root."""
    files = [path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    return {file.as_posix() for file in files if file.suffix != ".so" and not LEFT & set(file.parts)}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution."""
    folder = tmp_path_factory.mktemp("sdist")
    build = f"from scikit_build_core.build import build_sdist; build_sdist({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=ROOT, check=True, capture_output=True)
    (archive,) = folder.iterdir()
    assert archive.name == f"quantkit-{quantkit.__version__}.tar.gz"
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / f"quantkit-{quantkit.__version__}"


@pytest.fixture(scope="module", params=WHEELS)
def installed(request: pytest.FixtureRequest, sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel that a machine with, or without, a C compiler makes of the source distribution."""
    kind: str = request.param
    if kind == "native" and not shutil.which(COMPILER):
        pytest.skip(f"no C compiler here ({COMPILER}): the pure wheel alone was tested")
    folder = tmp_path_factory.mktemp(kind)
    build = ["wheel", str(sdist), "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder)]
    build += ["-C", f"build-dir={folder / 'build'}"]
    subprocess.run([*PIP, *build], check=True, env=os.environ | WHEELS[kind].environment)
    (wheel,) = folder.glob("*.whl")
    target = folder / "site"
    subprocess.run([*PIP, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)], check=True)
    return Installed(WHEELS[kind], wheel, target)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write(tmp_path_factory.mktemp("packaging") / "small")


@pytest.fixture(scope="module")
def checkout_files(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that this checkout makes, by family of recipes."""
    folder = tmp_path_factory.mktemp("expected")
    for recipe in RECIPES:
        output = ["-o", str(folder / recipe), "-t", "Q4_K_S", "--recipe", recipe]
        subprocess.run([sys.executable, "-m", "quantkit", "convert", str(source), "-q", *output], check=True)
    return {recipe: (folder / recipe).read_bytes() for recipe in RECIPES}


def test_sdist_is_the_repository(sdist: Path) -> None:
    """All that a build and the tests need, and nothing that they leave."""
    held = {path.relative_to(sdist).as_posix() for path in sdist.rglob("*") if path.is_file()}
    assert {name for name in held if name.partition("/")[0] in FOLDERS} == texts(*FOLDERS)
    assert held >= {"CMakeLists.txt", "pyproject.toml", "Makefile", "constraints.txt", "PKG-INFO"}
    assert held >= {"LICENSE", "NOTICE", "README.md", "CHANGELOG.md"}
    assert not {path.name for path in sdist.iterdir()} & {".git", ".venv", "build", "dist", "out"}


def test_wheel_is_for_the_machines_its_name_says(installed: Installed) -> None:
    pattern = rf"quantkit-{re.escape(quantkit.__version__)}-{installed.expected.tag}\.whl"
    assert re.fullmatch(pattern, installed.wheel.name)


def test_wheel_holds_the_package_and_nothing_else(installed: Installed) -> None:
    info = f"quantkit-{quantkit.__version__}.dist-info"
    recipes = {f"quantkit/{name}" for name in texts("recipes")}
    with zipfile.ZipFile(installed.wheel) as wheel:
        held = set(wheel.namelist())
        assert held == texts("quantkit") | recipes | installed.expected.libraries | {f"{info}/{name}" for name in INFO}
        assert {Path(name).suffix for name in texts("quantkit")} == {".css", ".html", ".py", ".pyi", ".txt", ".typed"}
        for name in ("LICENSE", "NOTICE"):
            assert wheel.read(f"{info}/licenses/{name}") == (ROOT / name).read_bytes()
        metadata = email.message_from_bytes(wheel.read(f"{info}/METADATA"))
    assert held >= {"quantkit/py.typed", "quantkit/_native.pyi", "quantkit/recipes/classic/Q4_K_S.toml"}
    assert held >= {f"quantkit/data/{name}.txt" for name in ("eval", "calibration", "broad")}
    assert metadata["Version"] == quantkit.__version__
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.11"


def test_only_the_installed_copy_is_found(installed: Installed, tmp_path: Path) -> None:
    found = installed.python("-c", "import quantkit; print(quantkit.__file__)", cwd=tmp_path)
    assert found.stdout == f"{installed.folder / 'quantkit' / '__init__.py'}\n"


@pytest.mark.parametrize("recipe", RECIPES)
def test_installed_copy_makes_the_same_files(
    installed: Installed, source: Path, checkout_files: dict[str, bytes], tmp_path: Path, recipe: str
) -> None:
    """In an empty folder, from the recipes inside the package, by this wheel's kernels; NumPy's are told of once."""
    result = installed.quantkit("convert", source, "-t", "Q4_K_S", "--recipe", recipe, "--json", "-q", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, installed.expected.says)
    assert json.loads(result.stdout)["backend"].partition("/")[0] == installed.expected.backend
    assert [path.name for path in tmp_path.iterdir()] == ["small-Q4_K_S.gguf"]
    assert (tmp_path / "small-Q4_K_S.gguf").read_bytes() == checkout_files[recipe]


def test_the_families_differ(checkout_files: dict[str, bytes]) -> None:
    """Else nothing above shows which was read."""
    assert len(set(checkout_files.values())) == len(RECIPES)


@pytest.mark.parametrize("installed", ["native"], indirect=True)
def test_c_kernels_use_the_stable_abi_alone(installed: Installed) -> None:
    """Every Python symbol that is imported is one that the headers declare under the limited API of 3.11."""
    if sys.platform != "linux":
        pytest.skip("nm -D lists the imports of ELF libraries alone")
    headers = "#define Py_LIMITED_API 0x030b0000\n#define PY_SSIZE_T_CLEAN\n#include <Python.h>\n"
    preprocess = [COMPILER, "-E", "-P", f"-I{sysconfig.get_path('include')}", "-x", "c", "-"]
    declared = subprocess.run(preprocess, input=headers, capture_output=True, text=True, check=True).stdout
    list_imports = ["nm", "-D", "--undefined-only", str(installed.folder / "quantkit" / "_native.abi3.so")]
    imported = subprocess.run(list_imports, capture_output=True, text=True, check=True).stdout
    names = set(re.findall(r"\b_?Py\w+", imported))
    assert "PyBuffer_Release" in names
    assert names - set(re.findall(r"\b_?Py\w+", declared)) == set()


@pytest.mark.parametrize("installed", ["pure"], indirect=True)
def test_c_kernels_that_were_not_built_cannot_be_forced(installed: Installed, source: Path, tmp_path: Path) -> None:
    result = installed.quantkit("convert", source, "-t", "Q8_0", cwd=tmp_path, QUANTKIT_BACKEND="native")
    assert result.returncode == 2
    assert "there are no C kernels here" in result.stderr
    assert not list(tmp_path.iterdir())
