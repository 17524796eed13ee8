"""Pure: does an object still say what we last applied? Decides whether a write is needed, without asking the server."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from trimtab.controller.objects import APPLIED_ANNOTATION, Manifest

# Lists that the API server merges by key (`x-kubernetes-list-map-keys` of the built-in types we render): entries of
# others may stand beside ours.
_MERGE_KEYS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "containers": (("name",),),
    "initContainers": (("name",),),
    "env": (("name",),),
    "volumes": (("name",),),
    "imagePullSecrets": (("name",),),
    "volumeMounts": (("mountPath",),),
    "volumeDevices": (("devicePath",),),
    "ports": (("containerPort", "protocol"), ("port", "protocol")),
    "topologySpreadConstraints": (("topologyKey", "whenUnsatisfiable"),),
    "ownerReferences": (("uid",),),
    "conditions": (("type",),),
}
_DEFAULTS = {"protocol": "TCP"}
_QUANTITY_PARENTS = {"limits", "requests", "capacity"}
_QUANTITY_FIELDS = {"sizeLimit", "divisor"}
_QUANTITY = re.compile(r"^([+-]?[0-9.]+)([eE][+-]?[0-9]+|n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$")
_UNITS = {
    **{
        unit: Decimal(1000) ** power for power, unit in enumerate(("n", "u", "m", "", "k", "M", "G", "T", "P", "E"), -3)
    },
    **{f"{unit}i": Decimal(1024) ** power for power, unit in enumerate(("K", "M", "G", "T", "P", "E"), 1)},
}


def fingerprint(value: Any) -> str:
    """Short stable hash of a JSON value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def stamped(manifest: Manifest) -> Manifest:
    """The manifest with an annotation that carries its fingerprint.

    From it a restarted operator knows whether it would apply the same again, including fields that it no longer sets
    and that would have to go.
    """
    metadata = manifest["metadata"]
    annotations = {**(metadata.get("annotations") or {}), APPLIED_ANNOTATION: fingerprint(manifest)}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def difference(desired: Any, live: Any) -> str | None:
    """Path of the first field of `desired` that `live` lacks or says otherwise; None: nothing to apply.

    What `live` has beyond that (defaults, fields of other managers) does not count.
    """
    return _difference(desired, live, ())


def _difference(desired: Any, live: Any, path: tuple[str, ...]) -> str | None:
    if isinstance(desired, Mapping):
        # The API server drops empty mappings and lists.
        below = live if isinstance(live, Mapping) else {}
        if desired and not isinstance(live, Mapping):
            return ".".join(path) or "."
        return _first(_difference(value, below.get(name), (*path, str(name))) for name, value in desired.items())
    if isinstance(desired, list | tuple):
        return _list_difference(desired, live, path)
    if desired is None or _same(desired, live, path):
        return None
    return ".".join(path)


def _list_difference(desired: Sequence[Any], live: Any, path: tuple[str, ...]) -> str | None:
    entries = live if isinstance(live, list | tuple) else []
    keys = _merge_keys(path[-1] if path else "", desired)
    if keys is None:
        if len(desired) != len(entries):
            return ".".join(path)
        pairs = zip(desired, entries, range(len(desired)), strict=True)
        return _first(_difference(wanted, found, (*path, str(index))) for wanted, found, index in pairs)
    by_key = {_identity(entry, keys): entry for entry in entries}
    return _first(
        _difference(wanted, by_key.get(_identity(wanted, keys)), (*path, "/".join(_identity(wanted, keys))))
        for wanted in desired
    )


def _merge_keys(name: str, entries: Sequence[Any]) -> tuple[str, ...] | None:
    if not all(isinstance(entry, Mapping) for entry in entries):
        return None
    for keys in _MERGE_KEYS.get(name, ()):
        if all(keys[0] in entry for entry in entries):
            return keys
    return None


def _identity(entry: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(str(entry.get(key, _DEFAULTS.get(key, ""))) for key in keys)


def _same(desired: Any, live: Any, path: tuple[str, ...]) -> bool:
    if isinstance(desired, bool) or isinstance(live, bool):
        return desired is live
    if desired == live:
        return True
    if (len(path) > 1 and path[-2] in _QUANTITY_PARENTS) or path[-1] in _QUANTITY_FIELDS:
        wanted, found = _quantity(desired), _quantity(live)
        return wanted is not None and wanted == found
    return False


def _quantity(value: Any) -> Decimal | None:
    match = _QUANTITY.match(str(value))
    if match is None:
        return None
    number, unit = match[1], match[2] or ""
    if unit[:1] in ("e", "E") and unit[1:]:
        return Decimal(f"{number}{unit}")
    return Decimal(number) * _UNITS[unit]


def _first(found: Any) -> str | None:
    return next((path for path in found if path is not None), None)
