"""The verdict strip: one answer, then one sentence per method, from comparisons alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hambench.groups import ALL
from hambench.records import Comparison, Estimate
from hambench.reports.compared import effect_of
from hambench.reports.view import CellView, View
from hambench.reports.words import ABSENT, listing, ratio_text, signed

SYMBOLS = {"better": "▲", "worse": "▼", "equivalent": "≈", "inconclusive": "?", "not comparable": "✕"}
TONES = {
    "better": "good",
    "worse": "bad",
    "equivalent": "good",
    "inconclusive": "warn",
    "not comparable": "warn",
}

SPEED_WORDS = {
    "better": "faster",
    "worse": "slower",
    "equivalent": "as fast",
    "inconclusive": "speed inconclusive",
    "not comparable": "speed not comparable",
}
ACCURACY_WORDS = {
    "better": "more accurate",
    "worse": "less accurate",
    "equivalent": "accuracy held",
    "inconclusive": "accuracy inconclusive",
    "not comparable": "accuracy not comparable",
}
KV_WORDS = {
    "better": "less KV memory",
    "worse": "more KV memory",
    "equivalent": "same KV memory",
    "inconclusive": "KV memory inconclusive",
    "not comparable": "KV memory not comparable",
}


@dataclass(frozen=True, slots=True)
class Stat:
    """One big number of a card."""

    title: str
    value: str
    interval: str
    word: str
    symbol: str
    tone: str


@dataclass(frozen=True, slots=True)
class MethodVerdict:
    """A card: the method's best setting, and a sentence for each other one."""

    cell: CellView
    sentence: str
    stats: tuple[Stat, ...]
    chosen_of: int
    others: tuple[tuple[str, str], ...]
    """(label, sentence) of the method's other settings."""


def method_verdicts(view: View) -> list[MethodVerdict]:
    """A verdict per method, in report order."""
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
    """Which method to ship, in a sentence or two, with what it rests on."""
    base = view.baseline
    where = f"on this machine and {view.model_name}"
    if base is None:
        return "Without a vanilla cell in the run there is nothing to compare with; the numbers below are absolute."
    faster = [cell for cell in view.cells if _verdict(view, cell, "tps") == "better" and not cell.control]
    held = [cell for cell in faster if _verdict(view, cell, "accuracy") in ("better", "equivalent")]
    unknown = [cell for cell in faster if _verdict(view, cell, "accuracy") in (None, "inconclusive")]
    if held:
        best = max(held, key=lambda cell: _effect(view, cell, "tps"))
        others = [c for c in unknown if _effect(view, c, "tps") > _effect(view, best, "tps")]
        more = ""
        if others:
            top = max(others, key=lambda cell: _effect(view, cell, "tps"))
            more = (
                f" {top.label} is faster still ({_ratio(view.compared(top, 'tps'))}), "
                f"but whether it holds accuracy needs more samples."
            )
        return (
            f"Ship {best.label}: {_ratio(view.compared(best, 'tps'))} the speed of {_base(view, best)} {where}, "
            f"with accuracy shown to hold.{more}"
        )
    if unknown:
        best = max(unknown, key=lambda cell: _effect(view, cell, "tps"))
        speed = f"{_ratio(view.compared(best, 'tps'))} the speed of {_base(view, best)} {where}"
        accuracy = view.compared(best, "accuracy")
        if accuracy is None or accuracy.effect is None:
            return f"{best.label} is the fastest setting: {speed}. Its accuracy was not scored."
        return (
            f"{best.label} is the fastest setting that was not shown to lose accuracy: {speed}, accuracy "
            f"{_points(accuracy)}. The run is too small to show that accuracy holds{_mde(accuracy)}."
        )
    if faster:
        names = listing([cell.label for cell in faster[:3]])
        return f"Keep {base.label} where accuracy counts: what is faster {where} ({names}) is less accurate."
    undecided = [
        cell for cell in view.cells if cell is not base and _verdict(view, cell, "tps") == "inconclusive"
    ]
    if undecided:
        names = listing([cell.label for cell in undecided[:3]])
        more = f" and {len(undecided) - 3} more" if len(undecided) > 3 else ""
        return f"Keep {base.label} for now: nothing was shown to be faster {where}. Undecided: {names}{more}."
    if len(view.cells) == 1:
        return f"Only {base.label} was run, so there is nothing to choose."
    return f"Keep {base.label}: nothing in this run was faster {where}."


def _base(view: View, cell: CellView) -> str:
    base = view.baseline_of(cell)
    return "its baseline" if base is None else base.label


