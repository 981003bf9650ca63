"""The verdict strip in words: one answer, then one sentence per method; :mod:`hambench.analysis.verdicts` decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from hambench.analysis.baselines import is_baseline
from hambench.analysis.metrics import METRICS
from hambench.analysis.verdicts import best_of
from hambench.groups import asks_accuracy
from hambench.records import Comparison, Estimate, Verdict
from hambench.reports.compared import effect_of, fidelity_words
from hambench.reports.number_text import ABSENT, listing, ratio_text, signed
from hambench.reports.page.standing import SAFE, TIERS, Standing, accuracy_standing, is_by_design, is_faster
from hambench.reports.view import CellView, View

KV_METRIC = "kv_bytes_per_position"

SYMBOLS: dict[Verdict, str] = {
    "better": "▲",
    "worse": "▼",
    "equivalent": "≈",
    "inconclusive": "?",
    "not comparable": "✕",
}
TONES: dict[Verdict, str] = {
    "better": "good",
    "worse": "bad",
    "equivalent": "good",
    "inconclusive": "warn",
    "not comparable": "warn",
}

SPEED_WORDS: dict[Verdict, str] = {
    "better": "faster",
    "worse": "slower",
    "equivalent": "as fast",
    "inconclusive": "speed inconclusive",
    "not comparable": "speed not comparable",
}
ACCURACY_WORDS: dict[Verdict, str] = {
    "better": "more accurate",
    "worse": "less accurate",
    "equivalent": "accuracy held",
    "inconclusive": "accuracy inconclusive",
    "not comparable": "accuracy not comparable",
}
KV_WORDS: dict[Verdict, str] = {
    "better": "less KV memory",
    "worse": "more KV memory",
    "equivalent": "same KV memory",
    "inconclusive": "KV memory inconclusive",
    "not comparable": "KV memory not comparable",
}


@dataclass(frozen=True, slots=True)
class Stat:
    """One large number of a card."""

    title: str
    value: str
    interval: str
    word: str
    symbol: str
    tone: str


@dataclass(frozen=True, slots=True)
class MethodVerdict:
    """A card: a method's best setting, and a sentence per other setting."""

    cell: CellView
    sentence: str
    stats: tuple[Stat, ...]
    chosen_of: int
    others: tuple[tuple[str, str], ...]
    """(label, sentence) of the method's other settings."""


def method_verdicts(view: View) -> list[MethodVerdict]:
    """Returns a verdict per method, in report order."""
    verdicts = []
    for method in view.methods:
        cells = [cell for cell in view.cells if cell.method == method]
        best = min(cells, key=lambda cell: _rank(view, cell))
        verdicts.append(
            MethodVerdict(
                cell=best,
                sentence=sentence(view, best),
                stats=stats(view, best),
                chosen_of=len(cells),
                others=tuple((cell.label, sentence(view, cell)) for cell in cells if cell is not best),
            )
        )
    return verdicts


