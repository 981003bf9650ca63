"""Regression gates: report when a method gets worse, and stay silent when it doesn't.

:mod:`~hambench.gating.checks` defines verdicts and exit codes, :mod:`~hambench.gating.exact` compares counts with ==,
:mod:`~hambench.gating.speed` judges paired blocks of fresh processes. :mod:`~hambench.gating.markdown` writes for
people, :mod:`~hambench.gating.exports` for programs. The commands are ``hambench gate``, ``compare``, ``calibrate``
and ``history``.
"""
