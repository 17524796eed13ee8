"""Pure: what is wrong with the pods, and what to do about it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.controller.objects import Manifest
from trimtab.controller.reasons import Reason
from trimtab.engines.base import FailurePattern

_IMAGE_REASONS = {"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
_CONFIG_REASONS = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
_MAX_TEXT = 300


@dataclass(frozen=True, slots=True)
class PodProblem:
    """Why a pod does not serve."""

    pod: str
    reason: Reason
    message: str
    crashed: bool = False
    """The pod ran and ended, rather than never having started."""


@dataclass(frozen=True, slots=True)
class PodsView:
    """The pods of one LLMDeployment at one moment, without those that are ending."""

    total: int
    ready: int
    problems: tuple[PodProblem, ...]
    """Worst first."""


def view_pods(pods: Sequence[Manifest], failures: Sequence[FailurePattern] = ()) -> PodsView:
    """Judge the pods. `failures` are the engine's known ends, searched for in a container's termination message."""
    alive = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    running = [pod for pod in alive if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")]
    found = [problem for pod in alive for problem in _problems(pod, failures)]
    order = list(_SEVERITY)
    found.sort(key=lambda problem: (order.index(problem.reason), problem.pod))
    return PodsView(
        total=len(running),
        ready=sum(is_ready(pod) for pod in running),
        problems=tuple(found),
    )


_SEVERITY = (
    Reason.OUT_OF_MEMORY,
    Reason.ENGINE_FAILED,
    Reason.CRASH_LOOP,
    Reason.CONTAINER_CONFIG,
    Reason.IMAGE_PULL,
    Reason.UNSCHEDULABLE,
    Reason.EVICTED,
)


def is_ready(pod: Manifest) -> bool:
    """The pod's own Ready condition, for a pod that is not ending."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return "deletionTimestamp" not in pod["metadata"] and any(
        condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions
    )


def _problems(pod: Manifest, failures: Sequence[FailurePattern]) -> Iterator[PodProblem]:
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    if status.get("phase") == "Failed":
        why = status.get("message") or status.get("reason") or "it failed"
        yield PodProblem(name, Reason.EVICTED, f"pod {name} was ended by its node: {_short(why)}")
        return
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
            yield PodProblem(name, Reason.UNSCHEDULABLE, _unschedulable(name, str(condition.get("message") or "")))
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        problem = _container_problem(name, container, failures)
        if problem is not None:
            yield problem


def _unschedulable(pod: str, message: str) -> str:
    advice = "add nodes, or allow other GPUs in spec.hardware"
    if "Insufficient nvidia.com/gpu" in message or "Insufficient amd.com/gpu" in message:
        advice = "add GPU nodes, lower spec.scaling.maxReplicas, or set spec.rollout.surge to false if the pod is new"
    elif "taint" in message:
        advice = "add the taint to spec.hardware.tolerations"
    elif "affinity" in message or "selector" in message:
        advice = "no node has the labels asked for: check spec.hardware.nodeSelector and podTemplate.affinity"
    elif "volume" in message or "claim" in message:
        advice = "the claim cannot be mounted there: check spec.model.cache"
    return f"pod {pod} fits on no node ({_short(message)}): {advice}"


def _container_problem(pod: str, container: Mapping[str, Any], failures: Sequence[FailurePattern]) -> PodProblem | None:
    name = container["name"]
    waiting = (container.get("state") or {}).get("waiting") or {}
    reason, message = str(waiting.get("reason") or ""), str(waiting.get("message") or "")
    if reason in _IMAGE_REASONS:
        text = (
            f"the image of container {name} in pod {pod} cannot be pulled ({_short(message) or reason}): check its name"
        )
        return PodProblem(pod, Reason.IMAGE_PULL, f"{text} and spec.podTemplate.imagePullSecrets")
    if reason in _CONFIG_REASONS:
        text = f"container {name} in pod {pod} cannot be created ({_short(message) or reason})"
        return PodProblem(pod, Reason.CONTAINER_CONFIG, f"{text}: check the Secrets, ConfigMaps and volumes it names")
    ended = (container.get("state") or {}).get("terminated") or (container.get("lastState") or {}).get("terminated")
    # A container that runs and is ready again has recovered; its past stays in the pod's own status.
    if ended is None or container.get("ready") or (ended.get("exitCode") == 0 and reason != "CrashLoopBackOff"):
        return None
    return _crash(pod, container, ended, failures)


def _crash(
    pod: str, container: Mapping[str, Any], ended: Mapping[str, Any], failures: Sequence[FailurePattern]
) -> PodProblem:
    name, code, log = container["name"], ended.get("exitCode"), str(ended.get("message") or "")
    what = f"container {name} in pod {pod} ended with exit code {code} ({container.get('restartCount', 0)} restarts)"
    known = next((failure for failure in failures if re.search(failure.pattern, log)), None)
    if known is not None:
        return PodProblem(pod, Reason.ENGINE_FAILED, f"{what}, {known.reason}: {known.advice}", crashed=True)
    if ended.get("reason") == "OOMKilled":
        advice = "raise spec.podTemplate.limits.memory, which counts /dev/shm too"
        return PodProblem(
            pod, Reason.OUT_OF_MEMORY, f"{what}, killed for using too much memory: {advice}", crashed=True
        )
    text = f": {_short(log)}" if log else f": see `kubectl logs {pod} -c {name} --previous`"
    return PodProblem(pod, Reason.CRASH_LOOP, what + text, crashed=True)


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _MAX_TEXT else f"…{flat[-_MAX_TEXT + 1 :]}"
