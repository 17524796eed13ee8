"""The operator against a real API server: server-side apply, status, watches and restarts as they really are.

There is no controller manager and no kubelet here: tests play their part where needed. Garbage collection is therefore
judged by owner references; the node tests see it happen.
"""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from trimtab.controller.assembly import Operator
from trimtab.controller.connection import load_configuration
from trimtab.controller.kube import AlreadyExists, Conflict, NotFound, Refused
from trimtab.controller.kube_http import HttpKubeClient
from trimtab.controller.objects import (
    CHILD_KINDS,
    CONFIG_MAP,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    EVENT,
    LLM_DEPLOYMENT,
    SERVICE,
    SERVICE_ACCOUNT,
    Kind,
    Manifest,
    Ref,
)
from trimtab.controller.report import status_manifest
from trimtab.controller.settings import Settings

pytestmark = pytest.mark.api
CRD = Path(__file__).parents[2] / "crds" / "llmdeployments.trimtab.dev.yaml"
SPEC: dict[str, Any] = {
    "model": {"id": "meta-llama/Llama-3.1-8B-Instruct"},
    "slo": {"tpot": {"p95": "40ms"}},
    "scaling": {"minReplicas": 2, "maxReplicas": 5},
}
NODE = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "gpu-node", "labels": {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}},
    "status": {"allocatable": {"nvidia.com/gpu": "8"}, "capacity": {"nvidia.com/gpu": "8"}},
}
WRITES = {"apply", "apply_status", "create", "replace", "patch", "delete"}
CHILDREN = {SERVICE_ACCOUNT, CONFIG_MAP, SERVICE, DISRUPTION_BUDGET, DEPLOYMENT}


@pytest.fixture(scope="session")
def cluster(apiserver: Any) -> Any:
    """The API server with the CRD and a GPU node."""
    apiserver.kubectl("apply", "--server-side", "-f", str(CRD))
    apiserver.kubectl("wait", "--for=condition=Established", "crd/llmdeployments.trimtab.dev", "--timeout=60s")
    text = json.dumps(NODE)
    apiserver.kubectl("apply", "--server-side", "-f", "-", input_text=text)
    apiserver.kubectl("apply", "--server-side", "--subresource=status", "-f", "-", input_text=text)
    return apiserver


