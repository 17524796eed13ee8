"""The operator's settings, from environment variables `TRIMTAB_…`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from trimtab.resources.render import DEFAULT_SIDECAR_IMAGE

PREFIX = "TRIMTAB_"
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class SettingsError(ValueError):
    """A variable is wrong; `str()` names every wrong one, its value and what is allowed."""


class Settings(BaseModel):
    """Each field is set by the variable of its upper-case name after `TRIMTAB_`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kubeconfig: Path | None = None
    """Kubeconfig file for an operator outside the cluster; default: the pod's service account."""
    kube_context: str | None = None
    """Context in that file."""
    namespaces: tuple[str, ...] = ()
    """Namespaces to serve, separated by commas; default: all."""
    watch_nodes: bool = True
    """Plan for the GPUs of the nodes; false where the operator may not list nodes or GPU nodes come on demand."""
    sidecar_image: Annotated[str, Field(min_length=1)] = DEFAULT_SIDECAR_IMAGE
    """Image of the cache sidecar."""
    catalogue_file: Path | None = None
    """YAML or JSON with `models` and `gpus` that are added to the bundled catalogue."""
    hub_lookup: bool = True
    """Ask the Hub about models that the catalogue does not have (HF_ENDPOINT names a mirror)."""
    hub_timeout_seconds: Positive = 10.0
    prometheus_url: str | None = None
    """Address of Prometheus; default: nothing is measured and nothing is tuned."""
    prometheus_timeout_seconds: Positive = 10.0
    prometheus_token_file: Path | None = None
    """File with a bearer token, read again for every tick."""
    prometheus_username: str | None = None
    prometheus_password: SecretStr | None = None
    prometheus_ca_file: Path | None = None
    """Authorities for an https address."""
    metrics_window_seconds: Annotated[int, Field(ge=10, le=3600)] = 60
    """Over what time rates are measured; at least four scrape intervals."""
    tuning_interval_seconds: Positive = 15.0
    """Time between two looks at the metrics."""
    resync_seconds: Annotated[float, Field(ge=10)] = 300.0
    """Time between two full listings, the net under lost watch events."""
    concurrency: Annotated[int, Field(ge=1, le=64)] = 8
    """LLMDeployments visited at the same time."""
    api_queries_per_second: Positive = 20.0
    """Limit on requests to the API server."""
    api_burst: Annotated[float, Field(ge=1)] = 50.0
    """Requests beyond that limit at once."""
    api_timeout_seconds: Positive = 10.0
    leader_election: bool = False
    """Needed for more than one replica of the operator."""
    leader_namespace: str | None = None
    """Namespace of the Lease; default: that of the pod."""
    leader_lease: str = "trimtab-operator"
    """Name of the Lease."""
    pod_name: str = "trimtab-operator"
    """Identity in the Lease and in events; set from the pod's name."""
    web_host: str = "0.0.0.0"  # noqa: S104 - kubelet and Prometheus come from other addresses
    web_port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """Port of /healthz, /readyz and /metrics."""
    log_format: Literal["json", "text"] = "json"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @field_validator("namespaces", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("prometheus_url")
    @classmethod
    def _http(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        return value


def load_settings(environment: Mapping[str, str]) -> Settings:
    """Settings from an environment; an empty variable counts as not set. Raises SettingsError.

    Variables with the prefix that mean nothing here are left alone: Kubernetes makes such names for Services.
    """
    given = {
        name: environment[variable]
        for name in Settings.model_fields
        if environment.get(variable := f"{PREFIX}{name.upper()}")
    }
    try:
        return Settings.model_validate(given)
    except ValidationError as invalid:
        raise SettingsError("\n".join(_sentence(error) for error in invalid.errors())) from None


def _sentence(error: Mapping[str, object]) -> str:
    location = error["loc"]
    name = str(location[0]) if isinstance(location, tuple) and location else ""
    variable = f"{PREFIX}{name.upper()}"
    shown = "(hidden)" if "password" in name else repr(error.get("input"))
    return f"{variable}: {str(error['msg']).removeprefix('Value error, ')}, got {shown}"
