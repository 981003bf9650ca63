"""Which package may import which. Arrows point down only, lazy and type-only imports included (LAYERS is the table)."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "hambench": "hambench",
    "kernels": "hambench.kernels",
    "methods": "hambench.methods",
    "reports": "hambench.reports",
    "suites": "hambench.suites",
}

CONTRACT = {
    "_version",
    "decoding",
    "errors",
    "files",
    "groups",
    "method_config",
    "method_facts",
    "paths",
    "pip",
    "records",
    "registry",
    "run_notes",
    "store",
    "terminal_text",
    "yaml_files",
}
"""Modules and packages directly under hambench that every package may import; the other ones are the front door."""

# from the lowest floor to the highest; a name stands for the package and everything below it
LAYERS = {
    "contract": set(),
    "kernels": set(),
    "engine": {"contract"},
    "engine.cuda": {"contract", "engine", "kernels"},
    "engine.cpu": {"contract", "engine", "kernels"},
    "machine": {"contract"},
    "suites": {"contract"},
    "models": {"contract", "engine"},
    "profiling": {"contract", "engine", "machine"},
    "roofline": {"contract", "models"},
    "analysis": {"contract", "models", "roofline"},
    "serving": {"contract", "engine", "models", "analysis"},
    "history": {"contract", "machine", "analysis"},
    "methods": {"contract", "engine", "models", "serving"},
    "methods.hamburger": {
        "contract",
        "kernels",
        "engine",
        "engine.cuda",
        "engine.cpu",
        "models",
        "methods",
    },
    "runner": {
        "contract",
        "engine",
        "engine.cuda",
        "engine.cpu",
        "machine",
        "suites",
        "models",
        "roofline",
        "analysis",
    },
    "reports": {"contract", "machine", "profiling", "roofline", "analysis", "history"},
    "front": {"contract", "engine.cpu", "machine", "suites", "models", "analysis", "runner"},
    "gating": {
        "contract",
        "engine",
        "machine",
        "suites",
        "models",
        "analysis",
        "history",
        "methods",
        "methods.hamburger",
        "runner",
    },
    "bench": {
        "contract",
        "kernels",
        "engine",
        "engine.cuda",
        "engine.cpu",
        "machine",
        "suites",
        "models",
        "profiling",
        "roofline",
        "analysis",
        "serving",
        "methods",
        "methods.hamburger",
        "runner",
        "reports",
        "front",
    },
}
"""Packages that a package may import, itself not counted. ``cli`` may import everything, and nothing imports it."""

TYPE_ONLY_CIRCLES = {
    # the contract is of sessions and of the configs that build them
    ("method_config", "decoding"),
    # a config is importable without torch and builds its method lazily; the method's annotations name the config
    ("methods.hamburger.method", "methods.hamburger.config"),
    ("methods.peers.endpoint_session", "methods.peers.endpoint"),
    # the stages are functions over the trainer's state
    ("methods.hamburger.training.calibration", "methods.hamburger.training.trainer"),
    ("methods.hamburger.training.merge_stage", "methods.hamburger.training.trainer"),
    ("methods.hamburger.training.micro_stage", "methods.hamburger.training.trainer"),
    # a forward over fixed buffers runs the model that prepares and keeps it
    ("engine.cuda.forwards", "engine.cuda.fused_llama"),
    # comparisons are made for a view and shown by it
    ("reports.compared", "reports.view"),
    # a figure keeps the function that draws it on a canvas
    ("reports.values", "reports.draw.canvas"),
}
"""Imports for annotations only that would close a circle of files (docs/adr/0016-rooms-and-floors.md)."""


def modules() -> dict[str, Path]:
    """Every module by its dotted name."""
    by_name = {}
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            if "checkpoints" in path.parts:
                continue
            parts = [*package.split("."), *path.relative_to(ROOT / folder).with_suffix("").parts]
            by_name[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return by_name


MODULES = modules()


def imports_of(path: Path, *, with_annotations: bool = True) -> set[str]:
    """Modules of hambench that a file imports anywhere in it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = set()
    if not with_annotations:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                skipped |= {id(inner) for statement in node.body for inner in ast.walk(statement)}
    names = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative imports hide which package is meant"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else node.module for name in inner}
    return names & set(MODULES)


def layer_of(module: str) -> str:
    """Layer that a module belongs to: the longest name of the table that it begins with."""
    parts = module.split(".")[1:]
    if parts and parts[0] in CONTRACT:
        return "contract"
    if not parts or (len(parts) == 1 and MODULES[module].name != "__init__.py"):
        return "front"
    if parts[0] == "cli":
        return "cli"
    return max(
        (name for name in LAYERS if parts[: len(name.split("."))] == name.split(".")),
        key=len,
        default="no layer",
    )


