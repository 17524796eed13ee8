import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from trimtab.api.resource import parse_manifest
from trimtab.cli.plan import answer_manifest, read_manifest
from trimtab.cli.simulate import command, site_of
from trimtab.replay.registry import Places, Selection, find_trace
from trimtab.simulation.compare.baselines import Hpa, Static
from trimtab.simulation.compare.exact import ExactFleet
from trimtab.simulation.compare.fluid import Load, Site, run
from trimtab.simulation.compare.ours import Trimtab
from trimtab.simulation.compare.report import attainment, best_tuned, default_policies, entry, play, prepare, tuned_grid
from trimtab.tuning.objectives import build_objectives
from trimtab.tuning.types import Lever, Objectives


def test_below_capacity_nobody_waits_and_the_batch_follows_littles_law(site: Site, make_trace: Any) -> None:
    load = Load(make_trace([0.5 * site.capacity()] * 30), site)
    played = run(load, site, Static(1), 1, 300)
    assert float(np.median(played.ttft_s)) == pytest.approx(site.model.prefill_s + played.tpot_s[-1], rel=0.5)
    batch = (float(np.median(played.tpot_s[played.scored])) - site.model.const_s) / site.model.slope_s
    rate = 0.5 * site.capacity()
    assert batch == pytest.approx(rate * site.model.latency(batch), rel=0.15)


def test_beyond_capacity_the_wait_grows_with_the_backlog(site: Site, make_trace: Any) -> None:
    load = Load(make_trace([1.5 * site.capacity()] * 20), site)
    played = run(load, site, Static(1), 1, 0)
    # After T seconds at 1.5 times the capacity, T/2 seconds of work wait.
    assert float(played.ttft_s[-1]) == pytest.approx(0.5 * 1200, rel=0.1)


def test_boots_and_drains_are_paid(site: Site, make_trace: Any) -> None:
    class Once:
        name = "once"

        def replicas(self, view: Any) -> int:
            return 3 if 60 <= view.time < 600 else 1

    load = Load(make_trace([0.1] * 20), site)
    played = run(load, site, Once(), 1, 0)
    assert played.scale_events == 2
    extra = float(played.paid.sum()) - load.seconds
    assert extra == pytest.approx(2 * (540 + site.drain_s), abs=40)
    assert int(played.ready[60 + site.cold_start_s - 5]) == 1
    assert int(played.ready[60 + site.cold_start_s + 5]) == 3


def test_long_requests_weigh_more(site: Site, make_trace: Any) -> None:
    trace = make_trace([1.0] * 10)
    load = Load(trace, site)
    assert load.arrivals.sum() == pytest.approx(len(trace))
    longer = trace.output_tokens.copy()
    longer[:10] *= 4
    object.__setattr__(trace, "output_tokens", longer)
    assert Load(trace, site).weight[:10].min() > 2.0


@pytest.fixture(scope="module")
def wave(make_trace: Any) -> Any:
    minutes = np.arange(180)
    return make_trace((12 - 8 * np.cos(2 * np.pi * minutes / 180)).tolist())


def test_the_optimum_is_kept_to_and_nobody_who_keeps_the_objective_beats_its_lower_bound(
    wave: Any, site: Site, slo: Any
) -> None:
    scenario = prepare(wave, site, slo, 0.99)
    assert scenario.optimum.low_hours <= scenario.optimum.high_hours < float("inf")
    for policy in (Static(8), Hpa(0.6), Hpa(0.8), Hpa(1.0)):
        played = play(scenario, policy)
        if scenario.attained(played) >= 0.99:
            assert played.replica_hours >= scenario.optimum.low_hours


def test_the_operators_own_functions_keep_the_objective_on_a_wave(
    wave: Any, site: Site, objectives: Objectives, slo: Any
) -> None:
    scenario = prepare(wave, site, slo, 0.99)
    ours = Trimtab(objectives)
    played = play(scenario, ours)
    assert scenario.attained(played) >= 0.99
    assert played.replica_hours <= 1.5 * scenario.optimum.high_hours
    assert any(decision.lever is Lever.REPLICAS for decision in ours.decisions)


def test_runs_are_reproducible(wave: Any, site: Site, objectives: Objectives, slo: Any) -> None:
    scenario = prepare(wave, site, slo, 0.99)
    first, second = (play(scenario, Trimtab(objectives)) for _ in range(2))
    assert first.paid.tolist() == second.paid.tolist()


