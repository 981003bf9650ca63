"""Nothing below the methods knows one by name: what it needs, the method's config states."""

import ast
from pathlib import Path

import pytest

from hambench.decoding import MethodConfig
from hambench.methods.peers.base import PeerConfig
from hambench.registry import BUILTIN, facts_of, method_config

ROOT = Path(__file__).resolve().parent.parent
BASELINE = "hambench/registry.py"
"""Vanilla's role as the baseline is stated there, once."""


def method_comparisons(source: str) -> list[int]:
    """Lines that compare something with a method's name, match on one, or look one up as a key."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            sides = [node.value]
        elif isinstance(node, ast.Dict):
            sides = [key for key in node.keys if key is not None]
        elif isinstance(node, ast.Subscript):
            sides = [node.slice]
        else:
            continue
        literals = {
            literal.value
            for side in sides
            for literal in ([side, *getattr(side, "elts", [])])
            if isinstance(literal, ast.Constant)
        }
        if literals & set(BUILTIN):
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("folder", ["hambench", "reports", "suites", "kernels"])
def test_no_part_compares_a_methods_name_with_a_literal(folder):
    # a name may also be a package's: such lines are about the package transformers, not the method
    packages = {"hambench/bench/engine.py", "hambench/registry.py"}
    wrong = {
        str(path.relative_to(ROOT)): lines
        for path in sorted((ROOT / folder).rglob("*.py"))
        if str(path.relative_to(ROOT)) not in packages and (lines := method_comparisons(path.read_text()))
    }
    assert wrong == {}


def test_the_check_finds_what_it_looks_for():
    for line in (
        "if cell.method == 'hamburger': pass",
        "x = cell.method in ('vanilla', 'speculative')",
        "styles = {'prompt_lookup': 1}",
        "x = extra['speculative']",
        "match name:\n  case 'hamburger': pass",
    ):
        assert method_comparisons(line), line
    assert not method_comparisons("from x import vanilla; name = 'hamburger'")


def test_the_baseline_is_named_once():
    named = [
        str(path.relative_to(ROOT))
        for folder in ("hambench", "reports")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assign) and any(getattr(t, "id", "") == "BASELINE" for t in node.targets)
    ]
    assert named == [BASELINE]


@pytest.mark.parametrize("name", BUILTIN)
def test_every_method_says_what_it_does_in_one_sentence(name):
    text = method_config(name).summary()
    assert len(text) >= 30
    assert text.endswith(".")
    assert "knobs" not in text.lower()


def test_methods_that_ship_with_hambench_are_told_apart_by_their_looks():
    looks = [method_config(name).look for name in BUILTIN if method_config(name).in_all]
    assert None not in looks
    assert len(set(looks)) == len(looks)


def test_a_method_that_is_not_installed_has_the_defaults():
    assert facts_of("of another machine") is MethodConfig
    assert MethodConfig.phases == ()


def test_every_peer_states_what_all_peers_share():
    """llama_server once could be asked for in a batch, because it had forgotten to say that it can't be in one."""
    peers = {name for name in BUILTIN if ".peers." in method_config(name).__module__}
    assert peers == {name for name in BUILTIN if issubclass(method_config(name), PeerConfig)}
    assert peers == {"transformers", "llama_cpp", "llama_server", "endpoint"}
    for name in peers:
        assert "in_all" not in vars(method_config(name))
        assert "shares_forwards" not in vars(method_config(name))
    assert not PeerConfig.in_all
    assert not PeerConfig.shares_forwards
