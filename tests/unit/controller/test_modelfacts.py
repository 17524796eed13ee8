"""Models beyond the catalogue are looked up in the background, once, and never hold up a visit."""

import asyncio

from tests.unit.controller.fakes.world import FakeClock

from trimtab.api.resource import parse_spec
from trimtab.catalog.catalogue import load_catalogue
from trimtab.catalog.models import ModelFacts
from trimtab.controller.modelfacts import ModelFinder
from trimtab.controller.planning import CachedPlanner
from trimtab.hub.remote import HubError

NODE = {
    "metadata": {"name": "n", "labels": {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}},
    "status": {"allocatable": {"nvidia.com/gpu": "8"}},
}
SPEC = parse_spec({"model": {"id": "somebody/else-entirely", "revision": "abc"}})


class Hub:
    """Fails until it does not."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.asked: list[tuple[str, str | None]] = []

    def fetch(self, model_id: str, revision: str | None) -> ModelFacts:
        self.asked.append((model_id, revision))
        if len(self.asked) <= self.failures:
            raise HubError(f"{model_id}: the Hub did not answer")
        listed = load_catalogue().model("meta-llama/Llama-3.1-8B-Instruct")
        assert listed is not None
        return listed.model_copy(update={"id": model_id})


async def _answered(finder: ModelFinder) -> None:
    await asyncio.gather(*finder._tasks)


async def test_an_unknown_model_is_asked_for_once_and_then_planned() -> None:
    hub, clock, woken = Hub(), FakeClock(), []
    finder = ModelFinder(hub.fetch, clock, lambda: woken.append(True))
    planner = CachedPlanner(load_catalogue(), finder=finder)
    for _ in range(3):
        assert "the Hub is being asked" in planner.plan(SPEC, [NODE], None, serving=False).problem
    await _answered(finder)
    assert woken == [True]
    planned = planner.plan(SPEC, [NODE], None, serving=False)
    assert planned.problem == ""
    assert planned.report["model"] == "somebody/else-entirely"
    assert planner.plan(SPEC, [NODE], planned.choice, serving=True) == planned
    assert hub.asked == [("somebody/else-entirely", "abc")]


async def test_what_the_hub_did_not_answer_is_asked_again_later() -> None:
    hub, clock = Hub(failures=1), FakeClock()
    finder = ModelFinder(hub.fetch, clock, lambda: None, retry_seconds=600)
    planner = CachedPlanner(load_catalogue(), finder=finder)
    planner.plan(SPEC, [NODE], None, serving=False)
    await _answered(finder)
    for _ in range(3):
        assert "the Hub did not answer" in planner.plan(SPEC, [NODE], None, serving=False).problem
    assert len(hub.asked) == 1
    clock.seconds += 601
    planner.plan(SPEC, [NODE], None, serving=False)
    await _answered(finder)
    assert planner.plan(SPEC, [NODE], None, serving=False).problem == ""


async def test_models_of_the_catalogue_and_folders_never_reach_the_hub() -> None:
    hub = Hub()
    planner = CachedPlanner(load_catalogue(), finder=ModelFinder(hub.fetch, FakeClock(), lambda: None))
    known = {"model": {"id": "meta-llama/Llama-3.1-8B-Instruct"}}
    for spec in (known, {"model": {"size": "small"}}, {"model": {"id": "pvc://claim/folder"}}):
        planner.plan(parse_spec(spec), [NODE], None, serving=False)
    assert hub.asked == []


async def test_closing_ends_what_is_being_asked() -> None:
    finder = ModelFinder(Hub().fetch, FakeClock(), lambda: None)
    finder.find("a/b", None)
    await finder.close()
    assert not [task for task in asyncio.all_tasks() if "_answer" in repr(task)]