def test_tuning_a_baseline_finds_its_cheapest_setting_that_keeps_the_objective(wave: Any, site: Site, slo: Any) -> None:
    scenario = prepare(wave, site, slo, 0.99)
    best = best_tuned(scenario, tuned_grid(scenario)["static"])
    assert attainment(best, slo) >= 0.99
    smaller = Static(int(best.ready[-1]) - 1)
    assert attainment(play(scenario, smaller), slo) < 0.99


def test_a_report_entry_has_the_stable_keys(wave: Any, site: Site, objectives: Objectives, slo: Any) -> None:
    scenario = prepare(wave, site, slo, 0.99)
    row = entry(scenario, "hpa", play(scenario, default_policies(objectives)["hpa"]()), gpus=2)
    keys = {"name", "sloAttainment", "gpuHours", "costRatioToOracle", "p50", "p95", "p99", "scaleEvents", "rejected"}
    assert set(row) == keys | {"errors"}
    assert set(row["p95"]) == {"ttftMs", "tpotMs", "latencyMs"}


MANIFEST = {
    "apiVersion": "trimtab.dev/v1alpha1",
    "kind": "LLMDeployment",
    "metadata": {"name": "chat"},
    "spec": {
        "model": {"id": "meta-llama/Llama-3.1-8B-Instruct"},
        "quantization": "none",
        "hardware": {"gpuProducts": ["NVIDIA-A100-SXM4-80GB"], "gpusPerReplica": 1},
        "slo": {"ttft": {"p99": "2s"}, "tpot": {"p99": "80ms"}},
        "scaling": {"minReplicas": 1, "maxReplicas": 20},
    },
}


def test_the_command_writes_table_json_and_an_html_that_needs_no_network(tmp_path: Path) -> None:
    manifest = tmp_path / "chat.yaml"
    manifest.write_text(yaml.safe_dump(MANIFEST))
    options = [
        str(manifest),
        "--fluid",
        "--trace",
        "azure-2023-conv",
        "--offline",
        "--days",
        "0.02",
        "--out",
        str(tmp_path / "o"),
    ]
    result = CliRunner().invoke(
        command, [*options, "--policy", "trimtab", "--policy", "hpa"], env={"TRIMTAB_TRACES": ""}
    )
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "o" / "report.json").read_text())
    assert [row["name"] for row in report["policies"]] == ["trimtab", "hpa"]
    assert report["origin"] == "generated"
    assert report["oracle"]["gpuHoursLow"] <= report["oracle"]["gpuHoursHigh"]
    page = (tmp_path / "o" / "report.html").read_text()
    assert page.count("<svg") == 5
    assert "http" not in page


def test_the_command_explains_an_unknown_policy_and_a_missing_objective(tmp_path: Path) -> None:
    manifest = tmp_path / "chat.yaml"
    manifest.write_text(yaml.safe_dump(MANIFEST))
    base = [str(manifest), "--trace", "azure-2023-conv", "--offline", "--days", "0.01"]
    result = CliRunner().invoke(command, [*base, "--policy", "magic"])
    assert result.exit_code == 2
    assert "wva-token-v2" in result.output
    bare = {**MANIFEST, "spec": {key: value for key, value in MANIFEST["spec"].items() if key != "slo"}}
    manifest.write_text(yaml.safe_dump(bare))
    assert "no objective" in CliRunner().invoke(command, base).output


def test_the_request_level_fleet_runs_the_same_policies_and_sets_the_live_limit(tmp_path: Path) -> None:
    manifest = tmp_path / "chat.yaml"
    manifest.write_text(yaml.safe_dump(MANIFEST))
    result = answer_manifest(read_manifest(manifest), None, None, hub=False)
    assert result.plan is not None
    objectives = build_objectives(parse_manifest(read_manifest(manifest)), result.plan)
    trace = find_trace("azure-2023-conv", Selection(rate=6.0, duration_s=900.0), Places(download=False))
    site = site_of(trace, objectives)
    load = Load(trace, site)
    fleet = ExactFleet(result.plan, load, site, "least-outstanding")
    ours = Trimtab(objectives)
    played = fleet.run(ours, 2, 225)
    assert len(played.ttft_s) == len(trace)
    assert bool(np.isfinite(played.ttft_s).all()), "every request got its answer"
    assert any(decision.lever is Lever.LIVE_LIMIT for decision in ours.decisions)
    assert played.replica_hours >= 675 / 3600, "at least one replica is paid"
    again = fleet.run(Trimtab(objectives), 2, 225)
    assert played.ttft_s.tolist() == again.ttft_s.tolist()
