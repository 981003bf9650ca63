"""Options that several commands share, and the parsing of their texts."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from hambench.cli._method_options import is_axis, method_options
from hambench.cli._repeats import ListOption
from hambench.errors import HambenchError, UnknownNameError
from hambench.files import expanded
from hambench.paths import runs_root
from hambench.runner.axis_text import expand_values, split_methods
from hambench.runner.backend import KERNELS
from hambench.runner.knobs import parse_axes
from hambench.runner.sweep import DTYPES, Sweep

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_MODEL = "smollm2-135m"
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class UserPath(click.Path):
    """A path on the command line or in a sweep file; expands ``~``, which no shell does in a file."""

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str | bytes | os.PathLike[str]:
        """Expands ``~`` and checks the path as click does."""
        path = expanded(value) if isinstance(value, str) and value.startswith("~") else value
        return super().convert(path, param, ctx)


class RunFolder(UserPath):
    """A run, given as its folder or by its name as ``hambench ls runs`` prints it.

    Args:
        must_exist: Whether to raise for a name that no run has; otherwise it stays a path for the command to check.
    """

    name = "run"

    def __init__(self, *, must_exist: bool = True) -> None:
        super().__init__(path_type=Path)
        self.must_exist = must_exist

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Path:
        """Returns the run's folder.

        Raises:
            UnknownNameError: If no run has this name.
        """
        from hambench.store import HEADER, list_runs

        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if len(path.parts) != 1 or (path / HEADER).is_file():
            return path
        root = runs_root()
        if (root / path / HEADER).is_file():
            return root / path
        if path.exists() or not self.must_exist:
            return path
        raise UnknownNameError("run or folder", str(path), (folder.name for folder in list_runs(root)))


class FiniteRange(click.FloatRange):
    """A finite number within bounds; rejects NaN and infinity."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Checks the bounds as click does, and that the number is finite."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number

    def _describe_range(self) -> str:
        # click writes "x<=None" into the help of an option without bounds
        return "" if self.min is None and self.max is None else super()._describe_range()


def model_options(function: F) -> F:
    """Adds ``--model``, ``--dtype`` and ``--device``."""
    function = click.option(
        "--device", metavar="NAME", help="cpu, cuda or cuda:1; defaults to the GPU, if any."
    )(function)
    function = click.option("--dtype", type=click.Choice(DTYPES), default="bfloat16", show_default=True)(
        function
    )
    return click.option(
        "--model",
        default=DEFAULT_MODEL,
        show_default=True,
        metavar="NAME",
        help="A name from `hambench ls models`, a folder, or a hub id.",
    )(function)


def method_option(command: F) -> F:
    """Adds ``--method`` and ``--method-arg`` of a command that runs one method."""
    for option in (
        click.option(
            "--method-arg",
            "method_args",
            multiple=True,
            metavar="KNOB=VALUE",
            help="Set any other knob; may be repeated.",
        ),
        click.option("--method", default="vanilla", show_default=True, metavar="NAME"),
    ):
        command = option(command)
    return command


def chat_option(function: F) -> F:
    """``--chat-template-arg``."""
    return click.option(
        "--chat-template-arg",
        "chat_template_args",
        multiple=True,
        metavar="NAME=VALUE",
        help="Set a variable of the model's chat template, e.g. enable_thinking=false.",
    )(function)


def price_option(function: F) -> F:
    """``--price``."""
    return click.option(
        "--price",
        metavar="$/h",
        help="Price of the machine per hour, like 2.50/h: adds dollars per million output tokens.",
    )(function)


def price_per_hour(text: str | None) -> float | None:
    """The price that ``--price`` gives.

    Raises:
        HambenchError: If it is no price.
    """
    from hambench.analysis.cost import parse_price

    return None if text is None else parse_price(text)


def kernels_option(function: F) -> F:
    """Adds ``--kernels`` to a command that runs one model with one engine."""
    return click.option(
        "--kernels",
        type=click.Choice(KERNELS),
        default="auto",
        show_default=True,
        help="native (CPU), fused (GPU) or reference (torch operations); auto is native on a CPU, else reference.",
    )(function)


def measured_methods_option(function: F) -> F:
    """Adds ``--methods`` to a bench of methods without axes, vanilla by default."""
    return click.option(
        "--methods",
        cls=ListOption,
        default="vanilla",
        show_default=True,
        metavar="LIST",
        help="Methods to measure.",
    )(function)


