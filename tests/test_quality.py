"""The project's own rules: lint, types, import contracts, and documents that tell the truth."""

import importlib.util
import json
import os
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
from processes import ROOT, run

from lstm_jax.cli.main import dispatch, sample_command, train_command

TOOLS = Path(sys.executable).parent
DOCUMENTS = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md"))]


@pytest.mark.parametrize(
    "command",
    [
        ("ruff", "check", "."),
        ("ruff", "format", "--check", "."),
        pytest.param(("mypy",), marks=pytest.mark.slow),
        ("lint-imports",),
    ],
    ids=" ".join,
)
def test_the_code_is_clean(command: tuple[str, ...]) -> None:
    if not (TOOLS / command[0]).exists():
        pytest.skip(f"{command[0]} is not installed beside this Python")
    run(TOOLS / command[0], *command[1:])


def test_ci_runs_the_command_that_the_readme_gives() -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Run the tests", 1)[1]
    (command,) = [line for line in section.splitlines() if line.startswith("python3 ")]
    (found,) = re.findall(r"command=\$\((.*)\)", (ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    assert run("bash", "-c", found).strip() == command
    assert "pytest" in command


def test_every_file_that_the_readme_names_exists() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", readme)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.slow
def test_the_python_in_documents_runs() -> None:
    """In one process, which sees one device; each snippet by itself."""
    snippets = []
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        found = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
        assert found or document != "README.md"
        snippets += [(f"{document}, snippet {n}", code) for n, code in enumerate(found, 1)]
    each = (
        "import json, sys\n"
        "for name, code in json.load(sys.stdin):\n"
        "    exec(compile(code, name, 'exec'), {'__name__': '__main__'})"
    )
    run(sys.executable, "-W", "error", "-c", each, input=json.dumps(snippets))


def flags_of(command: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """The flags of a command line, whose program is one of this package's."""
    program, *words = shlex.split(command)
    # The first word may be a preset, or one of lstm-jax's commands.
    first = words[:1] if words and program != "sample.py" and words[0][0] != "-" else []
    run = {"train.py": train_command, "sample.py": sample_command}.get(program, dispatch)
    with pytest.raises(SystemExit):
        run([*first, "--help" if run is dispatch else "--help-all"])
    return set(re.findall(r"--[a-z][\w.-]*", capsys.readouterr().out))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_in_documents_exist(document: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    fenced = "\n".join(re.findall(r"^```\w*\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE))
    ours = r"python (?:-m )?((?:train\.py|sample\.py|lstm_jax)(?: [^|&#\n]*|$))"
    for command in re.findall(ours, fenced, flags=re.MULTILINE):
        flags = set(re.findall(r"(?<!\S)--[a-z][\w.-]*", command))
        known = flags_of(command, capsys)
        by_last_part = {f"--{flag.rpartition('.')[2]}" for flag in known if "." in flag}
        assert flags <= known | by_last_part, command
    for module in re.findall(r"python -m ((?:lstm_jax|bench)[\w.]*)", text):
        place = ROOT / module.replace(".", "/")
        assert place.with_suffix(".py").exists() or (place / "__main__.py").exists(), module
    if Path(document).parent.name == "tutorials":
        commands = (f"train.py {Path(document).stem}", "sample.py")
        known = set.union({"--output"}, *(flags_of(command, capsys) for command in commands))
        assert set(re.findall(r"(?<!\S)`?(--[a-z][\w.-]*\w)", text)) <= known


def test_the_site_of_documents_builds_without_a_warning(tmp_path: Path) -> None:
    if not (TOOLS / "mkdocs").exists():
        pytest.skip("mkdocs is not installed beside this Python (the extra docs)")
    run(TOOLS / "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site")
    core, quickstart, index = (
        (tmp_path / "site" / page / "index.html").read_text(encoding="utf-8")
        for page in ("api/core", "quickstart", "")
    )
    assert "An LSTM layer over time" in core
    assert 'href="quickstart/"' in index
    # The notebook is a page: its links lead to other pages, and its figures are in it.
    assert 'href="../examples/">Examples</a>:' in quickstart
    assert "data:image/png;base64," in quickstart


def test_the_lowest_versions_are_those_that_are_tested() -> None:
    """`constraints-lowest.txt` pins each base dependency to its stated lower bound."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    for requirement in project["dependencies"]:
        name, bound = re.match(r"([\w-]+)>=([\d.]+)", requirement).groups()  # type: ignore[union-attr]
        assert pinned[name] == bound


@pytest.mark.slow
def test_peers_are_where_ci_puts_them() -> None:
    """A live comparison that is skipped for want of a peer must not look green in CI."""
    if not os.environ.get("CI"):
        pytest.skip("only CI insists on PyTorch, Keras and Equinox")
    for name in ("torch", "keras", "equinox"):
        assert importlib.util.find_spec(name), name