def sentence(view: View, cell: CellView) -> str:
    """``1.71× [1.64, 1.78] TPS, KV −31 %, accuracy −0.4 pt [−1.9, +1.1]: faster, accuracy inconclusive``."""
    measured = view.measured(cell)
    if measured.num_samples == 0:
        return "no answer: every sample failed" if measured.num_errors else "no sample was run"
    if cell is view.baseline:
        speed = "no decode speed" if measured.tps is None else f"{measured.tps:.1f} tokens/s"
        score = "no score" if measured.accuracy is None else f"accuracy {points_text(measured.accuracy)}"
        return f"The baseline: {speed}, {score}, over {measured.num_samples} samples."
    tps, kv, accuracy = (view.compared(cell, metric) for metric in ("tps", "kv_bytes", "accuracy"))
    if tps is None and kv is None and accuracy is None:
        absolute = "no decode speed" if measured.tps is None else f"{measured.tps:.1f} tokens/s"
        return f"{absolute} over {measured.num_samples} samples; nothing to compare with."
    parts, words = [], []
    if tps is not None:
        parts.append(f"{_ratio(tps)} TPS")
        words.append(f"{SPEED_WORDS[tps.verdict]}{_why(tps)}")
    if kv is not None and kv.effect is not None:
        parts.append(f"KV {percent_change(kv.effect.value)}")
        words += [KV_WORDS[kv.verdict]] if kv.verdict in ("better", "worse") else []
    if accuracy is not None:
        parts += [f"accuracy {_points(accuracy)}"] if accuracy.effect is not None else []
        words.append(f"{ACCURACY_WORDS[accuracy.verdict]}{_mde(accuracy)}{_why(accuracy)}")
    else:
        words.append("not scored")
    control = " The one-token control: same weights, one token a step." if cell.control else ""
    base = view.baseline_of(cell)
    against = f"Against {base.label}: " if view.several_baselines and base is not None else ""
    return f"{against}{', '.join(parts)}: {listing(words)}.{control}"


def stats(view: View, cell: CellView) -> tuple[Stat, ...]:
    """The three numbers of a card: speed, accuracy, KV memory."""
    measured = view.measured(cell)
    if cell is view.baseline or view.baseline is None:
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
    tps, accuracy, kv = (view.compared(cell, metric) for metric in ("tps", "accuracy", "kv_bytes"))
    return (
        _stat("decode speed", tps, SPEED_WORDS),
        _stat("accuracy", accuracy, ACCURACY_WORDS),
        _stat("KV memory", kv, KV_WORDS),
    )


def percent_change(ratio: float) -> str:
    """A ratio as a change: ``−31 %``."""
    return f"{signed(100 * (ratio - 1), 0 if abs(ratio - 1) >= 0.1 else 1)} %"


_SPOKEN = {"tps": "speed", "accuracy": "accuracy", "kv_bytes": "KV memory"}
_SHOW: dict[str, Callable[[float], str]] = {
    "tps": ratio_text,
    "accuracy": signed,
    "kv_bytes": percent_change,
}


def points_text(estimate: Estimate) -> str:
    """An accuracy with its interval."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.1f}"
    return f"{estimate.value:.1f} [{estimate.low:.1f}, {estimate.high:.1f}]"


def _rank(view: View, cell: CellView) -> tuple[bool, bool, int, float]:
    verdict = _verdict(view, cell, "accuracy")
    tier = {"better": 0, "equivalent": 0, "inconclusive": 1, None: 1}.get(verdict, 2)
    # the control exists to be compared with, not to be shipped
    return (cell is not view.baseline, cell.control, tier, -_effect(view, cell, "tps"))


def _verdict(view: View, cell: CellView, metric: str) -> str | None:
    comparison = view.compared(cell, metric, ALL)
    return comparison.verdict if comparison else None


def _effect(view: View, cell: CellView, metric: str) -> float:
    comparison = view.compared(cell, metric)
    if comparison is None or comparison.effect is None:
        return float("-inf")
    return comparison.effect.value


def _stat(title: str, comparison: Comparison | None, words: dict[str, str]) -> Stat:
    effect = effect_of(comparison)
    if comparison is None or effect is None:
        return Stat(title, ABSENT, "", comparison.reason if comparison else "nothing to compare", "✕", "warn")
    show = _SHOW[comparison.metric]
    interval = ""
    if effect.low is not None and effect.high is not None and show(effect.low) != show(effect.high):
        interval = f"[{show(effect.low)}, {show(effect.high)}]"
    word = words[comparison.verdict].removeprefix(f"{_SPOKEN[comparison.metric]} ").removesuffix(" KV memory")
    unit = {"tps": "×", "accuracy": " pt", "kv_bytes": ""}[comparison.metric]
    value = f"{show(effect.value)}{unit}"
    return Stat(title, value, interval, word, SYMBOLS[comparison.verdict], TONES[comparison.verdict])


def _interval(estimate: Estimate | None, digits: int, unit: str, *, as_signed: bool = False) -> str:
    if estimate is None or estimate.low is None or estimate.high is None:
        return unit
    ends = (
        signed(end, digits) if as_signed else f"{end:.{digits}f}" for end in (estimate.low, estimate.high)
    )
    return f"[{', '.join(ends)}] {unit}".strip()


def _ratio(comparison: Comparison | None) -> str:
    effect = effect_of(comparison)
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


def _mde(comparison: Comparison | None) -> str:
    if (
        comparison is None
        or comparison.minimum_detectable_effect is None
        or comparison.verdict != "inconclusive"
    ):
        return ""
    if comparison.minimum_detectable_effect > 100:
        return " (too few samples to show any difference)"
    return f" (smallest difference it could show: {comparison.minimum_detectable_effect:.1f} pt)"


def _why(comparison: Comparison) -> str:
    return f" ({comparison.reason})" if comparison.reason and comparison.verdict != "inconclusive" else ""


def _mib(value: float | None) -> str:
    return ABSENT if value is None else f"{value / 2**20:.1f}"