def answer(view: View) -> str:
    """Returns which method to ship and on what evidence, in a sentence or two."""
    base = view.baseline
    where = f"on this machine and {view.model_name}"
    if base is None:
        return "Without a vanilla cell in the run there is nothing to compare with; the numbers below are absolute."
    # vanilla under other conditions is a baseline, not a method to ship
    settings = [cell for cell in view.cells if not is_baseline(cell.cell) and not cell.control]
    faster = [cell for cell in settings if is_faster(view, cell)]
    by_standing: dict[Standing, list[CellView]] = {}
    for cell in sorted(faster, key=lambda cell: -_effect(view, cell, "tps")):
        by_standing.setdefault(accuracy_standing(view, cell), []).append(cell)
    safe = [cell for cell in faster if accuracy_standing(view, cell) in SAFE]
    if safe:
        best = max(safe, key=lambda cell: _effect(view, cell, "tps"))
        return (
            f"Ship {best.label}: {_speed(view, best, settings)} {where}, {_rests_on(view, best)}."
            f"{_faster_still(view, best, by_standing)}"
        )
    if "open" in by_standing:
        best = by_standing["open"][0]
        accuracy = view.compared(best, "accuracy")
        assert accuracy is not None
        return (
            f"{best.label} is the fastest setting that was not shown to lose accuracy: "
            f"{_speed(view, best, settings)} {where}, accuracy {_points(accuracy)}. Whether accuracy holds is open"
            f"{_told(accuracy)}.{_behind(by_standing)}"
        )
    if "unscored" in by_standing:
        best = by_standing["unscored"][0]
        return (
            f"{best.label} is the fastest setting: {_speed(view, best, settings)} {where}. "
            f"{_why_unscored(view, best)}{_behind(by_standing)}"
        )
    if by_standing:
        return f"Keep {base.label}: what is faster {where} is no substitute for it.{_behind(by_standing)}"
    if not settings:
        names = listing([cell.label for cell in view.cells[:3]])
        return f"Only {names} {'was' if len(view.cells) == 1 else 'were'} run, so there is nothing to choose."
    undecided = [
        cell for cell in settings if view.compared(cell, "tps") is not None and is_faster(view, cell) is None
    ]
    if undecided:
        names = listing([cell.label for cell in undecided[:3]])
        more = f" and {len(undecided) - 3} more" if len(undecided) > 3 else ""
        return f"Keep {base.label} for now: nothing was shown to be faster {where}. Undecided: {names}{more}."
    return f"Keep {base.label}: nothing in this run was faster {where}."


def _speed(view: View, best: CellView, settings: Sequence[CellView]) -> str:
    """Returns the speed of the chosen setting, with an interval that accounts for the choice of the best."""
    comparison = view.compared(best, "tps")
    rivals = [cell for cell in settings if cell.cell.run == best.cell.run]
    base = view.baseline_of(best)
    name = "its baseline" if base is None else base.label
    if len(rivals) < 2 or comparison is None:
        return f"{_ratio(effect_of(comparison))} the speed of {name}"
    chosen = best_of(comparison, len(rivals))
    return f"{_ratio(chosen)} the speed of {name} (best of {len(rivals)} settings, interval widened for the choice)"


def _rests_on(view: View, cell: CellView) -> str:
    comparison = view.compared(cell, "accuracy")
    if comparison is not None and is_by_design(view, cell, comparison):
        return f"lossless by design: {comparison.num_equal} of {comparison.num_answers} answers are its baseline's"
    return "with accuracy shown to hold"


def _faster_still(view: View, best: CellView, by_standing: Mapping[Standing, Sequence[CellView]]) -> str:
    text = ""
    for standing, rest in (
        ("open", "whether it holds accuracy is open"),
        ("unscored", "nothing is known about its accuracy"),
        ("left", "it was shown to leave the target"),
        ("lost", "it is less accurate"),
    ):
        rivals = by_standing.get(cast("Standing", standing), ())
        if rivals and _effect(view, rivals[0], "tps") > _effect(view, best, "tps"):
            speed = _ratio(effect_of(view.compared(rivals[0], "tps")))
            text += f" {rivals[0].label} is faster still ({speed}), but {rest}."
    return text


def _behind(by_standing: Mapping[Standing, Sequence[CellView]]) -> str:
    """Returns the faster settings that were shown to be worse, with a sentence per reason."""
    ways: tuple[tuple[Standing, str], ...] = (
        ("lost", "less accurate"),
        ("left", "further from the target's own choices"),
    )
    text = ""
    for standing, words in ways:
        labels = [cell.label for cell in by_standing.get(standing, ())[:3]]
        text += (
            f" {listing(labels)} {'is' if len(labels) == 1 else 'are'} faster and {words}." if labels else ""
        )
    return text


