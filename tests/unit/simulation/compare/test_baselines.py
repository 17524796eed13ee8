"""Each baseline does what its source documents."""

from typing import Any

import pytest

from trimtab.simulation.compare.baselines import Apa, Hpa, Kpa, KubeAi, LlmdSlo, Static, WvaSaturation, WvaToken
from trimtab.simulation.compare.forecasting import Dynamo, SageServe


def test_static_never_moves(make_view: Any) -> None:
    assert Static(7).replicas(make_view(running=1e6)) == 7


@pytest.mark.parametrize(
    ("running", "expected"),
    [
        pytest.param(2 * 0.8 * 32 * 1.09, 2, id="within the tolerance of a tenth"),
        pytest.param(2 * 0.8 * 32 * 1.2, 3, id="beyond it"),
        pytest.param(2 * 0.8 * 32 * 10, 6, id="at most four pods or double at once"),
    ],
)
def test_hpa_scales_up_at_once(running: float, expected: int, make_view: Any) -> None:
    assert Hpa(0.8).replicas(make_view(running=running)) == expected


def test_hpa_scales_down_by_the_highest_wish_of_five_minutes(make_view: Any) -> None:
    hpa = Hpa(0.8)
    hpa.replicas(make_view(ready=4, running=4 * 0.8 * 32))
    wishes = [hpa.replicas(make_view(ready=4, running=0.8 * 32)) for _ in range(21)]
    assert wishes[:19] == [4] * 19
    assert wishes[20] == 1


def test_hpa_keeps_its_floor(make_view: Any) -> None:
    assert Hpa(0.8, floor=5).replicas(make_view(running=0.0)) == 5


def test_kpa_panics_on_twice_the_ready_capacity_and_does_not_shrink_in_panic(make_view: Any) -> None:
    kpa = Kpa(0.7)
    panic = kpa.replicas(make_view(time=15.0, running=5 * 0.7 * 32))
    assert panic >= 5
    assert kpa.replicas(make_view(time=30.0, running=10.0)) == panic
    for tick in range(6):
        calm = kpa.replicas(make_view(time=90.0 + 15 * tick, running=10.0))
    assert calm < panic


def test_kubeai_averages_ten_minutes_and_waits_before_the_first_step_down(make_view: Any) -> None:
    kubeai = KubeAi(1.0)
    for _ in range(40):
        kubeai.replicas(make_view(running=64.0))
    assert kubeai.replicas(make_view(running=64.0 * 3)) == 3, "a short peak hardly moves the mean"
    again = KubeAi(1.0)
    assert [again.replicas(make_view(ready=4, running=32.0)) for _ in range(2)] == [4, 1]


def test_apa_doubles_at_most_and_uses_the_lowest_wish_when_it_shrinks(make_view: Any) -> None:
    assert Apa(0.8).replicas(make_view(running=2 * 0.8 * 32 * 5)) == 4
    assert Apa(0.8).replicas(make_view(ready=8, running=0.0)) == 4


def test_wva_saturation_moves_one_a_minute_and_not_while_one_is_on_its_way(make_view: Any) -> None:
    wva = WvaSaturation()
    full = {"running": 2 * 32.0, "waiting": 20.0}
    assert wva.replicas(make_view(**full)) == 3
    assert wva.replicas(make_view(**full, time=615.0)) == 2
    assert wva.replicas(make_view(**full, pending=1)) == 3
    assert wva.replicas(make_view(ready=4, running=8.0)) == 3
    assert wva.replicas(make_view(ready=2, running=40.0)) == 2, "one alone would be full"


def test_wva_token_sizes_the_jump_and_counts_what_is_pending(make_view: Any) -> None:
    wva = WvaToken()
    assert wva.replicas(make_view(running=64.0, waiting=108.8)) == 7
    assert wva.replicas(make_view(running=64.0, waiting=108.8, pending=5)) == 7
    assert wva.replicas(make_view(ready=8, running=1.4 * 32)) == 2


def test_llmd_divides_the_arrivals_by_what_one_replica_can_keep(make_view: Any) -> None:
    assert LlmdSlo().replicas(make_view(arrivals_per_s=9.0)) == 3


@pytest.mark.parametrize("predictor", ["constant", "kalman", "arima"])
def test_dynamo_provisions_the_predicted_mean_every_three_minutes(predictor: Any, make_view: Any) -> None:
    dynamo = Dynamo(predictor)
    assert dynamo.replicas(make_view(time=15.0, arrivals_per_s=100.0)) == 2
    for tick in range(1, 12 * 20):
        wanted = dynamo.replicas(make_view(time=15.0 * (tick + 1), arrivals_per_s=12.0))
    assert wanted in (2, 3, 4)
    assert dynamo.replicas(make_view(time=12 * 20 * 15.0 + 180, arrivals_per_s=12.0)) in (3, 4)


def test_dynamos_trend_models_run_ahead_of_a_ramp(make_view: Any) -> None:
    ahead = {}
    for predictor in ("constant", "kalman", "arima"):
        dynamo = Dynamo(predictor)  # type: ignore[arg-type]
        for tick in range(1, 12 * 10 + 1):
            ahead[predictor] = dynamo.replicas(make_view(time=15.0 * tick, arrivals_per_s=2.0 * (tick // 12)))
    assert ahead["kalman"] >= ahead["constant"]
    assert ahead["arima"] >= ahead["constant"]


def test_sageserve_drifts_one_at_a_time_and_overrides_on_a_surge(make_view: Any) -> None:
    sage = SageServe()
    assert sage.replicas(make_view(time=60.0, ready=3, running=2.0, arrivals_per_s=1.0)) == 2
    calm = {"ready": 3, "running": 60.0, "arrivals_per_s": 1.0}
    for minute in range(2, 20):
        sage.replicas(make_view(time=60.0 * minute, **calm))
    assert sage.replicas(make_view(time=1200.0, ready=3, running=96.0, arrivals_per_s=1.0)) == 4, "use above 0.9"
