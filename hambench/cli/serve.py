"""``hambench serve``: serves any method through an OpenAI-compatible API."""

from __future__ import annotations

import os
from typing import Any

import click

from hambench.cli._method_options import knob_texts, method_options
from hambench.cli._options import chat_option, kernels_option, make_sweep, method_option, model_options
from hambench.errors import HambenchError


@click.command(
    epilog="""
\b
Examples:
  hambench serve --method hamburger --confidence 0.8
  hambench serve --method speculative -k 4 --port 8001
  curl -s localhost:8000/v1/models
"""
)
@method_options
@method_option
@model_options
@chat_option
@kernels_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on; 0 picks a free one and prints it.",
)
@click.option(
    "--batch",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Maximum number of prompts that are answered together.",
)
@click.option(
    "--max-waiting",
    type=click.IntRange(0),
    default=8,
    show_default=True,
    help="Maximum number of waiting requests; further ones get 503.",
)
@click.option(
    "--max-body",
    type=click.IntRange(1024),
    default=4 * 2**20,
    show_default=True,
    metavar="BYTES",
    help="Maximum size of a request's body.",
)
@click.option("--api-key-env", metavar="NAME", help="Require the API key in this environment variable.")
def command(
    host: str,
    port: int,
    batch: int,
    max_waiting: int,
    max_body: int,
    api_key_env: str | None,
    **options: Any,
) -> None:
    """Serve chat and text completions, streamed burst by burst.

    Answers one request at a time, or --batch prompts together. Ctrl-C and SIGTERM stop it after the running answers.
    Exit codes: 0 after Ctrl-C, 2 for wrong options or an address that can't be used.
    """
    cell = make_sweep(
        model=options["model"],
        dtype=options["dtype"],
        methods=options["method"],
        own_options=knob_texts(options),
        method_args=options["method_args"],
        batch=str(batch),
    ).single()
    api_key = _key(api_key_env)
    try:
        from hambench.serving.address import allowed_hosts, is_loopback
        from hambench.serving.app import create_app
        from hambench.serving.listening import listen, serve
    except ImportError as error:
        missing = f"serving needs {error.name}, which is not installed"
        raise HambenchError(f"{missing}: pip install 'hambench[serve]'") from error
    from hambench.engine.chat import check_arguments, parse_arguments
    from hambench.models.target import load
    from hambench.runner.backend import run_by
    from hambench.runner.sweep import config_of

    arguments = parse_arguments(options["chat_template_args"])
    # bind before loading the model, so that a taken port is reported at once
    listener = listen(host, port)
    target = run_by(
        load(options["model"], dtype=options["dtype"], device=options["device"]), kernels=options["kernels"]
    )
    if target.tokenizer is None:
        raise HambenchError(f"{target.name} has no tokenizer, so it can't be served")
    if batch > 1 and target.llama.reference is None:
        raise HambenchError(
            f"{target.name} runs through the transformers adapter, which takes no batch: give --batch 1"
        )
    check_arguments(target.tokenizer, arguments)
    target.chat_arguments = arguments
    method = config_of(cell).build(target)
    click.echo(f"warming up {method.name} on {target.name}", err=True)
    method.warmup()
    if not is_loopback(host) and api_key is None:
        click.echo(
            f"warning: {host} is reachable by others and no API key is required (--api-key-env)", err=True
        )
    app = create_app(
        target,
        method,
        batch=batch,
        max_waiting=max_waiting,
        max_body_bytes=max_body,
        allowed_hosts=allowed_hosts(host),
        api_key=api_key,
    )
    serve(app, listener, lambda url: click.echo(f"serving {method.name} at {url}/v1", err=True))


def _key(name: str | None) -> str | None:
    if name is None:
        return None
    key = os.environ.get(name)
    if not key:
        raise HambenchError(f"the environment variable {name} is empty: it must hold the API key to require")
    return key
