"""Which part may import which: a short walk over the sources keeps the layers honest."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("hambench", "kernels", "methods", "reports", "suites")


def imports_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def imports_under(folder: str) -> dict[str, set[str]]:
    paths = [path for path in (ROOT / folder).rglob("*.py") if path.is_file()]
    assert paths, f"{folder} holds no sources: this test would check nothing"
    return {str(path.relative_to(ROOT)): imports_of(path) for path in paths}


def offenders(folder: str, forbidden: tuple[str, ...]) -> dict[str, set[str]]:
    found = {}
    for path, names in imports_under(folder).items():
        wrong = {
            name for name in names if any(name == bad or name.startswith(bad + ".") for bad in forbidden)
        }
        if wrong:
            found[path] = wrong
    return found


def test_kernels_import_nothing_of_hambench_but_themselves():
    wrong = {
        path: names
        for path, names in imports_under("kernels").items()
        if any(name.split(".")[0] == "hambench" and not name.startswith("hambench.kernels") for name in names)
    }
    assert wrong == {}


def test_suites_never_import_methods():
    assert offenders("suites", ("hambench.methods",)) == {}


def test_reports_never_import_torch_methods_or_the_engine():
    forbidden = (
        "torch",
        "hambench.methods",
        "hambench.engine.loop",
        "hambench.engine.llama",
        "hambench.models.target",
        "transformers",
    )
    assert offenders("reports", forbidden) == {}


def test_methods_never_import_suites_reports_or_the_runner():
    assert offenders("methods", ("hambench.suites", "hambench.reports", "hambench.runner.start")) == {}


@pytest.mark.parametrize(
    "module",
    [
        "hambench.records",
        "hambench.store",
        "hambench.runner.sweep",
        "hambench.analysis.metrics",
        "hambench.reports",
        "hambench.cli",
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
        if name.split(".")[0] in FOLDERS[1:]
        and getattr(module, "__file__", None)
        and ROOT / name.split(".")[0] in Path(module.__file__).parents
    }
    assert twice == {}
