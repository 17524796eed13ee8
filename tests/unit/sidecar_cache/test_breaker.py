from hypothesis import given
from hypothesis import strategies as st

from trimtab.sidecar.cache.breaker import CircuitBreaker


def opened() -> CircuitBreaker:
    breaker = CircuitBreaker(failures=3, pause=1.0, max_pause=4.0)
    for _ in range(3):
        breaker.failed(0.0)
    return breaker


def test_it_opens_after_failures_in_a_row_only() -> None:
    breaker = CircuitBreaker(failures=3, pause=1.0)
    for _ in range(5):
        breaker.failed(0.0)
        breaker.failed(0.0)
        breaker.succeeded()
    assert breaker.allows(0.0)
    assert breaker.opened == 0
    assert not opened().allows(0.5)
    assert opened().opened == 1


def test_one_probe_passes_after_the_pause_and_closes_it_on_success() -> None:
    breaker = opened()
    assert breaker.allows(1.0)
    assert not breaker.allows(1.0)
    breaker.succeeded()
    assert breaker.allows(1.0) and not breaker.is_open


def test_failed_probes_double_the_pause_up_to_its_bound() -> None:
    breaker, now = opened(), 0.0
    for pause in (1.0, 2.0, 4.0, 4.0):
        assert not breaker.allows(now + pause - 0.01)
        now += pause
        assert breaker.allows(now)
        breaker.failed(now)


def test_late_failures_of_older_requests_do_not_prolong_the_pause() -> None:
    breaker = opened()
    for _ in range(50):
        breaker.failed(0.5)
    assert breaker.allows(1.0)


@given(steps=st.lists(st.tuples(st.sampled_from(["ask", "good", "bad"]), st.floats(0, 2)), max_size=50))
def test_it_never_stays_closed_to_everybody_for_ever(steps: list[tuple[str, float]]) -> None:
    breaker, now, asked = CircuitBreaker(failures=2, pause=1.0, max_pause=4.0), 0.0, False
    for verb, wait in steps:
        now += wait
        if verb == "ask":
            asked = breaker.allows(now) or asked
        elif asked:  # outcomes only of requests that were allowed
            asked = False
            if verb == "good":
                breaker.succeeded()
            else:
                breaker.failed(now)
    if asked:
        breaker.failed(now)
    assert breaker.allows(now + 4.0)
