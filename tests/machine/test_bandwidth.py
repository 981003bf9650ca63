import torch

from hambench.machine.bandwidth import measure_bandwidth


def test_bandwidth_is_positive_and_says_what_it_measured() -> None:
    bandwidth = measure_bandwidth(buffer_bytes=1 << 22, seconds=0.01)
    assert bandwidth.buffer_bytes == 1 << 22
    assert bandwidth.threads == torch.get_num_threads()
    # between a modem and ten times the fastest memory made
    assert 1e7 < bandwidth.read < 1e14
    assert 1e7 < bandwidth.copy < 1e14
