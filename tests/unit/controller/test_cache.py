"""The object cache: never older than what we wrote, never holding what is gone."""

from typing import Any

from trimtab.controller.cache import ObjectCache
from trimtab.controller.kube import Listing
from trimtab.controller.objects import DEPLOYMENT, LLM_DEPLOYMENT, NODE, POD, Key, Kind, Ref

KEY = Key("team", "chat")


def _object(kind: Kind, name: str, version: int, *, uid: str = "u1", **fields: Any) -> dict[str, Any]:
    metadata = {
        "namespace": "team",
        "name": name,
        "uid": uid,
        "resourceVersion": str(version),
        "labels": {"trimtab.dev/deployment": "chat"},
    }
    return {"apiVersion": kind.api_version, "kind": kind.name, "metadata": metadata, **fields}


def _version(cache: ObjectCache, kind: Kind, name: str) -> str | None:
    found = cache.get(Ref(kind, "team", name))
    return found["metadata"]["resourceVersion"] if found else None


def test_a_late_event_does_not_undo_our_own_write() -> None:
    cache = ObjectCache()
    cache.record(DEPLOYMENT, _object(DEPLOYMENT, "chat", 12))
    cache.record(DEPLOYMENT, _object(DEPLOYMENT, "chat", 9))
    assert _version(cache, DEPLOYMENT, "chat") == "12"


def test_an_event_seen_before_queues_nothing() -> None:
    seen: list[Key | None] = []
    cache = ObjectCache(seen.append)
    for _ in range(3):
        cache.record(DEPLOYMENT, _object(DEPLOYMENT, "chat", 12))
    assert seen == [KEY]


def test_a_late_event_does_not_revive_a_deleted_object() -> None:
    cache = ObjectCache()
    cache.record(POD, _object(POD, "p", 5))
    cache.remove(POD, _object(POD, "p", 7))
    cache.record(POD, _object(POD, "p", 6))
    assert cache.pods(KEY) == ()
    cache.record(POD, _object(POD, "p", 8, uid="u2"))
    assert len(cache.pods(KEY)) == 1


def test_the_late_deletion_of_a_namesake_does_not_remove_its_successor() -> None:
    cache = ObjectCache()
    cache.record(DEPLOYMENT, _object(DEPLOYMENT, "chat", 20, uid="new"))
    cache.remove(DEPLOYMENT, _object(DEPLOYMENT, "chat", 15, uid="old"))
    assert _version(cache, DEPLOYMENT, "chat") == "20"


def test_a_listing_removes_what_vanished_while_the_watch_was_down_but_not_what_was_written_since() -> None:
    seen: list[Key | None] = []
    cache = ObjectCache()
    cache.record(POD, _object(POD, "gone", 5))
    cache.record(POD, _object(POD, "newer", 30))
    cache.on_change = seen.append
    cache.replace_all(POD, Listing((_object(POD, "kept", 6),), 20))
    assert [pod["metadata"]["name"] for pod in cache.pods(KEY)] == ["kept", "newer"]
    assert seen == [KEY, KEY]


def test_a_listing_of_one_namespace_leaves_the_others_alone() -> None:
    cache = ObjectCache()
    cache.record(POD, _object(POD, "p", 5))
    cache.replace_all(POD, Listing((), 20), namespace="elsewhere")
    assert len(cache.pods(KEY)) == 1


def test_children_pods_and_resources_are_found_by_key_and_nodes_by_name() -> None:
    seen: list[Key | None] = []
    cache = ObjectCache(seen.append)
    cache.record(LLM_DEPLOYMENT, _object(LLM_DEPLOYMENT, "chat", 1))
    cache.record(DEPLOYMENT, _object(DEPLOYMENT, "chat", 2))
    cache.record(POD, _object(POD, "p", 3))
    for name in ("b", "a"):
        cache.record(NODE, {"metadata": {"name": name, "resourceVersion": "4"}, "status": {"images": ["big"]}})
    assert cache.all_keys() == (KEY,)
    assert [ref.kind for ref, _ in cache.children(KEY)] == [DEPLOYMENT]
    assert [node["metadata"]["name"] for node in cache.nodes()] == ["a", "b"]
    assert "images" not in cache.nodes()[0]["status"]
    assert seen == [KEY, KEY, KEY, None, None]


def test_the_managers_that_scaled_a_deployment_are_remembered_though_managed_fields_are_not() -> None:
    cache = ObjectCache()
    deployment = _object(DEPLOYMENT, "chat", 1)
    deployment["metadata"]["managedFields"] = [
        {"manager": "trimtab", "fieldsV1": {"f:spec": {"f:replicas": {}}}},
        {"manager": "hpa", "subresource": "scale", "fieldsV1": {"f:spec": {"f:replicas": {}}}},
    ]
    cache.record(DEPLOYMENT, deployment)
    stored = cache.get(Ref(DEPLOYMENT, "team", "chat"))
    assert stored is not None
    assert stored["scaledBy"] == ["hpa"]
    assert "managedFields" not in stored["metadata"]
