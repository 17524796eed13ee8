"""Prometheus as the tuning loop uses it: the blocking client in a thread."""

import asyncio

from trimtab.controller.settings import Settings
from trimtab.controller.tuning_loop import Observations
from trimtab.telemetry.observe import Telemetry
from trimtab.telemetry.prometheus import Prometheus, PrometheusSettings


class PrometheusObserver:
    """Observer of `trimtab.controller.tuning_loop`; its ticks come one after the other."""

    def __init__(self, settings: Settings) -> None:
        if settings.prometheus_url is None:
            raise ValueError("no address of Prometheus")
        password = settings.prometheus_password
        self._prometheus = Prometheus(
            PrometheusSettings(
                url=settings.prometheus_url,
                timeout_s=settings.prometheus_timeout_seconds,
                token_file=settings.prometheus_token_file,
                username=settings.prometheus_username,
                password=password.get_secret_value() if password is not None else None,
                ca_file=settings.prometheus_ca_file,
            )
        )
        self._telemetry = Telemetry(self._prometheus, window_s=settings.metrics_window_seconds)

    async def observe(self, now: float) -> Observations:
        return await asyncio.to_thread(self._telemetry.observe, now)

    def close(self) -> None:
        """Close the connections."""
        self._prometheus.close()
