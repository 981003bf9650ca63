"""Load from several users, counted once."""

import pytest
from click.testing import CliRunner

from hambench.bench.endpoint import Asked, measure_level
from hambench.cli.bench.endpoint import command
from hambench.serving.client import EndpointClient


def test_a_level_counts_every_request_and_reads_the_servers_acceptance(speculative_url):
    level = measure_level(
        lambda: EndpointClient(speculative_url),
        Asked(model="tiny", max_tokens=12, chat=True),
        concurrency=2,
        num_requests=5,
    )
    assert (level.num_requests, level.num_errors, level.approximate) == (5, 0, False)
    assert 0 <= level.acceptance_rate <= 1
    assert 1 <= level.mean_acceptance_length <= 4
    # a 90th percentile of five values would be their largest
    assert level.ttft_p50_s > 0
    assert level.ttft_p90_s is None
    assert level.total_tps > 0


def test_errors_are_counted_and_one_is_told(speculative_url):
    level = measure_level(
        lambda: EndpointClient(speculative_url),
        Asked(model="no", max_tokens=4, chat=False),
        concurrency=1,
        num_requests=2,
    )
    assert (level.num_errors, level.total_tps, level.ttft_p50_s) == (2, None, None)
    assert "no model 'no'" in level.first_error


def test_the_command_prints_a_row_per_level(speculative_url):
    arguments = ["--url", speculative_url, "--concurrency", "1,2", "--requests", "2", "--max-tokens", "8"]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines()[1:]]
    assert [row[0] for row in rows] == ["1", "2"]
    assert all(float(row[8]) > 0 for row in rows)


@pytest.mark.parametrize("concurrency", ["0", "x"])
def test_a_bad_axis_is_refused(speculative_url, concurrency):
    result = CliRunner().invoke(command, ["--url", speculative_url, "--concurrency", concurrency])
    assert "concurrency" in str(result.exception)


def test_the_command_prints_a_row_per_rate_with_goodput_and_price(speculative_url):
    arguments = ["--url", speculative_url, "--arrivals", "constant", "--rate", "20,40", "--requests", "3"]
    arguments += ["--max-tokens", "8", "--slo", "e2e=60s", "--price", "3.60/h"]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    header, *rows = (line.split() for line in result.stdout.splitlines())
    assert header[:2] == ["req/s", "peak"]
    assert [row[0] for row in rows] == ["20.00", "40.00"]
    assert [row[-2] for row in rows] == ["100%", "100%"]
    assert all(float(row[-1]) > 0 for row in rows)
