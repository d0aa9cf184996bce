"""The documents are true: command lines parse with the real options, Python blocks and examples run, links lead on.

A fenced block is checked by its language: ``bash`` and ``bat`` line by line (``ssai3d-rt`` by the real parser, ``make``
by the Makefile's targets), ``python`` by running it, ``toml`` by parsing it. ``<!-- not run: reason -->`` above a
block says why it cannot run here; it is parsed all the same.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from ssai3d_rt import cli
from tests.command_lines import parse

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LANGUAGES = ("bash", "bat", "python", "toml", "json", "")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: .+ -->\n$")
INLINE = re.compile(r"`(ssai3d-rt [^`]+)`")
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


@dataclass(frozen=True)
class Block:
    """One fenced block of a document."""

    where: str
    language: str
    text: str
    runs: bool

    def lines(self) -> list[str]:
        """Return the lines that are not comments."""
        joined = self.text.replace("\\\n", " ")
        return [line.split("  #")[0].strip() for line in joined.splitlines() if line.strip() and line.strip()[0] != "#"]


def blocks() -> list[Block]:
    """Return every fenced block of every document."""
    found = []
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            runs = NOT_RUN.search(text[: match.start()]) is None
            found.append(Block(f"{path.relative_to(ROOT).as_posix()}:{line}", match[1], match[2], runs))
    return found


def of(*languages: str) -> list[Block]:
    """Return the blocks of these languages."""
    return [b for b in blocks() if b.language in languages]


def where(block: Block) -> str:
    """Give a test the block's place as its id."""
    return block.where


def test_every_block_says_a_language_that_is_checked() -> None:
    assert [b.where for b in blocks() if b.language not in LANGUAGES] == []
    assert len(of("bash", "bat")) >= 10
    assert of("python")


@pytest.mark.parametrize("block", of("bash", "bat"), ids=where)
def test_command_lines(block: Block) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for line in block.lines():
        for part in re.split(r"\s(?:&&|\|)\s", line):
            words = shlex.split(part.replace("\\", "/"), comments=True)
            program = Path(words[0]).name
            if program == "ssai3d-rt":
                assert parse(words[1:]) in cli.EXAMPLES
            elif program == "make":
                assert {w for w in words[1:] if "=" not in w} <= targets, line
            else:
                assert program in {"pip", "py", "python3", "python", "pre-commit", "git", "cd", "jq", "tail"}, line


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_commands_and_options_named_in_the_text_exist(path: Path) -> None:
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    for command in INLINE.findall(text):
        words = command.split()[1:]
        names = [n for n in cli.EXAMPLES if words[: len(n.split())] == n.split()]
        assert names or words[0] in {"--help", "--version", "weights", "COMMAND"}, f"{path.name}: {command}"
        for option in re.findall(r"(?<!\S)--[a-z-]+", command):
            assert option in {"--help", "--version"} | {o for name in names for o in options_of(name)}, command
    known = {o for name in cli.EXAMPLES for o in options_of(name)} | {"--help", "--version"}
    outside = {"--index-url", "--overwrite"}
    for option in re.findall(r"`(--[a-z][a-z-]+)", text):
        assert option in known | outside, f"{path.name}: {option}"


def options_of(name: str) -> set[str]:
    """Return the options of a command."""
    import typer

    command = typer.main.get_command(cli.app)
    for word in name.split():
        command = command.commands[word]  # type: ignore[attr-defined]
    return {o for parameter in command.params for o in (*parameter.opts, *parameter.secondary_opts)}


def run_python(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder of its own, with one thread, warnings as errors for this package."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "SSAI3D_RT_HOME": str(folder / "home")}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


PROLOGUE = """
from ssai3d_rt.imaging.simulate import acquire, strands
from ssai3d_rt.imaging.write import write_ome_tiff
write_ome_tiff("cells.ome.tif", acquire(strands((48, 48, 48), 15), 4), {})
"""


@pytest.mark.parametrize("block", of("python"), ids=where)
def test_python_blocks_parse(block: Block) -> None:
    ast.parse(block.text)


@pytest.mark.timeout(300)
def test_python_blocks_run(tmp_path: Path) -> None:
    """Run all blocks, the README's first: it makes the bundle ``cells.ssai3d`` that the others speak of.

    Each has names of its own, in a folder with a file ``cells.ome.tif``. They run as they stand, but for the minutes of
    fine-tuning, which become a few iterations.
    """
    pytest.importorskip("torch", reason="the blocks fine-tune")
    run = sorted((b for b in of("python") if b.runs), key=lambda b: not b.where.startswith("README"))
    assert run[0].where.startswith("README")
    texts = {b.where: re.sub(r"minutes=[\d.]+", "iterations=2", b.text) for b in run}
    lines = [PROLOGUE, *(f"exec(compile({text!r}, {where!r}, 'exec'), {{}})" for where, text in texts.items())]
    (tmp_path / "blocks.py").write_text("\n".join(lines), encoding="utf-8")
    done = run_python(["blocks.py"], tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", of("toml"), ids=where)
def test_toml_blocks_parse(block: Block) -> None:
    assert tomllib.loads(block.text)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_examples_run(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the example fine-tunes")
    done = run_python([str(path), "--iterations", "2", "--size", "48"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_lead_to_files(path: Path) -> None:
    for target in LINK.findall(path.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (path.parent / target).exists(), target


def test_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [n for n in cli.EXAMPLES if f"`ssai3d-rt {n.split()[0]}" not in readme] == []
    assert [n for n in cli.EXAMPLES if n.split()[-1] not in readme] == []


def test_the_changelog_knows_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