@dataclass
class Bench:
    """A namespace, a user's client, and operators started in this process."""

    server: Any
    client: HttpKubeClient
    namespace: str
    running: list[Operator] = field(default_factory=list)

    def ref(self, kind: Kind, name: str = "chat") -> Ref:
        return Ref(kind, self.namespace, name)

    async def create(self, spec: dict[str, Any] = SPEC, name: str = "chat", namespace: str = "") -> Manifest:
        """A user applies an LLMDeployment."""
        metadata = {"namespace": namespace or self.namespace, "name": name}
        manifest = {"apiVersion": LLM_DEPLOYMENT.api_version, "kind": LLM_DEPLOYMENT.name, "metadata": metadata}
        return await self.client.create({**manifest, "spec": spec})

    async def patch_spec(self, changes: dict[str, Any]) -> None:
        """A user edits it."""
        await self.client.merge_patch(self.ref(LLM_DEPLOYMENT), {"spec": changes})

    async def status(self) -> Manifest:
        found = await self.client.get(self.ref(LLM_DEPLOYMENT))
        status: Manifest = found.get("status") or {}
        return status

    async def condition(self, kind: str) -> Manifest:
        conditions = (await self.status()).get("conditions") or ()
        return next((item for item in conditions if item["type"] == kind), {"status": "", "reason": ""})

    async def children(self) -> dict[Kind, Manifest]:
        found = {}
        for kind in CHILD_KINDS:
            listing = await self.client.list_all(kind, self.namespace, "app.kubernetes.io/managed-by=trimtab")
            for item in listing.items:
                found[kind] = item
        return found

    async def exists(self, ref: Ref) -> bool:
        try:
            await self.client.get(ref)
        except NotFound:
            return False
        return True

    @asynccontextmanager
    async def operator(self, **settings: Any) -> AsyncIterator[Operator]:
        """A fresh operator process, as far as memory goes."""
        given = {
            "kubeconfig": self.server.kubeconfig,
            "web_port": 0,
            "web_host": "127.0.0.1",
            "namespaces": (self.namespace,),
        }
        configuration = await load_configuration(self.server.kubeconfig)
        operator = Operator(Settings.model_validate({**given, **settings}), configuration)
        task = asyncio.create_task(operator.run())
        try:
            await until(lambda: _ready(operator, task))
            yield operator
        finally:
            operator.stop()
            await asyncio.wait_for(task, 30)

    async def settle(self, operator: Operator) -> None:
        """Wait until nothing was asked or written for a second."""
        quiet, last = 0, -1
        while quiet < 5:
            await asyncio.sleep(0.2)
            now = sum(calls(operator).values())
            quiet = quiet + 1 if now == last and operator.queue.idle else 0
            last = now

    async def play_controllers(self, ready: int) -> None:
        """What the Deployment controller and the kubelet would report."""
        deployment = await self.client.get(self.ref(DEPLOYMENT))
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        for index in range(ready):
            name = f"chat-{index}"
            if await self.exists(Ref(POD, self.namespace, name)):
                continue
            spec = {"containers": [{"name": "engine", "image": "none:1"}]}
            metadata = {"namespace": self.namespace, "name": name, "labels": labels}
            pod = await self.client.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
            conditions = [{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}]
            pod["status"] = {"phase": "Running", "conditions": conditions}
            self._status(pod)
        deployment["status"] = {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": ready,
            "updatedReplicas": ready,
            "readyReplicas": ready,
            "availableReplicas": ready,
        }
        self._status(deployment)

    def _status(self, manifest: Manifest) -> None:
        metadata = {key: value for key, value in manifest["metadata"].items() if key != "managedFields"}
        body = {**manifest, "metadata": metadata}
        self.server.kubectl("replace", "--subresource=status", "-f", "-", input_text=json.dumps(body))


POD = Kind("", "v1", "Pod", "pods")


@pytest.fixture
async def bench(cluster: Any) -> AsyncIterator[Bench]:
    namespace = f"t-{uuid.uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", namespace)
    # Pods need one; there is no controller here that makes it.
    cluster.kubectl("create", "serviceaccount", "default", "-n", namespace)
    configuration = await load_configuration(cluster.kubeconfig)
    client = HttpKubeClient(configuration, queries_per_second=1000, burst=1000)
    try:
        yield Bench(cluster, client, namespace)
    finally:
        await client.close()


async def _ready(operator: Operator, task: asyncio.Task[None]) -> bool:
    if task.done():
        await task
    return operator.ready() == ""


async def until(check: Callable[[], Awaitable[bool]], seconds: float = 60.0) -> None:
    """Wait until something holds; the test fails when it never does."""
    async with asyncio.timeout(seconds):
        while not await check():  # noqa: ASYNC110 - the API server sets no Event
            await asyncio.sleep(0.1)


def calls(operator: Operator) -> dict[tuple[str, str], int]:
    """Answered requests by verb and kind."""
    found: dict[tuple[str, str], int] = {}
    for metric in operator.metrics.registry.collect():
        for sample in metric.samples:
            if sample.name == "trimtab_api_requests_total":
                key = (sample.labels["verb"], sample.labels["kind"])
                found[key] = found.get(key, 0) + int(sample.value)
    return found


def writes(operator: Operator) -> dict[tuple[str, str], int]:
    """Writes among them."""
    return {key: count for key, count in calls(operator).items() if key[0] in WRITES}