def _why_unscored(view: View, cell: CellView) -> str:
    comparison = view.compared(cell, "accuracy")
    if not view.run.scores:
        asked = asks_accuracy(view.run.header.suite_spec)
        return (
            "Its accuracy was not scored."
            if asked
            else "Accuracy was not asked: the prompts have no references."
        )
    reason = "there is no comparison" if comparison is None else comparison.reason
    return f"Its accuracy is not comparable: {reason}."


def sentence(view: View, cell: CellView) -> str:
    """Returns a sentence per setting.

    Example: ``1.71× [1.64, 1.78] TPS, KV per position −31 %, accuracy −0.4 pt [−1.9, +1.1]: faster, accuracy held``.
    """
    measured = view.measured(cell)
    if measured.num_samples == 0:
        return "no answer: every sample failed" if measured.num_errors else "no sample was run"
    if view.is_baseline(cell):
        speed = "no decode speed" if measured.tps is None else f"{measured.tps:.1f} tokens/s"
        score = "no score" if measured.accuracy is None else f"accuracy {points_text(measured.accuracy)}"
        return f"The baseline: {speed}, {score}, over {measured.num_samples} samples."
    tps, kv, accuracy = (view.compared(cell, metric) for metric in ("tps", KV_METRIC, "accuracy"))
    if tps is None and kv is None and accuracy is None:
        absolute = "no decode speed" if measured.tps is None else f"{measured.tps:.1f} tokens/s"
        return f"{absolute} over {measured.num_samples} samples; nothing to compare with."
    parts, words = [], []
    if tps is not None:
        parts.append(f"{_ratio(effect_of(tps))} TPS")
        words.append(f"{SPEED_WORDS[tps.verdict]}{_told(tps)}")
    if kv is not None and kv.effect is not None:
        parts.append(f"KV per position {percent_change(kv.effect.value)}")
        words += [KV_WORDS[kv.verdict]] if kv.verdict in ("better", "worse") else []
    if accuracy is not None:
        parts += [f"accuracy {_points(accuracy)}"] if accuracy.effect is not None else []
        words.append(f"{ACCURACY_WORDS[accuracy.verdict]}{_told(accuracy)}")
    else:
        words.append("not scored")
    words += fidelity_words(view.compared(cell, "regret"))
    control = " The one-token control: same weights, one token per step." if cell.control else ""
    base = view.baseline_of(cell)
    against = f"Against {base.label}: " if view.several_baselines and base is not None else ""
    return f"{against}{', '.join(parts)}: {listing(words)}.{control}"


def stats(view: View, cell: CellView) -> tuple[Stat, ...]:
    """Returns the three numbers of a card: speed, accuracy, KV memory."""
    measured = view.measured(cell)
    if view.is_baseline(cell) or view.baseline is None:
        acc = measured.accuracy
        return (
            Stat(
                "decode speed",
                ABSENT if measured.tps is None else f"{measured.tps:.1f}",
                "tokens/s",
                "",
                "",
                "",
            ),
            Stat(
                "accuracy", ABSENT if acc is None else f"{acc.value:.1f}", _interval(acc, 1, "pt"), "", "", ""
            ),
            Stat("KV per answer", _mib(measured.kv_bytes), "MiB, mean of peaks", "", "", ""),
        )
    tps, accuracy, kv = (view.compared(cell, metric) for metric in ("tps", "accuracy", KV_METRIC))
    return (
        _stat("decode speed", tps, SPEED_WORDS),
        _stat("accuracy", accuracy, ACCURACY_WORDS),
        _stat("KV per position", kv, KV_WORDS),
    )


def percent_change(ratio: float) -> str:
    """Formats a ratio as a change: ``−31 %``."""
    return f"{signed(100 * (ratio - 1), 0 if abs(ratio - 1) >= 0.1 else 1)} %"


