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
    warmup, measured = environment_number("DEMO_WARMUP_SECONDS", 60), environment_number("DEMO_SECONDS", 60)
    cluster = _prepare()
    # A fixed setting has nothing to find: it gets the measured stretch only, and so begins with an empty queue.
    baseline = _replay(cluster, "baseline", "measured", start=warmup, duration=measured)
    cluster.kubectl("scale", "deployment", "baseline", "-n", NAMESPACE, "--replicas=0")
    say("the same traffic against an LLMDeployment that states the model, the objective and the bounds")
    cluster.kubectl("apply", "-f", str(ROOT / "examples" / "demo" / "tuned.yaml"))
    _wait_ready(cluster)
    finding = _replay(cluster, "tuned", "warmup", start=0.0, duration=warmup)
    tuned = _replay(cluster, "tuned", "measured", start=warmup, duration=measured)
    status = (cluster.get("llmdeployment", "tuned", NAMESPACE) or {}).get("status", {})
    held = _tell(baseline, finding, tuned, status)
    print(f"\n{time.monotonic() - started:.0f} s in all. The cluster is still up; look around with:")
    kubectl = f"{cluster.kubectl_path} --kubeconfig={cluster.kubeconfig}"
    print(f"  {kubectl} get llmd -n {NAMESPACE} -o wide")
    print(f"  {kubectl} describe llmd tuned -n {NAMESPACE}")
    print(f"  {kubectl} get events -n {NAMESPACE} --sort-by=.metadata.creationTimestamp")
    print("and remove every trace with: make demo-clean")
    return 0 if held else 1


def _prepare() -> Cluster:
    say("a Kubernetes cluster with eight simulated L4 GPUs, Prometheus and Redis")
    devcluster("up", "--gpu-product", "NVIDIA-L4", "--gpus", "8")
    for command in ("images", "addons"):
        devcluster(command)
    kubeconfig, kubectl, helm = devcluster("kubeconfig"), devcluster("tool", "kubectl"), devcluster("tool", "helm")
    cluster = Cluster(kubeconfig.strip(), kubectl.strip(), helm.strip())
    say("the operator, installed with its Helm chart")
    cluster.kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))
    cluster.helm(
        "upgrade", "--install", "trimtab", str(ROOT / "charts" / "trimtab"), "-n", SYSTEM, "--create-namespace",
        "-f", str(ROOT / "examples" / "demo" / "values.yaml"), "--wait", "--timeout", "120s",
    )  # fmt: skip
    # The images' tag stays the same: an operator of an earlier run would go on with its older code.
    cluster.kubectl("rollout", "restart", "deployment/trimtab-operator", "-n", SYSTEM)
    cluster.kubectl("rollout", "status", "deployment/trimtab-operator", "-n", SYSTEM, "--timeout=120s")
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


def _replay(cluster: Cluster, name: str, part: str, *, start: float, duration: float) -> dict[str, Any]:
    """The report of one stretch of the trace; both deployments get the very same requests."""
    service = cluster.get("service", name, NAMESPACE) or {}
    url = f"http://{service['spec']['clusterIP']}:80"
    say(f"{name}: replaying {TRACE}, {part}, {duration:.0f} s")
    report = REPORTS / f"{name}-{part}.json"
    report.parent.mkdir(parents=True, exist_ok=True)
    run(
        str(Path(sys.executable).with_name("trimtab")), "replay", "--trace", TRACE, "--url", url,
        *(("--start", f"{start:g}s") if start else ()), "--duration", f"{duration:g}s",
        "--rate", f"{environment_number('DEMO_RATE', 3.0):g}", "--timeout", "45s", "--repeat-ratio", "0.1",
        "--max-input-tokens", "6000", "--max-output-tokens", "250", "--seed", "1",
        "--slo-ttft", f"{OBJECTIVE.ttft_ms:g}ms", "--slo-tpot", f"{OBJECTIVE.tpot_ms:g}ms", "--json", str(report),
    )  # fmt: skip
    result: dict[str, Any] = json.loads(report.read_text())
    return result


def _tell(baseline: dict[str, Any], finding: dict[str, Any], tuned: dict[str, Any], status: dict[str, Any]) -> bool:
    print("\nWhat Trimtab chose:")
    for reason in status.get("plan", {}).get("reasons", []):
        print(f"  - {reason}")
    print("What it decided while the traffic ran:")
    for line in decisions(status) or ["nothing"]:
        print(f"  {line}")
    shares = f"{finding['slo']['attainment']:.0%} then {tuned['slo']['attainment']:.0%}"
    print(f"Requests within the objective: baseline {baseline['slo']['attainment']:.0%}, Trimtab {shares}")
    print("\n" + render(compare(baseline, tuned, OBJECTIVE), ("the same requests", "baseline", "trimtab")))
    trace = tuned["trace"]
    print(f"\ntrace: {trace['name']}, {trace['origin']} ({trace['detail']}); reports in {REPORTS.relative_to(ROOT)}/")
    return meets(tuned, OBJECTIVE) and not meets(baseline, OBJECTIVE)


if __name__ == "__main__":
    sys.exit(main())
