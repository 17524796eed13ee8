"""Engines' own metrics are asked for by their names, in one query for all engines."""

from trimtab.engines.base import Signal
from trimtab.engines.registry import ENGINES
from trimtab.telemetry.queries import Labels, tick_queries


def test_one_query_asks_for_the_step_time_of_every_engine():
    query = tick_queries(Labels(), 60)["step"]
    for engine in ENGINES.values():
        metric = engine.metrics[Signal.DECODE_STEP_SECONDS]
        assert f"{metric.name}_sum{{" in query
        assert f"{metric.name}_count{{" in query
        assert metric.selector in query
    assert query.count(" or ") == len(ENGINES) - 1


def test_the_number_of_queries_does_not_grow_with_engines():
    assert sum("tgi_" in query or "vllm:" in query for query in tick_queries(Labels(), 60).values()) == 1
