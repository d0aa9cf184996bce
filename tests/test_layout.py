"""The house keeps its walls: packaging, who imports whom, names and sizes of modules."""

from __future__ import annotations

import ast
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("calibration", "export", "runtime")
"""Folders at the root that are imported under the package's name."""

ARROWS: dict[str, tuple[str, ...]] = {
    "foundation": (),
    "imaging": ("foundation",),
    "network": ("foundation", "imaging"),
    "calibration": ("foundation", "imaging", "network"),
    "adapt": ("foundation", "imaging", "network", "calibration"),
    "compare": ("foundation", "imaging", "network", "calibration", "adapt"),
    "export": ("foundation", "imaging", "network", "calibration", "adapt"),
    "runtime": ("foundation", "imaging", "network", "calibration", "adapt", "export"),
    "door": ("foundation", "imaging", "network", "calibration", "adapt", "compare", "export", "runtime"),
}
"""Who may import whom: each part those to its left. `door` is the demo, the command line and the public API."""

FOUNDATION = ("errors", "progress", "config", "figure")
TORCH_FREE = ("torch", "onnxscript", "scipy", "skimage", "matplotlib")
"""What the runtime must do without; its reference backend alone may import torch."""

FORBIDDEN_NAMES = ("onnx", "tensorrt", "torch", "openvino", "onnxruntime")
"""Modules of these names would hide the packages that tools look for."""

LONG_MODULES: dict[str, str] = {}
"""Modules that may pass 400 lines, each with its reason."""

MAX_LINES = 400


@dataclass(frozen=True)
class Module:
    """One source file of the package: its dotted name, path and what it imports."""

    name: str
    path: Path

    @property
    def part(self) -> str:
        """The part of the house that the module belongs to."""
        second = self.name.split(".")[1] if "." in self.name else ""
        if second in FOUNDATION:
            return "foundation"
        return second if second in ARROWS else "door"

    def tree(self) -> ast.Module:
        """Parse the source."""
        return ast.parse(self.path.read_text(encoding="utf-8"), self.path.as_posix())


@cache
def modules() -> tuple[Module, ...]:
    """Return every module of the package, found in the folders themselves, not through the links."""
    found = []
    for top, prefix in (("ssai3d_rt", "ssai3d_rt"), *((stage, f"ssai3d_rt.{stage}") for stage in STAGES)):
        for path in sorted((ROOT / top).rglob("*.py")):
            inside = path.relative_to(ROOT / top)
            if top == "ssai3d_rt" and inside.parts[0] in STAGES:
                continue
            parts = [prefix, *inside.with_suffix("").parts]
            found.append(Module(".".join(parts).removesuffix(".__init__"), path))
    return tuple(found)


def imports(tree: ast.AST, *, type_checking: bool = False) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of each import; those for type checkers only when asked."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            if type_checking:
                yield from imports(node, type_checking=True)
            for other in node.orelse:
                yield from imports(other, type_checking=type_checking)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module or ''}.{alias.name}") for alias in node.names)
        else:
            yield from imports(node, type_checking=type_checking)


def project() -> dict[str, Any]:
    """Read pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def by_name(module: Module) -> str:
    """Give a parametrised test the module's name as its id."""
    return module.name


def test_packages_listed_are_the_folders() -> None:
    listed = project()["tool"]["setuptools"]["packages"]
    folders = {m.name for m in modules() if m.path.name == "__init__.py"}
    assert sorted(listed) == sorted(folders)


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {m.path.parent for m in modules()}
    assert [f for f in folders if not (f / "__init__.py").is_file()] == []


def test_package_dir_maps_the_stages_and_the_links_point_there() -> None:
    mapping = project()["tool"]["setuptools"]["package-dir"]
    assert mapping == {"ssai3d_rt": "ssai3d_rt"} | {f"ssai3d_rt.{stage}": stage for stage in STAGES}
    for stage in STAGES:
        link = ROOT / "ssai3d_rt" / stage
        if link.is_file():
            pytest.skip("git wrote the symbolic links as text files here (Windows without the right to make links)")
        assert link.is_symlink()
        assert not link.readlink().is_absolute()
        assert link.resolve() == ROOT / stage


