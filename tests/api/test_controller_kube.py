"""One contract for the client on a real API server and for the fake that the pure tests run on: both must agree."""

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.unit.controller.fakes.kube import FakeKube

from trimtab.controller.connection import load_configuration
from trimtab.controller.kube import AlreadyExists, ApiFailure, Conflict, KubeClient, NotFound, Refused, Unavailable
from trimtab.controller.kube_http import HttpKubeClient
from trimtab.controller.objects import CONFIG_MAP, DEPLOYMENT, LLM_DEPLOYMENT, Manifest, Ref, resource_version
from trimtab.controller.report import status_manifest

pytestmark = pytest.mark.api
CRD = Path(__file__).parents[2] / "crds" / "llmdeployments.trimtab.dev.yaml"


@dataclass
class Api:
    """A client and a namespace of its own."""

    kube: KubeClient
    namespace: str

    def config_map(self, **data: str) -> Manifest:
        metadata = {"namespace": self.namespace, "name": "settings", "labels": {"app": "x"}}
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}

    @property
    def ref(self) -> Ref:
        return Ref(CONFIG_MAP, self.namespace, "settings")

    def deployment(self, **fields: Any) -> Manifest:
        labels = {"app": "x"}
        container = {"name": "main", "image": "a:1", "env": [{"name": "ONE", "value": "1"}]}
        template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
        return {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"namespace": self.namespace, "name": "work"},
            "spec": {"selector": {"matchLabels": labels}, "template": template, **fields},
        }

    def resource(self) -> Manifest:
        return {
            "apiVersion": LLM_DEPLOYMENT.api_version,
            "kind": LLM_DEPLOYMENT.name,
            "metadata": {"namespace": self.namespace, "name": "chat"},
            "spec": {"model": {"id": "org/model"}},
        }


@pytest.fixture(params=["real", "fake"])
async def api(request: pytest.FixtureRequest) -> AsyncIterator[Api]:
    if request.param == "fake":
        yield Api(FakeKube(), "team")
        return
    server = request.getfixturevalue("apiserver")
    server.kubectl("apply", "--server-side", "-f", str(CRD))
    server.kubectl("wait", "--for=condition=Established", "crd/llmdeployments.trimtab.dev", "--timeout=60s")
    namespace = f"k-{uuid.uuid4().hex[:8]}"
    server.kubectl("create", "namespace", namespace)
    client = HttpKubeClient(await load_configuration(server.kubeconfig), queries_per_second=1000, burst=1000)
    yield Api(client, namespace)
    await client.close()


async def test_applying_creates_and_applying_the_same_again_changes_nothing(api: Api) -> None:
    first = await api.kube.apply(api.config_map(a="1"))
    again = await api.kube.apply(api.config_map(a="1"))
    assert first["data"] == {"a": "1"}
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    assert again["metadata"]["uid"] == first["metadata"]["uid"]
    changed = await api.kube.apply(api.config_map(a="2"))
    assert resource_version(changed) > resource_version(first)


async def test_what_is_no_longer_applied_goes_and_what_others_set_stays(api: Api) -> None:
    await api.kube.apply(api.config_map(a="1", b="2"))
    await api.kube.merge_patch(api.ref, {"data": {"theirs": "3"}, "metadata": {"labels": {"team": "blue"}}})
    stored = await api.kube.apply(api.config_map(a="1"))
    assert stored["data"] == {"a": "1", "theirs": "3"}
    assert stored["metadata"]["labels"] == {"app": "x", "team": "blue"}


async def test_lists_with_keys_are_merged_and_lists_without_are_replaced(api: Api) -> None:
    await api.kube.apply(api.deployment())
    ref = Ref(DEPLOYMENT, api.namespace, "work")
    live = await api.kube.get(ref)
    container = live["spec"]["template"]["spec"]["containers"][0]
    container["env"].append({"name": "THEIRS", "value": "2"})
    await api.kube.replace(live)
    mine = api.deployment()
    mine["spec"]["template"]["spec"]["containers"][0] |= {"args": ["--fast"], "image": "a:2"}
    stored = (await api.kube.apply(mine))["spec"]["template"]["spec"]["containers"][0]
    assert {entry["name"] for entry in stored["env"]} == {"ONE", "THEIRS"}
    assert (stored["args"], stored["image"]) == (["--fast"], "a:2")
    mine["spec"]["template"]["spec"]["containers"][0]["args"] = ["--slow", "--safe"]
    stored = (await api.kube.apply(mine))["spec"]["template"]["spec"]["containers"][0]
    assert stored["args"] == ["--slow", "--safe"]


async def test_a_field_that_is_no_longer_applied_is_given_up(api: Api) -> None:
    await api.kube.apply(api.deployment(replicas=3, minReadySeconds=5))
    stored = await api.kube.apply(api.deployment(replicas=3))
    assert not stored["spec"].get("minReadySeconds")
    assert stored["spec"]["replicas"] == 3