async def test_a_resource_becomes_its_children_each_written_once_and_owned_by_it(bench: Bench) -> None:
    async with bench.operator() as operator:
        created = await bench.create()
        await until(lambda: _has(bench, CHILDREN))
        await until(lambda: _is(bench, "Planned", "True"))
        await bench.settle(operator)
        for kind, child in (await bench.children()).items():
            owners = child["metadata"]["ownerReferences"]
            assert [(owner["uid"], owner["controller"]) for owner in owners] == [(created["metadata"]["uid"], True)]
            assert writes(operator)["apply", kind.name] == 1
        assert writes(operator)["apply_status", "LLMDeployment"] <= 2
    stored = await bench.client.get(bench.ref(LLM_DEPLOYMENT))
    assert "finalizers" not in stored["metadata"]
    assert not stored["metadata"].get("annotations")
    assert {entry["manager"] for entry in stored["metadata"]["managedFields"]} <= {"trimtab"}
    assert stored["spec"]["scaling"] == SPEC["scaling"]
    status = stored["status"]
    assert status["observedGeneration"] == stored["metadata"]["generation"]
    assert status["plan"]["gpu"] == "A100-80GB"
    assert (status["desiredReplicas"], (await bench.condition("Ready"))["status"]) == (2, "False")


async def _has(bench: Bench, kinds: set[Kind]) -> bool:
    return kinds <= set(await bench.children())


async def _is(bench: Bench, kind: str, status: str, reason: str | None = None) -> bool:
    condition = await bench.condition(kind)
    return condition["status"] == status and reason in (None, condition["reason"])


async def test_nothing_is_written_when_idle_nor_by_a_restarted_operator(bench: Bench) -> None:
    async with bench.operator() as operator:
        await bench.create()
        await until(lambda: _has(bench, CHILDREN))
        await bench.play_controllers(2)
        await until(lambda: _is(bench, "Ready", "True", "Serving"))
        await bench.settle(operator)
        before = writes(operator)
        for key in operator.cache.all_keys():
            operator.queue.add(key)
        await bench.settle(operator)
        assert writes(operator) == before
    versions = {kind: child["metadata"]["resourceVersion"] for kind, child in (await bench.children()).items()}
    resource = await bench.client.get(bench.ref(LLM_DEPLOYMENT))
    async with bench.operator() as restarted:
        await bench.settle(restarted)
        await asyncio.sleep(1)
        assert writes(restarted) == {}
    assert versions == {kind: child["metadata"]["resourceVersion"] for kind, child in (await bench.children()).items()}
    assert await bench.client.get(bench.ref(LLM_DEPLOYMENT)) == resource


async def test_children_edited_or_deleted_by_hand_come_back(bench: Bench) -> None:
    async with bench.operator():
        await bench.create()
        await until(lambda: _has(bench, CHILDREN))
        edit = {"spec": {"replicas": 7, "template": {"spec": {"terminationGracePeriodSeconds": 1}}}}
        good = (await bench.children())[DEPLOYMENT]["spec"]
        await bench.client.merge_patch(bench.ref(DEPLOYMENT), edit)

        async def repaired() -> bool:
            return bool((await bench.children())[DEPLOYMENT]["spec"] == good)

        await until(repaired)
        for kind in CHILDREN:
            await bench.client.delete(await _ref(bench, kind))
        await until(lambda: _has(bench, CHILDREN))


async def _ref(bench: Bench, kind: Kind) -> Ref:
    return bench.ref(kind, (await bench.children())[kind]["metadata"]["name"])


async def test_an_edited_spec_is_rolled_out_and_ready_waits_for_it(bench: Bench) -> None:
    async with bench.operator():
        await bench.create()
        await until(lambda: _has(bench, CHILDREN))
        await bench.play_controllers(2)
        await until(lambda: _is(bench, "Ready", "True"))
        await bench.patch_spec({"context": {"maxInputTokens": 1000, "maxTotalTokens": 2000}})
        await until(lambda: _is(bench, "Ready", "False", "RollingOut"))
        assert "2000" in json.dumps((await bench.children())[DEPLOYMENT]["spec"]["template"])
        assert (await bench.condition("Available"))["status"] == "True"
        await bench.play_controllers(2)
        await until(lambda: _is(bench, "Ready", "True"))
        assert (await bench.status())["observedGeneration"] == 2


