"""The connection to Prometheus: address, credentials, time-outs. Blocking: callers run it in a thread."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests
from prometheus_api_client import PrometheusApiClientException, PrometheusConnect
from urllib3.util.retry import Retry

_LOG = logging.getLogger(__name__)


class TelemetryUnavailableError(Exception):
    """Prometheus could not be asked at all; the message says why. Hold what is."""


class QueryRejectedError(Exception):
    """Prometheus answered, but refused this query."""


@dataclass(frozen=True, slots=True)
class PrometheusSettings:
    """Where Prometheus is and how to get in.

    At most one of the token and the basic credentials. `token_file` is read again for every tick, since service
    account tokens rotate. `ca_file` replaces the system's authorities; `cert_file` and `key_file` are for mTLS.
    """

    url: str
    timeout_s: float = 10.0
    token: str | None = None
    token_file: Path | None = None
    username: str | None = None
    password: str | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    verify: bool = True

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"the address of Prometheus must begin with http:// or https://, got {self.url!r}")
        if (self.token or self.token_file) and self.username:
            raise ValueError("give Prometheus either a token or a user name, not both")

    def __repr__(self) -> str:
        return f"PrometheusSettings(url={self.url!r})"


class Prometheus:
    """Sends instant and range queries; one connection pool, one retry on transport errors."""

    def __init__(self, settings: PrometheusSettings) -> None:
        self._settings = settings
        session = requests.Session()
        # Proxies of the environment are for the outside world, not for a service of the cluster.
        session.trust_env = False
        session.verify = str(settings.ca_file) if settings.ca_file else settings.verify
        if settings.cert_file:
            key = settings.key_file or settings.cert_file
            session.cert = (str(settings.cert_file), str(key))
        credentials = (settings.username, settings.password or "") if settings.username else None
        self._client = PrometheusConnect(
            url=settings.url.rstrip("/"),
            headers={},
            auth=credentials,
            session=session,
            # requests takes seconds as a float, although the client's annotation says int.
            timeout=settings.timeout_s,
            retry=Retry(total=1, backoff_factor=0.2, status_forcelist=[502, 503, 504], raise_on_status=False),
            method="POST",
        )
        self.queries_sent = 0

    def instant(self, query: str, at: float) -> list[Any]:
        """The result vector at a clock time."""
        return self._ask(lambda: self._client.custom_query(query, params={"time": f"{at:.3f}"}))

    def range(self, query: str, start: float, end: float, step_s: int) -> list[Any]:
        """The result matrix."""
        first, last = datetime.fromtimestamp(start, UTC), datetime.fromtimestamp(end, UTC)
        return self._ask(lambda: self._client.custom_query_range(query, first, last, str(step_s)))

    def _ask(self, send: Any) -> list[Any]:
        self._client.headers = self._headers()
        self.queries_sent += 1
        try:
            result: list[Any] = send()
        except PrometheusApiClientException as error:
            text = str(error)
            # 400 and 422: the query; anything else (401, 403, 404, 5xx): the server or the way to it.
            if text.startswith(("HTTP Status Code 400", "HTTP Status Code 422")):
                raise QueryRejectedError(text[:500]) from error
            raise TelemetryUnavailableError(f"{self._settings.url}: {text[:300]}") from error
        except (requests.RequestException, ValueError, KeyError, TypeError) as error:
            raise TelemetryUnavailableError(f"{self._settings.url}: {error}") from error
        return result

    def _headers(self) -> Mapping[str, str]:
        settings = self._settings
        if settings.token_file is not None:
            try:
                return {"Authorization": f"Bearer {settings.token_file.read_text().strip()}"}
            except OSError as error:
                raise TelemetryUnavailableError(f"token file of Prometheus: {error}") from error
        return {"Authorization": f"Bearer {settings.token}"} if settings.token else {}

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