async def test_the_generation_counts_changes_of_the_spec_only(api: Api) -> None:
    created = await api.kube.apply(api.deployment(replicas=1))
    labelled = api.deployment(replicas=1)
    labelled["metadata"]["labels"] = {"x": "y"}
    assert (await api.kube.apply(labelled))["metadata"]["generation"] == created["metadata"]["generation"] == 1
    labelled["spec"]["replicas"] = 2
    assert (await api.kube.apply(labelled))["metadata"]["generation"] == 2


async def test_creating_twice_replacing_the_old_and_deleting_another_are_conflicts(api: Api) -> None:
    created = await api.kube.create(api.config_map(a="1"))
    with pytest.raises(AlreadyExists):
        await api.kube.create(api.config_map(a="1"))
    await api.kube.merge_patch(api.ref, {"data": {"a": "2"}})
    with pytest.raises(Conflict):
        await api.kube.replace({**created, "data": {"a": "3"}})
    with pytest.raises(Conflict):
        await api.kube.delete(api.ref, uid=str(uuid.uuid4()))
    assert (await api.kube.get(api.ref))["data"] == {"a": "2"}


async def test_deleting_what_is_gone_is_no_failure_and_reading_it_is(api: Api) -> None:
    created = await api.kube.create(api.config_map(a="1"))
    await api.kube.delete(api.ref, uid=created["metadata"]["uid"])
    await api.kube.delete(api.ref)
    with pytest.raises(NotFound):
        await api.kube.get(api.ref)
    with pytest.raises(NotFound):
        await api.kube.merge_patch(api.ref, {"data": {}})


async def test_a_listing_is_narrowed_by_label_and_carries_a_version(api: Api) -> None:
    created = await api.kube.create(api.config_map(a="1"))
    for selector, count in (("app=x", 1), ("app=y", 0), ("", 1)):
        listing = await api.kube.list_all(CONFIG_MAP, api.namespace, selector)
        found = [item for item in listing.items if item["metadata"]["name"] == "settings"]
        assert len(found) == count
        assert listing.resource_version >= resource_version(created)
        assert all((item["kind"], item["apiVersion"]) == ("ConfigMap", "v1") for item in found)


async def test_status_is_applied_to_the_judged_version_only_and_conditions_are_merged_by_type(api: Api) -> None:
    created = await api.kube.create(api.resource())
    condition = {"type": "Ready", "status": "False", "reason": "X", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    stored = await api.kube.apply_status(status_manifest(created, {"replicas": 1, "conditions": [condition]}))
    assert stored["status"]["replicas"] == 1
    assert stored["metadata"]["generation"] == 1
    with pytest.raises(Conflict):
        await api.kube.apply_status(status_manifest(created, {"replicas": 2}))
    theirs = {**condition, "type": "Audited"}
    conditions = [*stored["status"]["conditions"], theirs]
    replaced = {**stored, "status": {**stored["status"], "conditions": conditions}}
    if isinstance(api.kube, FakeKube):
        ref = Ref(LLM_DEPLOYMENT, api.namespace, "chat")
        latest = api.kube.edit(ref, lambda item: item.update(status=replaced["status"]))
    else:
        latest = await _replace_status(api.kube, replaced)
    final = await api.kube.apply_status(status_manifest(latest, {"replicas": 1, "conditions": [condition]}))
    assert {item["type"] for item in final["status"]["conditions"]} == {"Ready", "Audited"}


async def _replace_status(kube: Any, manifest: Manifest) -> Manifest:
    path = LLM_DEPLOYMENT.path(manifest["metadata"]["namespace"], manifest["metadata"]["name"], "status")
    stored: Manifest = await kube._request(
        "PUT", "replace", LLM_DEPLOYMENT, path, {"fieldManager": "auditor"}, manifest, "application/json"
    )
    return stored


async def test_a_server_that_is_not_there_is_unavailable(apiserver: Any) -> None:
    configuration = await load_configuration(apiserver.kubeconfig)
    configuration.host = "https://127.0.0.1:1"
    codes: list[tuple[str, str, int]] = []
    client = HttpKubeClient(configuration, timeout=2, on_call=lambda *call: codes.append(call))
    with pytest.raises(Unavailable):
        await client.get(Ref(CONFIG_MAP, "default", "x"))
    assert codes == [("get", "ConfigMap", 0)]
    await client.close()


async def test_an_object_that_breaks_the_schema_is_refused_with_the_server_s_words(apiserver: Any) -> None:
    client = HttpKubeClient(await load_configuration(apiserver.kubeconfig))
    wrong = Api(client, "default").config_map()
    with pytest.raises(Refused) as refused:
        await client.create({**wrong, "metadata": {"namespace": "default", "name": "Not A Name"}})
    assert "Not A Name" in str(refused.value)
    assert isinstance(refused.value, ApiFailure)
    await client.close()