@pytest.mark.parametrize("module", modules(), ids=by_name)
def test_import_arrows(module: Module) -> None:
    allowed = {*ARROWS[module.part], module.part}
    wrong = []
    for line, name in imports(module.tree(), type_checking=True):
        if name.startswith("ssai3d_rt."):
            target = Module(name, module.path).part
            if target not in allowed:
                wrong.append(f"line {line}: {module.part} imports {name} ({target})")
    if module.name == "ssai3d_rt":
        assert module.part == "door"
    assert wrong == []


@pytest.mark.parametrize("module", modules(), ids=by_name)
def test_imports_are_absolute_and_under_the_package_name(module: Module) -> None:
    relative = [n.lineno for n in ast.walk(module.tree()) if isinstance(n, ast.ImportFrom) and n.level]
    bare = [name for _, name in imports(module.tree(), type_checking=True) if name.split(".")[0] in STAGES]
    assert relative == []
    assert bare == []


def test_nothing_that_a_restoring_rig_lacks_is_imported_by_the_runtime() -> None:
    """Follow the imports that run from every runtime module, through the package, inside functions too."""
    known = {m.name: m for m in modules()}
    start = [m for m in modules() if m.part == "runtime"]
    wrong = []
    for module in start:
        for line, name in imports(module.tree()):
            heavy = name.split(".")[0]
            if heavy in TORCH_FREE and module.name != "ssai3d_rt.runtime.backends.reference":
                wrong.append(f"{module.name} line {line} imports {heavy}")
    # What the runtime imports of other parts may hold torch inside functions only, which the import test proves; the
    # training side has no place here at all.
    for module in start:
        if module.name == "ssai3d_rt.runtime.backends.reference":
            continue
        for line, name in imports(module.tree()):
            if name in known or name.rpartition(".")[0] in known:
                target = known.get(name) or known[name.rpartition(".")[0]]
                if target.part == "adapt":
                    wrong.append(f"{module.name} line {line} imports {target.name}")
    assert wrong == []


def test_hooks_import_the_standard_library_only() -> None:
    hooks = [m for m in modules() if m.name.startswith("ssai3d_rt.runtime.hooks")]
    assert hooks
    wrong = [
        f"{m.name} line {line}: {name}"
        for m in hooks
        for line, name in imports(m.tree(), type_checking=True)
        if name.split(".")[0] not in sys.stdlib_module_names
    ]
    assert wrong == []


def test_no_module_hides_a_package() -> None:
    assert [m.name for m in modules() if m.path.stem in FORBIDDEN_NAMES] == []


def test_modules_hold_one_concept() -> None:
    lengths = {m.name: len(m.path.read_text(encoding="utf-8").splitlines()) for m in modules()}
    long = {name for name, length in lengths.items() if length > MAX_LINES}
    assert long == set(LONG_MODULES), "split it, or give its reason in LONG_MODULES"


@pytest.mark.parametrize("module", modules(), ids=by_name)
def test_every_module_says_what_it_is(module: Module) -> None:
    text = ast.get_docstring(module.tree())
    assert text is not None
    assert len(text) >= 20


def test_every_extra_that_a_message_names_exists() -> None:
    extras = set(project()["project"]["optional-dependencies"])
    named = set()
    for module in modules():
        source = module.path.read_text(encoding="utf-8")
        for group in re.findall(r"ssai3d-rt\[([a-z0-9,-]+)\]", source):
            named.update(group.split(","))
        for node in ast.walk(module.tree()):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("MissingPackageError"):
                named |= {
                    k.value.value for k in node.keywords if k.arg == "extra" and isinstance(k.value, ast.Constant)
                }
    assert named
    assert named <= extras
    assert "train" in named


def test_constraints_pin_what_the_project_needs() -> None:
    pinned = re.findall(r"^([A-Za-z0-9._-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    names = {name.lower().replace("_", "-") for name in pinned}
    config = project()["project"]
    wanted = set(config["dependencies"])
    for extra in ("cpu", "train", "micromanager", "demo", "test", "dev", "tensorrt-rtx"):
        wanted |= set(config["optional-dependencies"][extra])
    needed = {re.split(r"[\[<>=; ]", w)[0].lower().replace("_", "-") for w in wanted} - {"ssai3d-rt", "tomli"}
    assert needed - names == set()
    assert not re.search(r"https?:|--", (ROOT / "constraints.txt").read_text(encoding="utf-8"))
