"""``hambench predict``: predicts hardware limits from a model's config alone."""

from __future__ import annotations

import click

from hambench.cli._options import DEFAULT_MODEL, FiniteRange, whole_numbers
from hambench.cli._repeats import ListOption
from hambench.roofline.byte_model import DTYPE_BYTES


@click.command()
@click.option(
    "--model",
    default=DEFAULT_MODEL,
    show_default=True,
    metavar="NAME",
    help="A known name, a config.json, or a model folder; needs no weights.",
)
@click.option("--gpu", metavar="NAME", help="A GPU, with the bandwidth of its data sheet: h200, rtx4090, …")
@click.option("--bandwidth", metavar="SPEED", help="A bandwidth instead of a GPU: 4.3TB/s, 46GB/s.")
@click.option("--context", type=click.IntRange(min=0), default=0, show_default=True, help="Cached positions.")
@click.option("--dtype", type=click.Choice(list(DTYPE_BYTES)), default="bfloat16", show_default=True)
@click.option("--int8-head", is_flag=True, help="Assume an int8 LM head for every method.")
@click.option("--gap-us", type=FiniteRange(min=0), default=0.0, help="Microseconds lost per kernel launch.")
@click.option(
    "--batch",
    cls=ListOption,
    metavar="AXIS",
    help="Also predict sequences decoded together, all of them in total: 1,2,4,8.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    model: str,
    gpu: str | None,
    bandwidth: str | None,
    context: int,
    dtype: str,
    int8_head: bool,
    gap_us: float,
    batch: str | None,
    as_json: bool,
) -> None:
    """Predict each method's speed limit and break-even points.

    Also prints bytes per token. Without --gpu and --bandwidth, it measures this machine's memory bandwidth.
    """
    import json

    from hambench.errors import HambenchError
    from hambench.models.sizes import find_shape
    from hambench.roofline.batches import predict_batches, render_batches
    from hambench.roofline.byte_model import ByteModel
    from hambench.roofline.forecast import forecast, render_forecast
    from hambench.roofline.gpu_specs import find_gpu, parse_bandwidth

    if gpu is not None and bandwidth is not None:
        raise HambenchError("give --gpu or --bandwidth, not both")
    name, shape = find_shape(model)
    if gpu is not None:
        spec = find_gpu(gpu)
        machine, speed, source = spec.title, spec.bandwidth, "data sheet"
    elif bandwidth is not None:
        machine, speed, source = "a machine", parse_bandwidth(bandwidth), "as given"
    else:
        machine, speed, source = _measure_here()
    width = DTYPE_BYTES[dtype]
    batches = whole_numbers(batch, "--batch")
    # the int8 copy's scales have the dtype of the original weights
    bytes_of = ByteModel(shape=shape, dtype_bytes=width, scale_bytes=width, int8_head=int8_head)
    result = forecast(
        bytes_of,
        speed,
        model=name,
        machine=machine,
        bandwidth_source=source,
        dtype=dtype,
        context=context,
        gap_s=gap_us * 1e-6,
    )
    together = predict_batches(bytes_of, speed, batches, model=name, context=context, gap_s=gap_us * 1e-6)
    if as_json:
        more = {"batches": [each.as_dict() for each in together]} if batches else {}
        click.echo(json.dumps({**result.as_dict(), **more}))
        return
    click.echo(render_forecast(result))
    if batches:
        click.echo(f"\n{render_batches(together)}")


def _measure_here() -> tuple[str, float, str]:
    import torch

    from hambench.machine.bandwidth import measure_bandwidth
    from hambench.machine.fingerprint import cpu_model

    device = "cuda" if torch.cuda.is_available() else "cpu"
    machine = torch.cuda.get_device_name() if device == "cuda" else cpu_model() or "this CPU"
    return machine, measure_bandwidth(device).read, "measured now, reading"
