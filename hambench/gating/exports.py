"""Writes an outcome for programs: JSON, JUnit XML, and JSON for github-action-benchmark."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any, Literal, assert_never
from xml.etree import ElementTree

import msgspec

from hambench.gating.checks import Check, Outcome
from hambench.gating.markdown import change_of, detectable_of

SCHEMA_VERSION = 1
# characters that XML 1.0 forbids even if escaped
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render_json(outcome: Outcome, *, strict: bool = False) -> str:
    """Returns the outcome as JSON, unrounded; unknown values are null."""
    fields: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "exit_code": int(outcome.exit_code(strict=strict)),
        "headline": outcome.headline(strict=strict),
        "strict": strict,
        **dataclasses.asdict(dataclasses.replace(outcome, checks=tuple(outcome.ranked))),
    }
    return msgspec.json.format(msgspec.json.encode(fields), indent=2).decode() + "\n"


def render_junit(outcome: Outcome, *, strict: bool = False) -> str:
    """Returns JUnit XML: a regression is a failure, an incomparable check an error, an undecided one a skip."""
    checks = outcome.ranked
    outcomes = {id(check): _junit_element(check) for check in checks}
    told = [element for element, _ in outcomes.values()]
    nothing = not any(check.primary for check in checks) and not outcome.crashes
    suite = ElementTree.Element(
        "testsuite",
        name=_clean(f"hambench {outcome.suite}".strip()),
        tests=str(len(checks) + len(outcome.crashes) + nothing),
        failures=str(told.count("failure")),
        errors=str(told.count("error") + len(outcome.crashes) + nothing),
        skipped=str(told.count("skipped")),
    )
    for check in checks:
        case = _case(suite, f"{check.metric} ({check.group})", f"hambench.{check.metric_class}.{check.cell}")
        text = f"{check.verdict}: {change_of(check)}, found 4 in 5: {detectable_of(check)}; {check.reason}"
        element, why = outcomes[id(check)]
        if element == "skipped":
            ElementTree.SubElement(case, element, message=_clean(f"{why}; {text}"))
        elif element is not None:
            ElementTree.SubElement(case, element, message=_clean(text), type=why)
        ElementTree.SubElement(case, "system-out").text = _clean(text)
    for line in outcome.crashes:
        case = _case(suite, line.partition(":")[0], "hambench.crashed")
        ElementTree.SubElement(case, "error", message=_clean(line), type="crashed")
    if nothing:
        # CI systems show an empty suite as passed, so add an error
        case = _case(suite, "anything measured", "hambench")
        ElementTree.SubElement(case, "error", message="no deciding check was measured", type="empty")
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def render_action_benchmark(outcome: Outcome) -> str:
    """Returns JSON for github-action-benchmark's tool ``customBiggerIsBetter``.

    Each value is head / base, or base / head if smaller is better, so that 1 means no change and less is worse.
    """
    entries = []
    for check in outcome.checks:
        effect = check.effect
        if effect is None or check.metric_class in ("accuracy", "fidelity") or not effect.value > 0:
            continue
        gain = effect.value if check.better == "higher" else 1 / effect.value
        entry: dict[str, Any] = {
            "name": f"{check.metric} · {check.cell} · {check.group}",
            "unit": "× base" if check.better == "higher" else "base ÷ head",
            "value": gain,
            "extra": f"{check.verdict}{'' if check.primary else ' (advisory)'} {check.reason}".strip(),
        }
        if effect.low is not None and effect.high is not None:
            entry["range"] = f"± {(math.log(effect.high) - math.log(effect.low)) / 2:.4f}"
        entries.append(entry)
    return json.dumps(entries, ensure_ascii=False, indent=2) + "\n"


def _junit_element(check: Check) -> tuple[Literal["failure", "error", "skipped"] | None, str]:
    """Returns a check's JUnit element and its reason; ``None`` for a pass."""
    if not check.primary:
        return "skipped", "advisory"
    match check.verdict:
        case "regressed":
            return "failure", check.verdict
        case "not comparable":
            return "error", check.verdict
        case "inconclusive":
            return "skipped", "undecided"
        case "improved" | "equivalent":
            return None, ""
        case _:
            assert_never(check.verdict)


def _case(suite: ElementTree.Element, name: str, class_name: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", name=_clean(name), classname=_clean(class_name))


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
