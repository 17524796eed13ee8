"""The two files of configuration."""

import json
from typing import Any

import pytest

from trimtab.sidecar.config import ConfigError, Live, parse_config, parse_live

SHORTEST: dict[str, Any] = {"upstream": "http://127.0.0.1:8000", "identity": {"model": "m"}}


def test_only_upstream_and_identity_are_needed() -> None:
    config = parse_config(json.dumps(SHORTEST).encode())
    assert (config.listen.port, config.listen.metrics_port) == (8080, 9100)
    assert config.admission.max_in_flight == 128
    assert config.cache.exact.enabled
    assert config.cache.redis is None
    assert config.context is None


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"admission": {"maxInFlight": 0}}, "admission.maxInFlight"),
        ({"admission": {"maxInflight": 3}}, "admission.maxInflight"),
        ({"cache": {"exact": {"policy": "some"}}}, "cache.exact.policy"),
        ({"identity": {}}, "identity.model"),
        ({"listen": {"port": 70000}}, "listen.port"),
        ({"context": {"policy": "drop"}}, "context.policy"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_errors_name_the_field(change: dict[str, Any], names: str) -> None:
    with pytest.raises(ConfigError, match=f"^config.json: {names}: "):
        parse_config(json.dumps(SHORTEST | change).encode())


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b"null"])
def test_what_is_no_document_is_an_error(text: bytes) -> None:
    with pytest.raises(ConfigError):
        parse_config(text)
    with pytest.raises(ConfigError):
        parse_live(text)


def test_live_limits() -> None:
    assert parse_live(b"{}") == Live()
    live = parse_live(b'{"maxInFlight": 4, "maxQueue": 0, "queueTimeoutSeconds": null}')
    assert (live.max_in_flight, live.max_queue, live.queue_timeout_seconds) == (4, 0, None)


@pytest.mark.parametrize(
    "text",
    [
        b'{"maxInFlight": 0}',
        b'{"maxInFlight": -1}',
        b'{"maxInFlight": 1.5}',
        b'{"maxQueue": -1}',
        b'{"queueTimeoutSeconds": 0}',
        b'{"queueTimeoutSeconds": NaN}',
        b'{"queueTimeoutSeconds": Infinity}',
        b'{"other": 1}',
    ],
)
def test_wrong_live_limits(text: bytes) -> None:
    with pytest.raises(ConfigError):
        parse_live(text)
