"""Noticing when a method got worse, and staying silent when it didn't.

:mod:`~hambench.gating.checks` holds the words and exit codes, :mod:`~hambench.gating.exact` counts compared with ==,
:mod:`~hambench.gating.speed` paired blocks of fresh processes, :mod:`~hambench.gating.markdown` and
:mod:`~hambench.gating.exports` what is written for people and for programs. The commands are ``hambench gate``,
``compare``, ``calibrate`` and ``history``.
"""