def sweep_options(function: F) -> F:
    """Adds ``--methods`` and the axes."""
    options = [
        click.option(
            "--methods",
            cls=ListOption,
            default="all",
            show_default=True,
            metavar="LIST",
            help="Names from `hambench ls methods`, optionally with knobs: speculative[k=8,kv=shared].",
        ),
        click.option(
            "--method-arg",
            "method_args",
            multiple=True,
            metavar="[METHOD.]KNOB=AXIS",
            help="Set any other knob; may be repeated.",
        ),
        click.option(
            "--control",
            type=click.Choice(["none", "sft"]),
            default="none",
            show_default=True,
            help="sft adds a control cell per fine-tuned method: its weights, decoded without the method.",
        ),
        click.option(
            "--batch",
            cls=ListOption,
            default="1",
            show_default=True,
            metavar="AXIS",
            help="Sequences decoded together: 1,2,4,8. Each cell is compared with vanilla at the same batch.",
        ),
        click.option("--threads", cls=ListOption, metavar="AXIS", help="Number of CPU threads: 1,2."),
        click.option(
            "--regime",
            cls=ListOption,
            default="eager",
            show_default=True,
            metavar="AXIS",
            help="eager, graph (CUDA graphs), or both.",
        ),
        click.option(
            "--kernels",
            cls=ListOption,
            default="auto",
            show_default=True,
            metavar="AXIS",
            help="native (CPU), fused (GPU), reference (torch operations), or auto.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return method_options(function)


def config_option(function: F) -> F:
    """Adds ``--config FILE``, a YAML file of options; the command line takes precedence over it."""
    return click.option(
        "--config",
        type=UserPath(exists=True, dir_okay=False, path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=_read_config,
        metavar="FILE",
        help="Read these options from a YAML file (sweep.yaml); the command line overrides it.",
    )(function)


def _read_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    from hambench.yaml_files import read_yaml

    # each option parses its own text, so a file means the same as the command line
    content = read_yaml(path, as_words=True)
    if not isinstance(content, dict):
        raise HambenchError(f"{path} must map options to values, got {type(content).__name__}")
    options = {item.name: item for item in ctx.command.params if item.name and item.name != "config"}
    # accepts the command line's spelling too: click stores --method-arg as method_args
    names = {flag.lstrip("-").replace("-", "_"): name for name, item in options.items() for flag in item.opts}
    defaults: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        name = names.get(name, name)
        if name not in options:
            raise UnknownNameError(f"option in {path}", str(key), options)
        if name in defaults:
            raise HambenchError(
                f"{path} gives {name.replace('_', '-')} twice, as {name} and {name.replace('_', '-')}"
            )
        defaults[name] = _from_file(
            value, f"{path}: {key}", several=getattr(options[name], "multiple", False)
        )
    given = {name: value for name, value in defaults.items() if value is not None}
    ctx.default_map = {**(ctx.default_map or {}), **given}


def _from_file(value: Any, where: str, *, several: bool) -> Any:
    """Returns a value as the command line would give it; ``None`` (empty or null) keeps the option's default."""
    items = value if isinstance(value, list) else [value]
    if any(isinstance(item, list | dict) for item in items):
        raise HambenchError(f"{where} must be one value or a list of plain values, got {value!r}")
    if several:
        return tuple(item for item in items if item is not None)
    if not isinstance(value, list):
        return value
    if None in items:
        raise HambenchError(f"{where} must be a list of plain values, got an empty value in it")
    return ",".join(items)


def make_sweep(
    *,
    model: str,
    dtype: str,
    methods: str,
    own_options: Mapping[str, str],
    method_args: tuple[str, ...],
    batch: str = "1",
    threads: str | None = None,
    context: str | None = None,
    max_new_tokens: str | None = None,
    regime: str = "eager",
    kernels: str = "auto",
    control: str = "none",
) -> Sweep:
    """Builds a sweep from option texts; ``own_options`` come from :func:`hambench.cli._method_options.knob_texts`."""
    words = split_methods(methods)
    texts = {name: expand_values(text) if is_axis(name) else (text,) for name, text in own_options.items()}
    for argument in method_args:
        name, equals, text = argument.partition("=")
        if not equals:
            raise HambenchError(f"--method-arg must be KNOB=VALUES or METHOD.KNOB=VALUES, got {argument!r}")
        if name in texts:
            raise HambenchError(
                f"the knob {name} is given twice: list its values with commas, got {argument!r}"
            )
        texts[name] = expand_values(text)
    return Sweep(
        model=model,
        methods=words,
        knobs=parse_axes(words, texts),
        dtype=dtype,
        regimes=expand_values(regime),
        kernels=expand_values(kernels),
        controls=control == "sft",
        batches=whole_numbers(batch, "--batch"),
        threads=whole_numbers(threads, "--threads") or (None,),
        contexts=whole_numbers(context, "--context") or (None,),
        max_new_tokens=whole_numbers(max_new_tokens, "--max-new-tokens") or (None,),
    )


def whole_numbers(text: str | None, option: str) -> tuple[int, ...]:
    """Parses an axis of positive counts; returns an empty tuple for no text.

    Raises:
        HambenchError: For a value that is not a whole number above zero.
    """
    values = () if text is None else expand_values(text)
    for value in values:
        # int() refuses text of thousands of digits, and no count has more than eighteen
        if not value.isdecimal() or len(value) > 18 or int(value) < 1:
            raise HambenchError(f"{option} must be whole numbers >= 1, got {value[:40]!r}")
    return tuple(map(int, values))


def seconds(text: str | None) -> float | None:
    """Parses ``90``, ``90s``, ``10m`` or ``2h`` as seconds.

    Raises:
        HambenchError: For anything else.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if not match:
        raise HambenchError(f"a time must be a number with s, m or h, like 90s or 10m, got {text!r}")
    return float(match[1]) * _UNITS[match[2] or "s"]
