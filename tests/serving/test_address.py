"""Which addresses are this machine's own, and who may name them."""

import pytest
from fastapi.testclient import TestClient

from hambench.methods.vanilla import VanillaConfig
from hambench.serving.address import allowed_hosts, is_loopback
from hambench.serving.app import create_app


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.2", "localhost", "LOCALHOST", "::1", "0:0:0:0:0:0:0:1"]
)
def test_a_loopback_server_answers_to_this_machines_names_alone(host, served_target):
    assert is_loopback(host)
    app = create_app(served_target, VanillaConfig().build(served_target), allowed_hosts=allowed_hosts(host))
    with TestClient(app) as client:
        written = f"[{host}]" if ":" in host else host
        for own in (written, "localhost:8000", "127.0.0.1:8000", "[::1]:8000"):
            assert client.get("/health", headers={"host": own}).status_code == 200, own
        for foreign in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example"):
            assert client.get("/health", headers={"host": foreign}).status_code == 400, foreign


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "server.example", "127.0.0.1.example"])
def test_a_server_that_others_reach_answers_to_any_name(host):
    assert not is_loopback(host)
    assert allowed_hosts(host) == ("*",)
