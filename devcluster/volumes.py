"""Persistent volumes: a few folders of this machine, so that claims of the demo and the tests bind."""

import json
import shutil
from typing import Any

from devcluster.controlplane import ControlPlane
from devcluster.paths import NODE

STORAGE_CLASS = "trimtab-local"
_COUNT = 8
# Nothing enforces a size: any claim of a test fits.
_CAPACITY = "1Ti"


def offer(plane: ControlPlane) -> None:
    """Offer the volumes under the default storage class; one whose claim is gone is emptied and offered again."""
    listed = json.loads(plane.kubectl("get", "persistentvolumes", "-o", "json"))["items"]
    for volume in listed:
        if volume.get("status", {}).get("phase") == "Released":
            plane.kubectl("delete", "persistentvolume", volume["metadata"]["name"])
            shutil.rmtree(volume["spec"]["local"]["path"], ignore_errors=True)
    bound = {v["metadata"]["name"] for v in listed if v.get("status", {}).get("phase") == "Bound"}
    manifests = [_storage_class()]
    for index in range(_COUNT):
        volume = _volume(plane, index)
        if volume["metadata"]["name"] not in bound:
            path = plane.folder / "volumes" / str(index)
            path.mkdir(parents=True, exist_ok=True)
            # Pods write as whatever user they run as.
            path.chmod(0o777)
            manifests.append(volume)
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})
    plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input_text=text)


def _storage_class() -> dict[str, Any]:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": STORAGE_CLASS,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "Immediate",
    }


def _volume(plane: ControlPlane, index: int) -> dict[str, Any]:
    on_node = {"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"trimtab-volume-{index}"},
        "spec": {
            "storageClassName": STORAGE_CLASS,
            "capacity": {"storage": _CAPACITY},
            "accessModes": ["ReadWriteOnce", "ReadWriteMany", "ReadOnlyMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "local": {"path": str(plane.folder / "volumes" / str(index))},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [on_node]}]}},
        },
    }
