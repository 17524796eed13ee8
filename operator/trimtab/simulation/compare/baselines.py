"""What users would otherwise run: reactive autoscalers, written after their sources, with their documented defaults.

Each class names its source. `target` is a share of a replica's limit of requests in flight, so that one number means
the same everywhere; a `floor` is a fixed minReplicas.
"""

import math
from collections import deque

from trimtab.simulation.compare.fluid import TICK_S, View


class Static:
    """A fixed fleet."""

    def __init__(self, count: int) -> None:
        self.name = f"static-{count}"
        self.count = count

    def replicas(self, view: View) -> int:
        """Always the same."""
        return self.count


class Hpa:
    """Kubernetes HPA v2 with an External metric and AverageValue (kubernetes pkg/controller/podautoscaler).

    Tolerance 0.1; up at once but at most +100 % or +4 pods in 15 s; down by the highest recommendation of 300 s.
    `on` is "held" (requests running and waiting) or "queue" (waiting only, the target then counts requests).
    KEDA's Prometheus scaler hands 1..N to this very HPA, so it is the same rule.
    """

    tolerance = 0.1
    down_window = 300 // TICK_S

    def __init__(self, target: float = 0.8, floor: int = 1, on: str = "held", name: str = "hpa") -> None:
        self.name, self.target, self.floor, self.on = name, target, floor, on
        self.wishes: deque[int] = deque(maxlen=self.down_window)

    def replicas(self, view: View) -> int:
        """One sync of the controller."""
        current = max(view.wanted, 1)
        value = view.held / (self.target * view.limit) if self.on == "held" else view.waiting / (self.target * 10)
        wish = current if abs(value / current - 1) <= self.tolerance else math.ceil(value)
        self.wishes.append(wish)
        if wish < current:
            wish = min(max(self.wishes), current)
        return max(min(wish, max(2 * current, current + 4)), self.floor)


class Kpa:
    """Knative's pod autoscaler (knative/serving pkg/autoscaler/scaling): 60 s stable, 6 s panic window, 200 %.

    Ticks here are 15 s apart instead of 2 s; the panic window is one tick.
    """

    def __init__(self, target: float = 0.7) -> None:
        self.name, self.target = "knative-kpa", target
        self.stable: deque[float] = deque(maxlen=60 // TICK_S)
        self.panic_until = -1.0
        self.highest = 0

    def replicas(self, view: View) -> int:
        """One tick of the decider."""
        self.stable.append(view.held)
        goal = self.target * view.limit
        ready = max(view.ready, 1)
        low = ready // 2
        calm = max(math.ceil(sum(self.stable) / len(self.stable) / goal), low)
        panic = max(math.ceil(view.held / goal), low)
        if panic / ready >= 2.0:
            self.panic_until = view.time + 60.0
        elif view.time > self.panic_until:
            self.highest = 0
            return max(calm, 1)
        self.highest = max(self.highest, calm, panic)
        return max(self.highest, 1)


class KubeAi:
    """KubeAI (substratusai/kubeai internal/modelautoscaler): mean of ten minutes, 30 s before the first step down."""

    def __init__(self, target: float = 0.8) -> None:
        self.name, self.target = "kubeai", target
        self.samples: deque[float] = deque(maxlen=600 // TICK_S)
        self.below = 0

    def replicas(self, view: View) -> int:
        """One interval."""
        self.samples.append(view.held)
        wish = max(math.ceil(sum(self.samples) / len(self.samples) / (self.target * view.limit)), 1)
        if wish >= view.wanted:
            self.below = 0
            return wish
        self.below += 1
        return wish if self.below >= math.ceil(30 / TICK_S) else view.wanted


class Apa:
    """AIBrix APA (vllm-project/aibrix pkg/controller/podautoscaler): 180 s window, 10 % tolerances, doubling at most.

    The down "cooldown" takes the minimum of the recommendations of 300 s, as the code read does.
    """

    def __init__(self, target: float = 0.8) -> None:
        self.name, self.target = "aibrix-apa", target
        self.samples: deque[float] = deque(maxlen=180 // TICK_S)
        self.wishes: deque[int] = deque(maxlen=300 // TICK_S)

    def replicas(self, view: View) -> int:
        """One reconcile."""
        current = max(view.wanted, 1)
        self.samples.append(view.held / current / (self.target * view.limit))
        ratio = sum(self.samples) / len(self.samples)
        wish = current
        if ratio > 1.1:
            wish = min(math.ceil(current * ratio), 2 * current)
        elif ratio < 0.9:
            wish = max(math.ceil(current * ratio), current // 2)
        self.wishes.append(wish)
        return max(min(self.wishes) if wish < current else wish, 1)


class WvaSaturation:
    """llm-d WVA saturation v1: every 60 s one up or one down; KV share 0.80, queue 5, spare triggers 0.10 and 3."""

    def __init__(self, saturation: float = 0.8) -> None:
        self.name, self.saturation = "wva-saturation-v1", saturation

    def replicas(self, view: View) -> int:
        """One loop; nothing is done while the last order is under way."""
        if view.time % 60 or view.pending:
            return view.wanted
        ready = max(view.ready, 1)
        used = min(view.running / ready / view.limit, 1.0)
        queue = view.waiting / ready
        if used >= self.saturation or queue >= 5 or self.saturation - used < 0.10 or 5 - queue < 3:
            return ready + 1
        if ready >= 2:
            moved, queued = used * ready / (ready - 1), queue * ready / (ready - 1)
            if self.saturation - moved >= 0.10 and 5 - queued >= 3:
                return ready - 1
        return view.wanted


class WvaToken:
    """llm-d WVA token based v2: every 60 s demand over 0.85 of the capacity orders, under 0.70 releases."""

    def __init__(self, up: float = 0.85, down: float = 0.70) -> None:
        self.name, self.up, self.down = "wva-token-v2", up, down

    def replicas(self, view: View) -> int:
        """One loop."""
        if view.time % 60:
            return view.wanted
        demand = view.held / view.limit
        need = demand / self.up - view.wanted
        if need > 0:
            return view.wanted + math.ceil(need)
        spare = view.ready - demand / self.down
        return max(view.wanted - math.floor(spare), 1) if spare >= 1 else view.wanted


class LlmdSlo:
    """llm-d's SLO formula: replicas = arrivals over the rate at which one replica keeps TTFT and TPOT, each 60 s."""

    def __init__(self, headroom: float = 1.0) -> None:
        self.name, self.headroom = "llm-d-slo", headroom

    def replicas(self, view: View) -> int:
        """One loop."""
        if view.time % 60:
            return view.wanted
        return max(math.ceil(self.headroom * view.arrivals_per_s / view.capacity), 1)