_SHORT: dict[str, Callable[[str], str]] = {
    "tps": lambda word: word.removeprefix("speed "),
    "accuracy": lambda word: word.removeprefix("accuracy "),
    KV_METRIC: lambda word: word.removeprefix("KV memory ").removesuffix(" KV memory"),
}
_SHOW: dict[str, Callable[[float], str]] = {
    "tps": ratio_text,
    "accuracy": signed,
    KV_METRIC: percent_change,
}
_UNITS = {"tps": "×", "accuracy": " pt", KV_METRIC: ""}


def points_text(estimate: Estimate) -> str:
    """Formats an accuracy with its interval."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.1f}"
    return f"{estimate.value:.1f} [{estimate.low:.1f}, {estimate.high:.1f}]"


def _rank(view: View, cell: CellView) -> tuple[bool, bool, int, float]:
    # the control is for comparison, not for shipping
    tier = TIERS[accuracy_standing(view, cell)]
    return (cell is not view.baseline, cell.control, tier, -_effect(view, cell, "tps"))


def _effect(view: View, cell: CellView, metric: str) -> float:
    comparison = view.compared(cell, metric)
    if comparison is None or comparison.effect is None:
        return float("-inf")
    return comparison.effect.value


def _stat(title: str, comparison: Comparison | None, words: dict[Verdict, str]) -> Stat:
    effect = effect_of(comparison)
    if comparison is None or effect is None:
        return Stat(title, ABSENT, "", comparison.reason if comparison else "nothing to compare", "✕", "warn")
    show = _SHOW[comparison.metric]
    interval = ""
    if effect.low is not None and effect.high is not None:
        # a counted ratio that is equal in every answer has an interval of zero width
        same = show(effect.low) == show(effect.high)
        interval = "" if same else f"[{show(effect.low)}, {show(effect.high)}]"
    elif comparison.metric == "accuracy" and comparison.verdict == "equivalent":
        interval = "lossless by design"
    elif METRICS[comparison.metric].metric_class == "exact" and comparison.verdict in (
        "better",
        "worse",
        "equivalent",
    ):
        # a count on too few samples for statistics is called where all of them agree
        interval = comparison.reason
    else:
        interval = "no interval: too few samples"
    word = _SHORT[comparison.metric](words[comparison.verdict])
    value = f"{show(effect.value)}{_UNITS[comparison.metric]}"
    return Stat(title, value, interval, word, SYMBOLS[comparison.verdict], TONES[comparison.verdict])


def _interval(estimate: Estimate | None, digits: int, unit: str, *, as_signed: bool = False) -> str:
    if estimate is None or estimate.low is None or estimate.high is None:
        return unit
    ends = (
        signed(end, digits) if as_signed else f"{end:.{digits}f}" for end in (estimate.low, estimate.high)
    )
    return f"[{', '.join(ends)}] {unit}".strip()


def _ratio(effect: Estimate | None) -> str:
    if effect is None:
        return ABSENT
    value = f"{ratio_text(effect.value)}×"
    if effect.low is None or effect.high is None:
        return value
    return f"{value} [{ratio_text(effect.low)}, {ratio_text(effect.high)}]"


def _points(comparison: Comparison) -> str:
    effect = effect_of(comparison)
    return (
        ABSENT
        if effect is None
        else f"{signed(effect.value)} pt {_interval(effect, 1, '', as_signed=True)}".strip()
    )


def _told(comparison: Comparison) -> str:
    """Returns the brackets after a word: the smallest effect that these samples could show, and the reason."""
    smallest = comparison.minimum_detectable_effect
    parts = []
    if comparison.verdict == "inconclusive" and comparison.metric == "accuracy" and smallest is not None:
        parts.append(f"smallest difference it could show: {smallest:.1f} pt")
    parts += [comparison.reason] if comparison.reason else []
    return f" ({'; '.join(parts)})" if parts else ""


def _mib(value: float | None) -> str:
    return ABSENT if value is None else f"{value / 2**20:.1f}"
