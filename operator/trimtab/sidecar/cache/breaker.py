"""A circuit breaker: after repeated failures a store is left alone for a while, then probed with one request."""


class CircuitBreaker:
    """Pure: the caller passes the time (s, monotonic). Closed: all pass. Open: none. Then one probe decides."""

    def __init__(self, *, failures: int = 3, pause: float = 0.5, max_pause: float = 30.0) -> None:
        self._limit = failures
        self._first_pause = pause
        self._max_pause = max_pause
        self._pause = pause
        self._failures = 0
        self._open_until: float | None = None
        self._probing = False
        self.opened = 0
        """How often it went from closed to open."""

    @property
    def is_open(self) -> bool:
        """Whether the last word was a failure that opened it."""
        return self._open_until is not None

    def allows(self, now: float) -> bool:
        """Whether a request may be made; a True while open makes that request the probe."""
        if self._open_until is None:
            return True
        if self._probing or now < self._open_until:
            return False
        self._probing = True
        return True

    def succeeded(self) -> None:
        """A request was answered."""
        self._failures = 0
        self._pause = self._first_pause
        self._open_until = None
        self._probing = False

    def failed(self, now: float) -> None:
        """A request failed; pauses double while probes fail. Failures of requests made before it opened are ignored."""
        if self._open_until is not None:
            if self._probing:
                self._probing = False
                self._pause = min(self._pause * 2, self._max_pause)
                self._open_until = now + self._pause
            return
        self._failures += 1
        if self._failures >= self._limit:
            self.opened += 1
            self._open_until = now + self._pause
