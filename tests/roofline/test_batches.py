"""The byte model of batches: weights once per round, a cache for each sequence."""

import json

import pytest
from click.testing import CliRunner

from hambench.cli.predict import command
from hambench.models.sizes import SHAPES
from hambench.roofline.batches import predict_batches
from hambench.roofline.byte_model import ByteModel

SIZES = ByteModel(shape=SHAPES["llama-3.2-1b"])
BANDWIDTH = 1e12


def vanilla(batches, **options):
    rows = predict_batches(SIZES, BANDWIDTH, batches, model="m", **options)
    return {row.batch: row for row in rows if (row.method, row.setting) == ("vanilla", "")}


def test_without_a_cache_the_total_grows_with_the_batch_and_a_user_keeps_the_speed():
    rows = vanilla((1, 2, 8))
    assert rows[8].total_tps == pytest.approx(8 * rows[1].total_tps)
    assert rows[8].user_tps == pytest.approx(rows[1].user_tps)
    assert rows[1].total_tps == pytest.approx(BANDWIDTH / SIZES.step)


def test_the_cache_is_read_for_each_sequence():
    rows = vanilla((1, 8), context=1000)
    seconds = (SIZES.step + 8 * 1000 * SIZES.kv_per_slot) / BANDWIDTH
    assert rows[8].total_tps == pytest.approx(8 / seconds)
    assert rows[8].kv_bytes == 8 * 1000 * SIZES.kv_per_slot


def test_speculation_gains_less_where_the_cache_outweighs_the_weights():
    rows = predict_batches(SIZES, BANDWIDTH, (1, 64), model="m", context=4000)
    gains = {
        row.batch: row.speedup
        for row in rows
        if row.method == "speculative" and row.setting == "acceptance 0.9, k=4"
    }
    assert gains[64] < gains[1]


def test_the_command_prints_the_batches_under_the_table():
    asked = ["--model", "smollm2-135m", "--bandwidth", "46GB/s"]
    said = CliRunner().invoke(command, [*asked, "--batch", "1,4"])
    assert said.exit_code == 0, said.output
    assert "batch 4 tok/s (×)" in said.output
    parsed = json.loads(CliRunner().invoke(command, [*asked, "--batch", "1,4", "--json"]).output)
    assert {row["batch"] for row in parsed["batches"]} == {1, 4}
    assert "batches" not in json.loads(CliRunner().invoke(command, [*asked, "--json"]).output)
    refused = CliRunner().invoke(command, [*asked, "--batch", "0"])
    assert refused.exit_code != 0
