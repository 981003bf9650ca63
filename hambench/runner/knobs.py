"""Turns knobs into typed values: finds a knob's field, parses its text by the field's type, and checks given values.

Text is parsed only here; :class:`hambench.runner.sweep.Sweep` holds typed values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from hambench.decoding import KnobValue, MethodConfig
from hambench.errors import HambenchError
from hambench.registry import method_config, method_names
from hambench.runner.axis_text import parse_method

ALL = "all"
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def field_of(config_class: type[MethodConfig], knob: str) -> str | None:
    """Returns the field for a knob's name or alias, or ``None`` if the method has no such knob."""
    field = config_class.aliases.get(knob, knob).replace("-", "_")
    return field if field in {item.name for item in dataclasses.fields(config_class)} else None


def parse_knob(config_class: type[MethodConfig], name: str, text: str) -> KnobValue:
    """Parses a knob's value by the type of its field.

    Raises:
        HambenchError: For an unknown knob or text that does not parse.
    """
    field = field_of(config_class, name)
    if field is None:
        config_class.from_knobs({name: text})  # raises, naming the knobs there are
        raise HambenchError(f"method {config_class.method!r} has no knob {name!r}")
    kinds = config_class.knob_types(field)
    # a rule may be called so: then the word is the rule, not the absence of one
    if type(None) in kinds and text.lower() == "none" and "none" not in config_class.knob_words(field):
        return None
    try:
        if bool in kinds:
            return _BOOLEANS[text.lower()]
        if int in kinds:
            return int(text)
        if float in kinds:
            return float(text)
    except (KeyError, ValueError) as error:
        wanted = " or ".join(sorted(kind.__name__ for kind in kinds if kind is not type(None)))
        raise HambenchError(f"{config_class.method}: {name} must be {wanted}, got {text!r}") from error
    return text


def requested_methods(
    methods: Sequence[str | MethodConfig],
) -> list[tuple[str, dict[str, KnobValue], bool]]:
    """Returns (method, given knobs, whether it was named explicitly) for each requested method.

    The settings that ``all`` stands for are not explicit: their knobs give way to those of the command line.

    Args:
        methods: Registry names, ``all``, names with knobs as labels have them (``speculative[k=8]``), or configs.

    Raises:
        HambenchError: For an unknown method or knob, or text of another form.
    """
    requested: list[tuple[str, dict[str, KnobValue], bool]] = []
    for word in methods:
        if isinstance(word, MethodConfig):
            requested.append((word.method, word.knobs(), True))
        elif word == ALL:
            requested += [
                (name, dict(setting), False)
                for name in method_names()
                if method_config(name).in_all
                for setting in method_config(name).all_settings
            ]
        else:
            name, texts = parse_method(word)
            config_class = method_config(name)
            fixed = {knob: parse_knob(config_class, knob, text) for knob, text in texts.items()}
            requested.append((name, fixed, True))
    return requested


def what_all_leaves_out(methods: Sequence[str | MethodConfig]) -> tuple[str, ...]:
    """Returns lines on what ``all`` leaves out, by method; none where ``all`` is not among the methods."""
    if ALL not in methods:
        return ()
    configs = {name: method_config(name) for name in method_names()}
    lines = [
        f"all leaves out of {name}: {config.beyond_all}"
        for name, config in configs.items()
        if config.in_all and config.beyond_all
    ]
    by_name = [name for name, config in configs.items() if not config.in_all]
    if by_name:
        lines.append(f"all leaves out {', '.join(by_name)}: name them to run them")
    return tuple(lines)


def parse_axes(
    methods: Sequence[str | MethodConfig], texts: Mapping[str, Sequence[str]]
) -> dict[str, tuple[KnobValue, ...]]:
    """Parses texts by ``knob`` or ``method.knob`` into values by ``method.knob``, using each method's own field type.

    Raises:
        HambenchError: For a knob that no chosen method has, or text that does not parse.
    """
    chosen = dict.fromkeys(name for name, _, _ in requested_methods(methods))
    values: dict[str, tuple[KnobValue, ...]] = {}
    for key, axis in texts.items():
        prefix, _, knob = key.rpartition(".")
        owners = [
            name
            for name in chosen
            if prefix == name or (not prefix and field_of(method_config(name), knob) is not None)
        ]
        if not owners:
            raise HambenchError(f"no chosen method has the knob {key!r}")
        for name in owners:
            values[f"{name}.{knob}"] = tuple(parse_knob(method_config(name), knob, text) for text in axis)
    return values