def crossings() -> Iterator[tuple[str, str, str, str]]:
    """Imports from one layer to another: layer, layer, module, module."""
    for module, path in MODULES.items():
        for imported in imports_of(path):
            source, target = layer_of(module), layer_of(imported)
            if source != target:
                yield source, target, module, imported


def test_every_module_is_on_a_floor():
    assert [name for name in MODULES if layer_of(name) == "no layer"] == []
    on_disk = {layer_of(name) for name in MODULES} - {"cli"}
    assert set(LAYERS) - on_disk == set(), "the table names a package that is not there"


def test_the_table_itself_has_no_circle():
    order = list(LAYERS)
    upward = {
        (name, up) for name, below in LAYERS.items() for up in below if order.index(up) >= order.index(name)
    }
    assert upward == set()


def test_arrows_point_down_only():
    # `python -m hambench` is the command line
    wrong = sorted(
        f"{module} imports {imported}: {source} may not import {target}"
        for source, target, module, imported in crossings()
        if source != "cli" and target not in LAYERS[source] and module != "hambench.__main__"
    )
    assert wrong == []


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected sets of more than one node, by Tarjan's algorithm (doi:10.1137/0201010)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    components = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(edges[node]):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                components.append(sorted(component))

    for node in edges:
        if node not in index:
            visit(node)
    return components


def test_no_files_import_each_other_in_a_circle():
    named = {(f"hambench.{source}", f"hambench.{target}") for source, target in TYPE_ONLY_CIRCLES}
    edges = {
        module: {other for other in imports_of(path) if other != module and (module, other) not in named}
        for module, path in MODULES.items()
    }
    assert circles(edges) == []


def test_the_named_circles_are_of_annotations_only_and_still_there():
    for source, target in sorted(TYPE_ONLY_CIRCLES):
        path = MODULES[f"hambench.{source}"]
        assert f"hambench.{target}" in imports_of(path), f"{source} no longer imports {target}: drop the row"
        assert f"hambench.{target}" not in imports_of(path, with_annotations=False)


def test_the_walk_finds_circles():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_no_folder_is_a_drawer():
    """Fifteen files of one kind can be taken in at a glance; cli has one file per command."""
    sizes: dict[str, int] = {}
    for module, path in MODULES.items():
        if not path.name.startswith("_"):
            sizes[module.rsplit(".", 1)[0]] = sizes.get(module.rsplit(".", 1)[0], 0) + 1
    assert {name: size for name, size in sizes.items() if size > 16 and name != "hambench.cli"} == {}


def test_no_module_is_longer_than_400_lines():
    long = {name: n for name, path in MODULES.items() if (n := len(path.read_text().splitlines())) > 400}
    assert long == {}


def test_reports_never_import_torch_or_transformers():
    wrong = set()
    for name, path in MODULES.items():
        if name.startswith("hambench.reports"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                wrong |= {name for module in modules if module.split(".")[0] in ("torch", "transformers")}
    assert wrong == set()


@pytest.mark.parametrize(
    "module",
    [
        "hambench.records",
        "hambench.store",
        "hambench.runner.sweep",
        "hambench.analysis.metrics",
        "hambench.reports",
        "hambench.cli",
        "hambench.engine",
        "hambench.models",
        "hambench.machine",
        "hambench.runner",
        "hambench.profiling",
        "hambench.roofline",
        "hambench.history",
        "hambench.gating",
        "hambench.bench",
        "hambench.serving",
        "hambench.suites",
        "hambench.methods.hamburger",
        "hambench.methods.peers",
    ],
)
def test_importing_it_does_not_import_torch(module):
    program = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_listing_methods_does_not_import_torch():
    program = (
        "import sys; from hambench.runner.sweep import Sweep; "
        "Sweep(model='m', methods=('vanilla', 'speculative', 'prompt_lookup')).expand(); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_no_folder_was_loaded_a_second_time_under_its_bare_name():
    import hambench.methods
    import hambench.suites  # noqa: F401

    # pytest gives tests/methods the same bare name; what matters is whose sources it holds
    twice = {
        name: module.__file__
        for name, module in list(sys.modules.items())
        if name.split(".")[0] in ("kernels", "methods", "reports", "suites")
        and getattr(module, "__file__", None)
        and ROOT / name.split(".")[0] in Path(module.__file__).parents
    }
    assert twice == {}
