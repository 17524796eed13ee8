"""Settings from the environment, and logs."""

import json
import logging
from pathlib import Path

import pytest

from trimtab.controller.logs import JsonFormatter, current_key
from trimtab.controller.objects import Key
from trimtab.controller.settings import Settings, SettingsError, load_settings


def test_an_empty_environment_gives_the_defaults() -> None:
    assert load_settings({}) == Settings()
    assert load_settings({"TRIMTAB_PROMETHEUS_URL": "", "PATH": "/bin"}) == Settings()


def test_variables_are_read_and_converted() -> None:
    settings = load_settings(
        {
            "TRIMTAB_NAMESPACES": "a, b,",
            "TRIMTAB_LEADER_ELECTION": "true",
            "TRIMTAB_WATCH_NODES": "false",
            "TRIMTAB_TUNING_INTERVAL_SECONDS": "2.5",
            "TRIMTAB_KUBECONFIG": "/tmp/kubeconfig",
            "TRIMTAB_WEB_PORT": "8081",
        }
    )
    assert settings.namespaces == ("a", "b")
    assert (settings.leader_election, settings.watch_nodes) == (True, False)
    assert settings.tuning_interval_seconds == 2.5
    assert settings.kubeconfig == Path("/tmp/kubeconfig")
    assert settings.web_port == 8081


def test_names_that_kubernetes_makes_for_services_are_ignored() -> None:
    assert load_settings({"TRIMTAB_SERVICE_HOST": "10.0.0.1", "TRIMTAB_PORT": "tcp://10.0.0.1:8080"}) == Settings()


def test_every_wrong_variable_is_named_with_its_value_and_what_is_allowed() -> None:
    with pytest.raises(SettingsError) as wrong:
        load_settings(
            {
                "TRIMTAB_PROMETHEUS_URL": "prometheus:9090",
                "TRIMTAB_RESYNC_SECONDS": "1",
                "TRIMTAB_LOG_FORMAT": "xml",
            }
        )
    text = str(wrong.value)
    assert "TRIMTAB_PROMETHEUS_URL: must begin with http:// or https://, got 'prometheus:9090'" in text
    assert "TRIMTAB_RESYNC_SECONDS" in text
    assert "greater than or equal to 10" in text
    assert "TRIMTAB_LOG_FORMAT" in text
    assert "'json' or 'text'" in text


def test_a_password_appears_in_no_representation() -> None:
    settings = load_settings({"TRIMTAB_PROMETHEUS_USERNAME": "u", "TRIMTAB_PROMETHEUS_PASSWORD": "hunter2"})
    assert "hunter2" not in repr(settings) + settings.model_dump_json() + str(settings)


def test_a_log_line_is_json_and_names_its_object() -> None:
    record = logging.LogRecord("trimtab.x", logging.WARNING, "f", 1, "visit %s", ("failed",), None)
    token = current_key.set(Key("team", "chat"))
    try:
        entry = json.loads(JsonFormatter().format(record))
    finally:
        current_key.reset(token)
    assert entry["object"] == {"kind": "LLMDeployment", "namespace": "team", "name": "chat"}
    assert (entry["level"], entry["message"]) == ("warning", "visit failed")
