"""Volumes of a pod, their mounts, and the claim for downloaded weights."""

from trimtab.api.errors import FieldError
from trimtab.api.spec import LLMDeploymentSpec
from trimtab.engines.base import ContainerFacts
from trimtab.resources.identity import Manifest, Owner, child_name, metadata
from trimtab.resources.sidecar_config import MOUNT_PATH, config_map_name

MODEL_MOUNT = "/models"
"""Where a claim named by `pvc://claim/path` is mounted."""
_PREFIX = "trimtab-"
CONFIG_VOLUME = f"{_PREFIX}sidecar-config"
_SHM = f"{_PREFIX}shm"
_CACHE = f"{_PREFIX}model-cache"
_MODEL = f"{_PREFIX}model"


def model_claim(spec: LLMDeploymentSpec) -> str | None:
    """Claim that holds the model itself; None: it comes from the Hub."""
    if spec.model.id is None or not spec.model.id.startswith("pvc://"):
        return None
    return spec.model.id.removeprefix("pvc://").partition("/")[0]


def build_claim(owner: Owner, spec: LLMDeploymentSpec) -> Manifest | None:
    """The claim for downloaded weights, when the spec asks for one."""
    cache = spec.model.cache
    if cache.size is None:
        return None
    several = spec.scaling.max_replicas > 1 or (spec.replicas or 1) > 1
    claim: Manifest = {
        "accessModes": ["ReadWriteMany" if several else "ReadWriteOnce"],
        "resources": {"requests": {"storage": cache.size}},
    }
    if cache.storage_class_name is not None:
        claim["storageClassName"] = cache.storage_class_name
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata(owner, "models"), "spec": claim}


def pod_volumes(owner: Owner, spec: LLMDeploymentSpec, facts: ContainerFacts) -> list[Manifest]:
    """All volumes of the pod."""
    volumes: list[Manifest] = [
        {"name": CONFIG_VOLUME, "configMap": {"name": config_map_name(owner)}},
        {"name": _SHM, "emptyDir": {"medium": "Memory", "sizeLimit": spec.pod_template.shm_size}},
        {"name": _CACHE} | _cache_source(owner, spec),
    ]
    volumes += [{"name": f"{_PREFIX}{name}", "emptyDir": {}} for name in sorted(facts.writable)]
    claim = model_claim(spec)
    if claim is not None:
        volumes.append({"name": _MODEL, "persistentVolumeClaim": {"claimName": claim, "readOnly": True}})
    return volumes + [dict(volume) for volume in spec.pod_template.volumes]


def _cache_source(owner: Owner, spec: LLMDeploymentSpec) -> Manifest:
    cache = spec.model.cache
    if cache.existing_claim is not None:
        return {"persistentVolumeClaim": {"claimName": cache.existing_claim}}
    if cache.size is not None:
        return {"persistentVolumeClaim": {"claimName": child_name(owner, "models")}}
    return {"emptyDir": {}}


def engine_mounts(spec: LLMDeploymentSpec, facts: ContainerFacts) -> list[Manifest]:
    """Mounts of the engine container."""
    mounts: list[Manifest] = [
        {"name": _SHM, "mountPath": "/dev/shm"},  # noqa: S108 - shared memory of the shards
        {"name": _CACHE, "mountPath": facts.cache_dir},
    ]
    mounts += [{"name": f"{_PREFIX}{name}", "mountPath": path} for name, path in sorted(facts.writable.items())]
    if model_claim(spec) is not None:
        mounts.append({"name": _MODEL, "mountPath": MODEL_MOUNT, "readOnly": True})
    return mounts + [dict(mount) for mount in spec.pod_template.volume_mounts]


def sidecar_mounts() -> list[Manifest]:
    """Mounts of the sidecar: a whole folder, because a subPath would never be brought up to date."""
    return [{"name": CONFIG_VOLUME, "mountPath": MOUNT_PATH, "readOnly": True}]


def volume_problems(spec: LLMDeploymentSpec, facts: ContainerFacts) -> tuple[FieldError, ...]:
    """What the API server would only say once the Deployment is applied."""
    problems: list[FieldError] = []
    names = [str(volume.get("name", "")) for volume in spec.pod_template.volumes]
    for index, name in enumerate(names):
        if not name or name.startswith(_PREFIX) or name in names[:index]:
            field = f"spec.podTemplate.volumes.{index}.name"
            problems.append(FieldError(field, name, "is missing, taken or reserved", f"a name without {_PREFIX}"))
    taken = {str(mount["mountPath"]) for mount in engine_mounts(spec.model_copy(update=_no_mounts(spec)), facts)}
    for index, mount in enumerate(spec.pod_template.volume_mounts):
        path = str(mount.get("mountPath", ""))
        field = f"spec.podTemplate.volumeMounts.{index}"
        if not path or path in taken:
            problems.append(FieldError(f"{field}.mountPath", path, "is missing or taken", "another path"))
        if mount.get("name") not in names:
            allowed = ", ".join(names) or "a name of podTemplate.volumes"
            problems.append(FieldError(f"{field}.name", mount.get("name"), "names no volume", allowed))
        taken.add(path)
    return tuple(problems)


def _no_mounts(spec: LLMDeploymentSpec) -> Manifest:
    return {"pod_template": spec.pod_template.model_copy(update={"volume_mounts": ()})}
