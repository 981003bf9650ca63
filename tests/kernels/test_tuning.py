from __future__ import annotations

import pytest
import torch

from hambench.files import write_text
from hambench.kernels import tuning
from hambench.kernels.tuning import Tile


@pytest.fixture
def restored_table():
    path = tuning.TABLE_PATH
    yield
    tuning.use_table(path)


def write(path, device, version, tiles):
    write_text(path, tuning.table_text(path, device, version, tiles))


def test_a_table_reads_back_what_was_written_and_keeps_other_devices(tmp_path):
    path = tmp_path / "tuned.json"
    write(path, "GPU A", "3.6.0", {"norm_gemv/3072x2048/bfloat16": Tile(4, 2)})
    write(path, "GPU B", "3.6.0", {"norm_gemv/3072x2048/bfloat16": Tile(1, 8)})
    write(path, "GPU A", "3.9.0", {"lm_head_argmax/64x64/int8": Tile(8, 1)})
    table = tuning.read(path)
    assert table["GPU A"]["3.6.0"] == {"norm_gemv/3072x2048/bfloat16": Tile(4, 2)}
    assert table["GPU B"]["3.6.0"] == {"norm_gemv/3072x2048/bfloat16": Tile(1, 8)}
    assert table["GPU A"]["3.9.0"] == {"lm_head_argmax/64x64/int8": Tile(8, 1)}


def test_the_shipped_table_can_be_read():
    tuning.read(tuning.TABLE_PATH)


def test_a_device_without_measurements_gets_the_default(monkeypatch, restored_table, tmp_path):
    path = tmp_path / "tuned.json"
    monkeypatch.setattr(tuning.importlib.metadata, "version", lambda name: "3.6.0")
    write(path, "GPU A", "3.6.0", {"norm_gemv/64x4096/bfloat16": Tile(8, 2)})
    tuning.use_table(path)
    assert tuning._table("GPU A") == {"norm_gemv/64x4096/bfloat16": Tile(8, 2)}
    assert tuning._table("GPU B") == {}
    weight = torch.empty(64, 4096, dtype=torch.bfloat16, device="meta")
    assert tuning.tile_for("norm_gemv", weight, rows=1) == tuning.DEFAULTS["norm_gemv"]


def test_a_broken_table_is_named(tmp_path):
    path = tmp_path / "tuned.json"
    path.write_text('{"GPU": {"3.6.0": {"norm_gemv/1x1/int8": {"block_n": 3, "unroll": 1}}}}')
    with pytest.raises(
        ValueError, match=r"tuned\.json must map device.*block_n must be a power of two, got 3"
    ):
        tuning.read(path)
    with pytest.raises(ValueError, match="must map device"):
        tuning.use_table(path)
    with pytest.raises(ValueError, match="must map device"):
        tuning.table_text(path, "GPU", "3.6.0", {})


@pytest.mark.parametrize("itemsize", [1, 2, 4])
@pytest.mark.parametrize("weights", [1, 2])
def test_tiles_for_more_rows_keep_accumulators_in_registers(itemsize, weights):
    for tile in tuning.SPACE:
        for rows in range(1, 4 // weights + 1 if itemsize == 1 else 9):
            cut = tile.for_rows(rows, 8192, itemsize=itemsize, weights=weights)
            assert cut.block_n <= tile.block_n
            assert cut.block_n == 1 or cut.block_n * rows * weights * 16 // itemsize <= tuning.ACCUMULATORS


def test_row_groups_cover_every_row_once():
    for rows in range(1, 9):
        for dtype in (torch.int8, torch.bfloat16):
            for weights in (1, 2):
                groups = tuning.row_groups(rows, dtype, weights=weights)
                assert [i for group in groups for i in range(group.start, group.stop)] == list(range(rows))
    assert len(tuning.row_groups(8, torch.bfloat16)) == 1
