"""`python -m demo run|clean`: see the package's docstring. Settings: DEMO_WARMUP_SECONDS, DEMO_SECONDS, DEMO_RATE."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from demo.report import Objective, compare, decisions, meets, render
from demo.shell import ROOT, Cluster, DemoError, devcluster, environment_number, run, say

NAMESPACE = "demo"
SYSTEM = "trimtab-system"
TRACE = "azure-2023-conv"
OBJECTIVE = Objective(ttft_ms=2000, tpot_ms=150)
PROMETHEUS = "http://prometheus.monitoring.svc:9090"
REPORTS = ROOT / "build" / "demo"


def main() -> int:
    """Exit code 0: the tuned run met the objective that the baseline missed; 1: it did not, or a step failed."""
    parser = argparse.ArgumentParser(prog="python -m demo")
    parser.add_argument("command", choices=["run", "clean"])
    try:
        match parser.parse_args().command:
            case "clean":
                devcluster("down")
                return 0
            case _:
                return _run()
    except DemoError as failed:
        print(f"demo: {failed}", file=sys.stderr)
        return 1


def _run() -> int:
    started = time.monotonic()
    cluster = _prepare()
    baseline = _measure(cluster, "baseline")
    cluster.kubectl("scale", "deployment", "baseline", "-n", NAMESPACE, "--replicas=0")
    say("the same traffic against an LLMDeployment that states the model, the objective and the bounds")
    cluster.kubectl("apply", "-f", str(ROOT / "examples" / "demo" / "tuned.yaml"))
    _wait_ready(cluster)
    tuned = _measure(cluster, "tuned")
    status = (cluster.get("llmdeployment", "tuned", NAMESPACE) or {}).get("status", {})
    held = _tell(baseline, tuned, status)
    print(f"\n{time.monotonic() - started:.0f} s in all. The cluster is still up; look around with:")
    kubectl = f"{cluster.kubectl_path} --kubeconfig={cluster.kubeconfig}"
    print(f"  {kubectl} get llmd -n {NAMESPACE} -o wide")
    print(f"  {kubectl} describe llmd tuned -n {NAMESPACE}")
    print(f"  {kubectl} get events -n {NAMESPACE} --sort-by=.metadata.creationTimestamp")
    print("and remove every trace with: make demo-clean")
    return 0 if held else 1


def _prepare() -> Cluster:
    say("a Kubernetes cluster with eight simulated L4 GPUs, Prometheus and Redis")
    for command in ("up", "images", "addons"):
        devcluster(command)
    kubeconfig, kubectl, helm = devcluster("kubeconfig"), devcluster("tool", "kubectl"), devcluster("tool", "helm")
    cluster = Cluster(kubeconfig.strip(), kubectl.strip(), helm.strip())
    say("the operator, installed with its Helm chart")
    cluster.kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))
    cluster.helm(
        "upgrade", "--install", "trimtab", str(ROOT / "charts" / "trimtab"), "-n", SYSTEM, "--create-namespace",
        "-f", str(ROOT / "examples" / "demo" / "values.yaml"), "--set", f"prometheus.url={PROMETHEUS}",
        "--wait", "--timeout", "120s",
    )  # fmt: skip
    cluster.kubectl("create", "namespace", NAMESPACE, check=False)
    say("what a user would run by hand: one replica of TGI with its defaults")
    cluster.kubectl("delete", "llmd", "tuned", "-n", NAMESPACE, "--ignore-not-found", "--wait=true")
    cluster.kubectl("apply", "-f", str(ROOT / "examples" / "demo" / "baseline.yaml"))
    cluster.kubectl("rollout", "status", "deployment/baseline", "-n", NAMESPACE, "--timeout=120s")
    return cluster


def _wait_ready(cluster: Cluster) -> None:
    def ready() -> bool:
        resource = cluster.get("llmdeployment", "tuned", NAMESPACE) or {}
        conditions = resource.get("status", {}).get("conditions", [])
        return any(entry["type"] == "Ready" and entry["status"] == "True" for entry in conditions)

    cluster.wait("the LLMDeployment got Ready", ready, 180)


def _measure(cluster: Cluster, name: str) -> list[dict[str, Any]]:
    """Reports of the warm-up and of the measured stretch of the trace; both runs get the very same requests."""
    warmup = environment_number("DEMO_WARMUP_SECONDS", 60)
    measured = environment_number("DEMO_SECONDS", 75)
    service = cluster.get("service", name, NAMESPACE) or {}
    url = f"http://{service['spec']['clusterIP']}:80"
    reports = []
    for part, (start, duration) in {"warmup": (0.0, warmup), "measured": (warmup, measured)}.items():
        say(f"{name}: replaying {TRACE}, {part}, {duration:.0f} s")
        report = REPORTS / f"{name}-{part}.json"
        report.parent.mkdir(parents=True, exist_ok=True)
        rate = environment_number("DEMO_RATE", 4.0)
        run(
            str(Path(sys.executable).with_name("trimtab")), "replay", "--trace", TRACE, "--url", url,
            "--start", f"{start:g}s", "--duration", f"{duration:g}s", "--rate", f"{rate:g}",
            "--repeat-ratio", "0.1", "--max-input-tokens", "6000", "--max-output-tokens", "1000",
            "--slo-ttft", f"{OBJECTIVE.ttft_ms:g}ms", "--slo-tpot", f"{OBJECTIVE.tpot_ms:g}ms",
            "--seed", "1", "--json", str(report),
        )  # fmt: skip
        reports.append(json.loads(report.read_text()))
    return reports


def _tell(baseline: list[dict[str, Any]], tuned: list[dict[str, Any]], status: dict[str, Any]) -> bool:
    plan = status.get("plan", {})
    print("\nWhat Trimtab chose:")
    for reason in plan.get("reasons", []):
        print(f"  - {reason}")
    print("What it decided while the traffic ran:")
    for line in decisions(status) or ["nothing"]:
        print(f"  {line}")
    titles = ("while it finds its setting", "baseline", "trimtab")
    print("\n" + render(compare(baseline[0], tuned[0], OBJECTIVE), titles))
    print("\n" + render(compare(baseline[1], tuned[1], OBJECTIVE), ("after that", "baseline", "trimtab")))
    trace = tuned[1]["trace"]
    print(f"\ntrace: {trace['name']}, {trace['origin']} ({trace['detail']}); reports in {REPORTS.relative_to(ROOT)}/")
    return meets(tuned[1], OBJECTIVE) and not meets(baseline[1], OBJECTIVE)


if __name__ == "__main__":
    sys.exit(main())
