"""The package as others get it: what is in it, that it runs installed, and what its files say."""

import re
import shlex
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from processes import ROOT, run

import lstm_jax

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
SMALL = shlex.split(
    "--model.hidden-size 6 --batch-size 4 --sequence-length 8 --steps 2 --sample.length 5"
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel, made from the sdist, and the sdist."""
    for tool in ("build", "hatchling"):
        if find_spec(tool) is None:
            pytest.skip(f"{tool} is not installed beside this Python (the extra test)")
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT)
    ((wheel,), (sdist,)) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


def test_the_wheel_is_the_library_alone(built: tuple[Path, Path]) -> None:
    metadata = f"lstm_jax-{lstm_jax.__version__}.dist-info"
    with zipfile.ZipFile(built[0]) as wheel:
        names = set(wheel.namelist())
        assert wheel.read(f"{metadata}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert {name.split("/")[0] for name in names} == {"lstm_jax", metadata}
    assert "lstm_jax/py.typed" in names
    assert {name for name in names if name.endswith(".py")} == files("lstm_jax/**/*.py")


def test_the_sdist_is_all_that_is_needed_to_test_and_document_it(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    needed = {"LICENSE", "CITATION.cff", "constraints.txt", "mkdocs.yml", ".ci/run"}
    assert needed - names == set()
    folders = ("lstm_jax/py.typed", "lstm_jax/**/*.py", "tests/**/*.py", "bench/**/*.py")
    for pattern in (*folders, "examples/*", "docs/**/*"):
        assert files(pattern)
        assert files(pattern) - names == set()


def files(pattern: str) -> set[str]:
    """Files of the repository, without what Python compiled of them meanwhile."""
    found = {str(path.relative_to(ROOT)) for path in ROOT.glob(pattern) if path.is_file()}
    return {name for name in found if "__pycache__" not in name}


@pytest.mark.slow
def test_the_installed_commands_work(built: tuple[Path, Path], tmp_path: Path) -> None:
    """The wheel in an environment of its own; its dependencies are those of this one."""
    if find_spec("pip") is None:
        pytest.skip("pip is not installed beside this Python")
    environment, empty = tmp_path / "environment", tmp_path / "empty"
    empty.mkdir()
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    tools = environment / "bin"
    pip = (sys.executable, "-m", "pip", "--python", tools / "python", "install", "--no-index")
    run(*pip, "--no-deps", "--no-compile", built[0])
    # A path in a .pth file brings packages, but not the .pth files there: no editable install.
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    where = run(tools / "python", "-c", "import lstm_jax; print(lstm_jax.__file__)", cwd=empty)
    assert Path(where.strip()).is_relative_to(site)
    assert {path.name for path in tools.glob("lstm-jax*")} == set(PROJECT["scripts"])

    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 40, encoding="utf-8")
    run(tools / "lstm-jax", "train", "--data", text, "--run-dir", "run", *SMALL, cwd=empty)
    assert [path.name for path in empty.iterdir()] == ["run"]
    sample = (tools / "lstm-jax", "sample", "run", "--prompt", "the", "--length", 20)
    written = run(*sample, cwd=empty).removesuffix("\n")
    assert written.startswith("the")
    assert len(written) == len("the") + 20


IMPORTED = """
import sys, jax
before = set(sys.modules)
import lstm_jax, lstm_jax.interop
print(*sorted(set(sys.modules) - before))
"""


def test_importing_the_package_imports_little_that_jax_does_not() -> None:
    """So it takes about as long. Neither Flax, Optax nor Orbax, nor much more of JAX or NumPy."""
    new = [name.split(".") for name in run(sys.executable, "-c", IMPORTED).split()]
    others = [name for name in new if name[0] not in {"lstm_jax", *sys.stdlib_module_names}]
    assert {name[0] for name in others} <= {"jax", "numpy"}, others
    assert len(others) < 20, others


def test_the_version_and_the_licence_are_the_same_wherever_they_are_written() -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML, of the extra docs, is not installed")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert newest is not None
    assert re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}", PROJECT["version"])
    found = {lstm_jax.__version__, citation["version"], newest.group(1), PROJECT["version"]}
    assert found == {PROJECT["version"]}
    assert {"cff-version", "message", "title"} <= citation.keys()
    for name in ("license", "keywords"):
        assert citation[name] == PROJECT[name]
    licence = (ROOT / "LICENSE").read_text("utf-8")
    assert licence.startswith(f"{PROJECT['license']} License\n")
    (holder,) = re.findall(r"^Copyright \(c\) \d{4} (.+)$", licence, re.MULTILINE)
    assert [author["name"] for author in citation["authors"]] == [holder]
