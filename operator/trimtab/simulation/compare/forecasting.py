"""Baselines that look ahead: NVIDIA Dynamo's throughput planner and SageServe's LT-UA."""

import math
from collections import deque
from typing import Literal

import numpy as np

from trimtab.simulation.compare.fluid import TICK_S, View


class Dynamo:
    """Dynamo's throughput mode (ai-dynamo/dynamo planner): every 180 s the next interval's demand over engine rate.

    Predictors: `constant` (last value), `kalman` (local linear trend, Q = diag(1, 0.1), R = 10, P0 = 1000, on counts),
    `arima` (here: first-order autoregression on differences, refitted each time; the original lets pmdarima choose).
    """

    interval_s = 180

    def __init__(self, predictor: Literal["constant", "kalman", "arima"] = "arima", headroom: float = 1.0) -> None:
        self.name, self.predictor, self.headroom = f"dynamo-{predictor}", predictor, headroom
        self.counts: list[float] = []
        self.window: deque[float] = deque(maxlen=self.interval_s // TICK_S)
        self.state, self.spread = np.zeros(2), np.eye(2) * 1000.0

    def replicas(self, view: View) -> int:
        """One look; acts at the end of an interval."""
        self.window.append(view.arrivals_per_s)
        if view.time % self.interval_s:
            return view.wanted
        count = sum(self.window) / len(self.window) * self.interval_s
        self.counts.append(count)
        rate = max(self._predict(count), 0.0) / self.interval_s
        return max(math.ceil(self.headroom * rate / view.capacity), 1)

    def _predict(self, count: float) -> float:
        if self.predictor == "constant" or len(self.counts) < 5:
            if self.predictor == "kalman":
                self._filter(count)
            return count
        return self._filter(count) if self.predictor == "kalman" else self._autoregress()

    def _filter(self, count: float) -> float:
        move = np.array([[1.0, 1.0], [0.0, 1.0]])
        look = np.array([1.0, 0.0])
        state = move @ self.state
        spread = move @ self.spread @ move.T + np.diag([1.0, 0.1])
        gain = spread @ look / (look @ spread @ look + 10.0)
        self.state = state + gain * (count - look @ state)
        self.spread = spread - np.outer(gain, look @ spread)
        return float((move @ self.state)[0])

    def _autoregress(self) -> float:
        changes = np.diff(np.array(self.counts[-50:]))
        before, after = changes[:-1], changes[1:]
        energy = float((before**2).sum())
        slope = float((before * after).sum()) / energy if energy > 0 else 0.0
        return float(self.counts[-1] + min(max(slope, -0.95), 0.95) * changes[-1])


class SageServe:
    """SageServe LT-UA (shashwatj07/SageServe): hourly forecast as a target, drifted to by use, with an override.

    The forecast is the maximum of the same hour of the day before where it is known, else of the last hour, plus 10 %
    (the original fits ARIMA to minutes). Up while use > 0.5 and below target, down while use < 0.25 and above it;
    one up when the last minute carries five times the forecast.
    """

    def __init__(self, high: float = 0.5, low: float = 0.25) -> None:
        self.name, self.high, self.low = "sageserve-lt-ua", high, low
        self.minutes: list[float] = []
        self.target: int | None = None

    def replicas(self, view: View) -> int:
        """One look a minute."""
        if view.time % 60:
            return view.wanted
        self.minutes.append(view.arrivals_per_s / view.capacity)
        if self.target is None or len(self.minutes) % 60 == 0:
            self.target = max(math.ceil(1.1 * self._forecast()), 1)
        use = view.held / (max(view.ready, 1) * view.limit)
        if use > self.high and (view.wanted < self.target or use > 0.9):
            return view.wanted + 1
        if use < self.low and view.wanted > self.target:
            return view.wanted - 1
        if view.wanted >= self.target and self.minutes[-1] > 5 * max(self._forecast(), 0.1):
            return view.wanted + 1
        return view.wanted

    def _forecast(self) -> float:
        day = self.minutes[-1440 + 20 : -1440 + 80]
        return max(day) if len(self.minutes) >= 1440 and day else max(self.minutes[-60:])
