"""Model facts from the Hugging Face Hub: config.json and safetensors headers, a few hundred kilobytes at most."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    NotASafetensorsRepoError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from trimtab.catalog.hf_config import model_from_config
from trimtab.catalog.models import ModelFacts
from trimtab.catalog.safetensors import DTYPE_BYTES, TensorSummary

DEFAULT_TIMEOUT_SECONDS = 10.0


class HubError(RuntimeError):
    """The Hub did not tell; the message says what a person can do."""


@dataclass(frozen=True, slots=True)
class HubAccess:
    """How to reach the Hub."""

    token: str | None = None
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    offline: bool = False
    """Use only what is in the local cache."""
    endpoint: str | None = None
    """A mirror instead of https://huggingface.co (or of HF_ENDPOINT)."""


def fetch_model(model_id: str, revision: str | None = None, access: HubAccess = HubAccess()) -> ModelFacts:
    """The facts about a repository on the Hub.

    Raises HubError when the repository is unknown, gated, unreachable or not cached offline, and InvalidSpecError when
    its config.json does not describe a model that can be sized.
    """
    config = _config(model_id, revision, access)
    return model_from_config(model_id, config, _tensors(model_id, revision, access), field="config.json")


def _config(model_id: str, revision: str | None, access: HubAccess) -> dict[str, Any]:
    offline = access.offline or os.environ.get("HF_HUB_OFFLINE", "") in ("1", "true", "TRUE", "ON")
    try:
        text = _cached_config(model_id, revision) if offline else _remote_config(model_id, revision, access)
    except GatedRepoError:
        raise HubError(
            f"{model_id} is gated: accept its licence on the Hub and give a token (model.tokenSecretRef, HF_TOKEN)"
        ) from None
    except RepositoryNotFoundError:
        raise HubError(f"{model_id} is not on the Hub, or is private and needs a token: check the name") from None
    except RevisionNotFoundError:
        raise HubError(f"{model_id} has no revision {revision}: name a branch, tag or commit that exists") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        why = "offline and not in the local cache" if offline else "the Hub did not answer"
        raise HubError(f"{model_id}: {why}: use --model-config, or add the model to the catalogue") from None
    except EntryNotFoundError:
        raise HubError(f"{model_id} has no config.json: it is no model that can be served") from None
    except (HfHubHTTPError, OSError) as failed:
        raise HubError(
            f"{model_id}: the Hub did not answer ({type(failed).__name__}): try again or use --model-config"
        ) from None
    try:
        config = json.loads(text)
    except ValueError as broken:
        raise HubError(f"{model_id}: config.json is no JSON ({broken})") from None
    if not isinstance(config, dict):
        raise HubError(f"{model_id}: config.json is no object")
    return config


def _cached_config(model_id: str, revision: str | None) -> str:
    return Path(hf_hub_download(model_id, "config.json", revision=revision, local_files_only=True)).read_text("utf-8")


def _remote_config(model_id: str, revision: str | None, access: HubAccess) -> str:
    """One request without the retries of hf_hub_download: an unreachable Hub costs one time-out and no more."""
    response = get_session().get(
        hf_hub_url(model_id, "config.json", revision=revision, endpoint=access.endpoint),
        headers=build_hf_headers(token=access.token),
        timeout=access.timeout_seconds,
    )
    hf_raise_for_status(response)
    return str(response.text)


def _tensors(model_id: str, revision: str | None, access: HubAccess) -> TensorSummary | None:
    """Sizes from the headers; None when they cannot be had, since the shape alone is enough to plan."""
    if access.offline:
        return None
    try:
        metadata = HfApi(endpoint=access.endpoint, token=access.token).get_safetensors_metadata(
            model_id, revision=revision
        )
    except (NotASafetensorsRepoError, SafetensorsParsingError, HfHubHTTPError, OSError):
        return None
    by_dtype = {
        str(dtype): int(count * DTYPE_BYTES.get(str(dtype), 2.0)) for dtype, count in metadata.parameter_count.items()
    }
    return TensorSummary(sum(by_dtype.values()), by_dtype, len(metadata.weight_map))