async def test_a_spec_that_only_the_operator_can_judge_is_reported_and_what_runs_stays(bench: Bench) -> None:
    async with bench.operator():
        await bench.create()
        await until(lambda: _has(bench, CHILDREN))
        before = (await bench.children())[DEPLOYMENT]["spec"]
        await bench.patch_spec({"hardware": {"gpuProducts": ["NoSuchGPU"]}})
        await until(lambda: _is(bench, "Planned", "False", "NoFeasiblePlan"))
        stalled = await bench.condition("Stalled")
        assert "spec.hardware.gpuProducts: is not a GPU of the catalogue, got 'NoSuchGPU'" in stalled["message"]
        assert (await bench.children())[DEPLOYMENT]["spec"] == before
        assert (await bench.status())["plan"]["gpu"] == "A100-80GB"
        await bench.patch_spec({"hardware": None})
        await until(lambda: _is(bench, "Planned", "True"))


async def test_conditions_of_another_writer_survive_ours(bench: Bench) -> None:
    async with bench.operator():
        await bench.create()
        await until(lambda: _is(bench, "Planned", "True"))
        theirs = {
            "type": "Audited",
            "status": "True",
            "reason": "Checked",
            "message": "by somebody else",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        body = {
            "apiVersion": LLM_DEPLOYMENT.api_version,
            "kind": LLM_DEPLOYMENT.name,
            "metadata": {"namespace": bench.namespace, "name": "chat"},
            "status": {"conditions": [theirs]},
        }
        arguments = ("apply", "--server-side", "--field-manager=auditor", "--subresource=status", "-f", "-")
        bench.server.kubectl(*arguments, input_text=json.dumps(body))
        await bench.patch_spec({"scaling": {"minReplicas": 3}})
        await until(lambda: _desires(bench, 3))
        assert await bench.condition("Audited") == theirs


async def _desires(bench: Bench, replicas: int) -> bool:
    return (await bench.status()).get("desiredReplicas") == replicas


async def test_the_scale_subresource_fixes_the_replicas(bench: Bench) -> None:
    async with bench.operator():
        await bench.create()
        await until(lambda: _desires(bench, 2))
        bench.server.kubectl("scale", "llmd/chat", "--replicas=4", "-n", bench.namespace)
        await until(lambda: _desires(bench, 4))

        async def scaled() -> bool:
            return bool((await bench.children())[DEPLOYMENT]["spec"]["replicas"] == 4)

        await until(scaled)


async def test_a_paused_resource_is_left_alone(bench: Bench) -> None:
    async with bench.operator() as operator:
        await bench.create()
        await until(lambda: _has(bench, CHILDREN))
        pause: Manifest = {"metadata": {"annotations": {"trimtab.dev/paused": "true"}}}
        await bench.client.merge_patch(bench.ref(LLM_DEPLOYMENT), pause)
        await until(lambda: _is(bench, "Paused", "True"))
        await bench.client.delete(bench.ref(SERVICE))
        await bench.settle(operator)
        assert SERVICE not in await bench.children()
        resume: Manifest = {"metadata": {"annotations": {"trimtab.dev/paused": None}}}
        await bench.client.merge_patch(bench.ref(LLM_DEPLOYMENT), resume)
        await until(lambda: _has(bench, CHILDREN))


async def test_a_service_of_somebody_else_is_not_taken_over(bench: Bench) -> None:
    theirs = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": bench.namespace, "name": "chat"},
        "spec": {"ports": [{"port": 443}]},
    }
    created = await bench.client.create(theirs)
    async with bench.operator():
        await bench.create()
        await until(lambda: _is(bench, "Stalled", "True", "NameTaken"))
        assert (await bench.client.get(bench.ref(SERVICE)))["spec"] == created["spec"]
        await bench.client.delete(bench.ref(SERVICE))
        await until(lambda: _has(bench, CHILDREN), seconds=120)


async def test_a_restart_continues_from_recorded_decisions(bench: Bench) -> None:
    async with bench.operator() as operator:
        await bench.create()
        await until(lambda: _has(bench, CHILDREN))
        (key,) = operator.cache.all_keys()
        record = operator.book.records[key]
        record.decided = type(record.decided)(4, record.decided.live, record.decided.choice)
        operator.queue.add(key)
        await until(lambda: _desires(bench, 4))
    async with bench.operator() as restarted:
        await bench.settle(restarted)
        assert writes(restarted) == {}
        await bench.client.delete(bench.ref(DEPLOYMENT))
        await until(lambda: _has(bench, CHILDREN))
        assert (await bench.children())[DEPLOYMENT]["spec"]["replicas"] == 4


