"""Pages for what other commands measure: shown when there, and saying how to get it when not."""

from __future__ import annotations

from hambench.reports.values import Section
from hambench.reports.view import View


def kernels_section(view: View) -> Section:
    """Kernel timings belong to a machine rather than a run: says where they come from."""
    del view
    return Section(
        name="kernels",
        title="Kernels",
        missing=(
            "A run holds no kernel timings. `hambench bench kernels` measures each fused kernel against its reference "
            "on this machine, after their numbers agree.",
        ),
    )


def history_section(view: View) -> Section:
    """A single run has no history: says which command keeps one."""
    del view
    return Section(
        name="history",
        title="History",
        missing=("This page shows one moment. `hambench history` keeps the ratios to vanilla over time.",),
    )
