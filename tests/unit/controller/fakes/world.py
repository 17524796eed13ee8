"""A whole operator around the fake API server, driven step by step."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.unit.controller.fakes.kube import FakeKube, WatchEvent, make_resource

from trimtab.api.spec import LLMDeploymentSpec
from trimtab.controller.book import Book
from trimtab.controller.cache import ObjectCache
from trimtab.controller.decided import Choice, asked_of
from trimtab.controller.events import Events
from trimtab.controller.kube import Listing
from trimtab.controller.objects import (
    CONFIG_MAP,
    DEPLOYMENT,
    LLM_DEPLOYMENT,
    POD,
    SERVICE,
    WATCHED_KINDS,
    Key,
    Kind,
    Manifest,
    Ref,
    parent_of,
)
from trimtab.controller.reconcile import Reconciler
from trimtab.controller.seams import Planned
from trimtab.plan.types import Calibration
from trimtab.resources.identity import Owner
from trimtab.resources.identity import metadata as child_metadata
from trimtab.resources.sidecar_config import LiveSettings

KEY = Key("team", "chat")
SPEC: dict[str, Any] = {
    "model": {"id": "org/model"},
    "scaling": {"minReplicas": 2, "maxReplicas": 5},
}


@dataclass
class FakeClock:
    """Moves when told."""

    seconds: float = 0.0

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds


@dataclass
class FakePlanner:
    """One plan for every spec, or none."""

    problem: str = ""
    asked: list[Choice | None] = field(default_factory=list)

    def plan(
        self,
        spec: LLMDeploymentSpec,
        nodes: Sequence[Manifest],
        choice: Choice | None,
        *,
        serving: bool,
        calibrations: tuple[Calibration, ...] = (),
    ) -> Planned:
        self.asked.append(choice)
        if self.problem:
            return Planned(None, problem=self.problem)
        chosen = Choice(asked_of(spec), spec.model.id or "", "A100-80GB", 1, "fp8", "model")
        report = {
            "model": chosen.model,
            "engine": "tgi-3.3.7",
            "quantization": "fp8",
            "kvCacheDtype": "model",
            "gpu": chosen.gpu,
            "gpusPerReplica": 1,
            "kvTokens": 1000,
            "maxBatchWithinSlo": 32,
            "requestsPerSecond": 4.5,
            "estimate": True,
        }
        return Planned(None, choice=chosen, summary="fp8 on one A100", report=report, first_limit=32)


def render(
    resource: Manifest,
    spec: LLMDeploymentSpec,
    planned: Planned,
    replicas: int | None,
    live: LiveSettings,
    running: Manifest | None,
) -> list[Manifest]:
    """Three children, enough to see order, drift and records."""
    metadata = resource["metadata"]
    owner = Owner(metadata["name"], metadata["namespace"], metadata["uid"])
    labels = child_metadata(owner)["labels"]

    def child(kind: Kind, suffix: str, body: Mapping[str, Any]) -> Manifest:
        return {
            "apiVersion": kind.api_version,
            "kind": kind.name,
            "metadata": child_metadata(owner, suffix),
            **body,
        }

    pod = {
        "metadata": {"labels": labels},
        "spec": {"containers": [{"name": "engine", "image": "tgi:3.3.7", "args": ["--model-id", spec.model.id]}]},
    }
    workload: dict[str, Any] = {"selector": {"matchLabels": labels}, "template": pod}
    if replicas is not None:
        workload["replicas"] = replicas
    children = [
        child(CONFIG_MAP, "sidecar", {"data": {"live.json": json.dumps({"maxInFlight": live.max_in_flight})}}),
        child(DEPLOYMENT, "", {"spec": workload}),
    ]
    if spec.cache.exact.enabled:
        children.append(child(SERVICE, "", {"spec": {"ports": [{"port": 80}], "selector": labels}}))
    return children


@dataclass
class World:
    """The cluster, and an operator that can be restarted at any time."""

    kube: FakeKube = field(default_factory=FakeKube)
    clock: FakeClock = field(default_factory=FakeClock)
    planner: FakePlanner = field(default_factory=FakePlanner)
    cache: ObjectCache = field(init=False)
    book: Book = field(init=False)
    reconciler: Reconciler = field(init=False)
    woken: list[Key | None] = field(default_factory=list)
    deaf: bool = False
    """The watches deliver nothing."""
    missed: list[WatchEvent] = field(default_factory=list)
    """What they would have delivered."""

    def __post_init__(self) -> None:
        self.kube.listeners.append(self._deliver)
        self.start()

    def start(self) -> None:
        """A new process: nothing in memory but what a listing shows."""
        self.cache = ObjectCache(self.woken.append)
        for ref, item in self.kube.objects.items():
            if ref.kind in WATCHED_KINDS:
                self.cache.record(ref.kind, item)
        self.book = Book()
        self.reconciler = Reconciler(
            kube=self.kube,
            cache=self.cache,
            book=self.book,
            planner=self.planner,
            render=render,
            events=Events(self.kube, self.clock, "operator-0"),
            clock=self.clock,
        )

    def _deliver(self, event: WatchEvent) -> None:
        if event.kind not in WATCHED_KINDS:
            return
        if parent_of(event.kind, event.object) is None and event.kind.namespaced:
            return
        if self.deaf:
            self.missed.append(event)
            return
        self.hear(event)

    def hear(self, event: WatchEvent) -> None:
        """A watch delivers an event, perhaps late."""
        record = self.cache.remove if event.type == "DELETED" else self.cache.record
        record(event.kind, event.object)

    def relist(self) -> None:
        """The periodic listing of everything."""
        for kind in WATCHED_KINDS:
            found = [copy.deepcopy(item) for ref, item in self.kube.objects.items() if ref.kind == kind]
            self.cache.replace_all(kind, Listing(tuple(found), self.kube.version))

    def create(self, spec: Mapping[str, Any] = SPEC, name: str = KEY.name) -> Manifest:
        """A user applies an LLMDeployment."""
        return self.kube.seed(make_resource(name, KEY.namespace, spec))

    async def visit(self, key: Key = KEY) -> None:
        """One visit."""
        await self.reconciler.visit(key)

    def status(self) -> Manifest:
        """Status as stored."""
        stored: Manifest = self.kube.stored(LLM_DEPLOYMENT, KEY.namespace, KEY.name)["status"]
        return stored

    def condition(self, kind: str) -> Manifest:
        """One condition as stored."""
        found: Manifest = next(item for item in self.status()["conditions"] if item["type"] == kind)
        return found

    def deployment(self) -> Manifest:
        """The child Deployment as stored."""
        return self.kube.stored(DEPLOYMENT, KEY.namespace, KEY.name)

    def edit_spec(self, **changes: Any) -> None:
        """A user edits the spec."""
        self.kube.edit(Ref(LLM_DEPLOYMENT, KEY.namespace, KEY.name), lambda item: item["spec"].update(changes))

    def run_pods(self, count: int, *, ready: bool = True) -> None:
        """The other controllers and the kubelet do their work."""
        for index in range(count):
            self.add_pod(f"chat-{index}", ready=ready)

        def settle(item: Manifest) -> None:
            item["status"] = {
                "observedGeneration": item["metadata"]["generation"],
                "replicas": count,
                "updatedReplicas": count,
                "readyReplicas": count if ready else 0,
            }

        self.kube.edit(Ref(DEPLOYMENT, KEY.namespace, KEY.name), settle)

    def add_pod(self, name: str, *, ready: bool = True, **status: Any) -> None:
        """A pod exists (or changes)."""
        ref = Ref(POD, KEY.namespace, name)
        conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
        state = {"phase": "Running", "conditions": conditions, **status}
        if ref in self.kube.objects:
            self.kube.edit(ref, lambda item: item.update(status=state))
            return
        labels = {"app.kubernetes.io/managed-by": "trimtab", "trimtab.dev/deployment": KEY.name}
        self.kube.seed(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"namespace": KEY.namespace, "name": name, "labels": labels},
                "status": state,
            }
        )

    def final_state(self) -> dict[str, Any]:
        """All objects without what differs between two runs that end alike: versions, UIDs, event counts."""
        state = {}
        for ref, item in self.kube.objects.items():
            if ref.kind.name == "Event":
                continue
            metadata = {
                key: value
                for key, value in item["metadata"].items()
                if key not in ("resourceVersion", "uid", "generation", "ownerReferences", "annotations")
            }
            state[str(ref)] = {**item, "metadata": metadata}
        return state