async def test_live_settings_reach_pods_as_an_annotation_and_a_file(bench: Bench) -> None:
    async with bench.operator() as operator:
        await bench.create()
        await until(lambda: _has(bench, CHILDREN))
        await bench.play_controllers(2)
        await bench.settle(operator)
        template = (await bench.children())[DEPLOYMENT]["spec"]["template"]
        (key,) = operator.cache.all_keys()
        record = operator.book.records[key]
        live = type(record.decided.live)(max_in_flight=7)
        record.decided = type(record.decided)(record.decided.replicas, live, record.decided.choice)
        operator.queue.add(key)

        async def written() -> bool:
            data = (await bench.children())[CONFIG_MAP]["data"]
            return bool(json.loads(data["live.json"])["maxInFlight"] == 7)

        await until(written)
        await bench.settle(operator)
        pods = (await bench.client.list_all(POD, bench.namespace)).items
        assert len({pod["metadata"]["annotations"]["trimtab.dev/live-revision"] for pod in pods}) == 1
        assert (await bench.children())[DEPLOYMENT]["spec"]["template"] == template


async def test_many_resources_in_many_namespaces(bench: Bench) -> None:
    others = [f"{bench.namespace}-{index}" for index in range(3)]
    for other in others:
        bench.server.kubectl("create", "namespace", other)
    async with bench.operator(namespaces=tuple(others), api_queries_per_second=200, api_burst=200) as operator:
        for other in others:
            for index in range(5):
                await bench.create(name=f"chat-{index}", namespace=other)
        await bench.create()

        async def all_there() -> bool:
            found = [await bench.client.list_all(DEPLOYMENT, other) for other in others]
            return all(len(listing.items) == 5 for listing in found)

        await until(all_there)
        await bench.settle(operator)
        assert writes(operator)["apply", "Deployment"] == 15
        assert await bench.children() == {}


async def test_events_are_in_the_events_api(bench: Bench) -> None:
    async with bench.operator() as operator:
        await bench.create()
        await until(lambda: _is(bench, "Planned", "True"))
        await bench.settle(operator)
    listing = await bench.client.list_all(EVENT, bench.namespace)
    told = {item["reason"]: item for item in listing.items}
    assert told["Planned"]["regarding"]["name"] == "chat"
    assert told["Planned"]["reportingController"] == "trimtab.dev/operator"


async def test_failures_of_the_real_server_are_typed(bench: Bench) -> None:
    created = await bench.create()
    await bench.patch_spec({"replicas": 3})
    with pytest.raises(NotFound):
        await bench.client.get(bench.ref(LLM_DEPLOYMENT, "other"))
    with pytest.raises(AlreadyExists):
        await bench.create()
    # The version of before the edit: status must not be judged on what is no longer true.
    with pytest.raises(Conflict):
        await bench.client.apply_status(status_manifest(created, {"replicas": 1}))
    with pytest.raises(Conflict):
        await bench.client.delete(bench.ref(LLM_DEPLOYMENT), uid=str(uuid.uuid4()))
    with pytest.raises(Refused):
        await bench.create({"model": {}}, name="wrong")


async def test_two_operators_with_a_lease_take_turns_at_once(bench: Bench) -> None:
    election = {"leader_election": True, "leader_namespace": bench.namespace}
    async with AsyncExitStack() as standing_by:
        async with bench.operator(pod_name="first", **election) as leader:
            standby = await standing_by.enter_async_context(bench.operator(pod_name="second", **election))
            await bench.create()
            await until(lambda: _has(bench, CHILDREN))
            await until(lambda: _is(bench, "Planned", "True"))
            assert writes(leader)["apply", "Deployment"] == 1
            assert writes(standby) == {}
        await bench.client.delete(bench.ref(SERVICE))
        await until(lambda: _has(bench, CHILDREN), seconds=20)
        assert writes(standby)["apply", "Service"] == 1
