"""The bundled facts are complete and right; what users add is checked."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.catalog.catalogue import CatalogueError, load_catalogue
from trimtab.catalog.models import ModelFacts
from trimtab.catalog.names import base_name, checkpoint_from_name
from trimtab.catalog.parameters import count_parameters

CATALOGUE = load_catalogue()


def _published(text: str) -> float | None:
    match = re.match(r"(\d+(?:\.\d+)?)B", text)
    return float(match[1]) * 1e9 if match else None


@pytest.mark.parametrize("model", CATALOGUE.models, ids=lambda model: model.id)
def test_parameters_from_the_shape_agree_with_what_was_published(model: ModelFacts) -> None:
    published = _published(model.published_parameters)
    assert published is not None
    # Publishers round to three digits and some count a vision tower or prediction heads that are not loaded.
    assert count_parameters(model).total == pytest.approx(published, rel=0.015)


@pytest.mark.parametrize("model", [m for m in CATALOGUE.models if m.experts], ids=lambda model: model.id)
def test_a_token_passes_only_a_part_of_the_experts(model: ModelFacts) -> None:
    parameters = count_parameters(model)
    assert model.experts is not None
    assert parameters.active_experts / parameters.experts == pytest.approx(model.experts.active / model.experts.count)
    assert parameters.active_linear < parameters.linear


def test_every_record_names_its_sources() -> None:
    assert all(model.sources for model in CATALOGUE.models)
    assert all(gpu.sources for gpu in CATALOGUE.gpus)
    assert all(price.source for gpu in CATALOGUE.gpus for price in gpu.prices)
    assert all(model.quality_source for model in CATALOGUE.models if model.quality_index is not None)


def test_names_are_unique() -> None:
    names = [name.lower() for model in CATALOGUE.models for name in (model.id, *model.aliases)]
    assert len(names) == len(set(names))
    labels = [name for gpu in CATALOGUE.gpus for name in {name.lower() for name in gpu.names}]
    assert len(labels) == len(set(labels))


def test_every_alias_with_its_own_shape_is_valid() -> None:
    for model in CATALOGUE.models:
        for alias, changes in model.variants.items():
            found = CATALOGUE.model(alias)
            assert found is not None
            assert found.id == alias
            assert changes
            stated = found.model_dump(mode="json", exclude_defaults=True)
            original = model.model_dump(mode="json", exclude_defaults=True)
            assert {key for key in changes if stated.get(key) == original.get(key)} == set()


@pytest.mark.parametrize("size", ["small", "medium", "large"])
def test_size_classes_are_ordered_by_published_score(size: str) -> None:
    models = CATALOGUE.of_size(size)
    scores = [model.quality_index or 0 for model in models]
    assert len(models) >= 2
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("repository", "base", "method"),
    [
        ("hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4", "meta-llama/Llama-3.1-8B-Instruct", "awq"),
        ("TheBloke/Mistral-7B-Instruct-v0.1-GPTQ", "mistralai/Mistral-7B-v0.1", "gptq"),
        (
            "RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8",
            "meta-llama/Llama-3.1-8B-Instruct",
            "compressed-tensors",
        ),
        ("unsloth/phi-4-bnb-4bit", "microsoft/phi-4", "bitsandbytes"),
        ("neuralmagic/Mixtral-8x7B-Instruct-v0.1-FP8", "mistralai/Mixtral-8x7B-Instruct-v0.1", "fp8"),
    ],
)
def test_a_quantized_copy_is_known_by_its_name(repository: str, base: str, method: str) -> None:
    match = CATALOGUE.find_model(repository)
    like = CATALOGUE.model(base)
    assert match is not None
    assert like is not None
    assert match.guessed
    assert match.model.id == repository
    assert match.model.confidence == "low"
    assert match.model.checkpoint is not None
    assert match.model.checkpoint.method == method
    assert match.model.hidden_size == like.hidden_size
    assert match.model.num_layers == like.num_layers


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_name_is_either_known_or_not(name: str) -> None:
    assert base_name(name) == base_name(base_name(name))
    checkpoint_from_name(name)
    CATALOGUE.find_model(name)


def test_gpus_are_found_by_node_label() -> None:
    found = CATALOGUE.gpu("NVIDIA-A100-SXM4-80GB")
    assert found is not None
    assert found.id == "A100-80GB"
    assert CATALOGUE.gpu("NVIDIA-A100-SXM4-80GB-SHARED") is None
    assert CATALOGUE.gpu("NVIDIA-L4-MIG-1g.10gb") is None


def test_a_slice_of_a_gpu_has_its_share() -> None:
    whole, part = CATALOGUE.gpu("A100-80GB"), CATALOGUE.gpu("NVIDIA-A100-SXM4-80GB-MIG-3g.40gb")
    assert whole is not None
    assert part is not None
    assert part.sliced
    assert part.memory_gib == pytest.approx(whole.memory_gib / 2, rel=0.05)
    assert part.bandwidth_gb_s == whole.bandwidth_gb_s / 2
    assert part.fp16_tflops == pytest.approx(whole.fp16_tflops * 3 / 7)
    assert part.price_per_hour == pytest.approx((whole.price_per_hour or 0) * 3 / 7)


def test_additions_come_first_and_replace_the_bundled_record() -> None:
    l4 = CATALOGUE.gpu("L4")
    assert l4 is not None
    cheaper = l4.model_dump(mode="json") | {
        "prices": [{"usd_per_gpu_hour": 0.11, "provider": "own", "source": "contract"}]
    }
    merged = CATALOGUE.merged({"gpus": [cheaper]})
    changed = merged.gpu("NVIDIA-L4")
    assert changed is not None
    assert changed.price_per_hour == 0.11
    assert len(merged.gpus) == len(CATALOGUE.gpus)
    assert l4.price_per_hour != 0.11


def test_wrong_additions_are_refused_with_every_error() -> None:
    with pytest.raises(CatalogueError) as refused:
        CATALOGUE.merged(
            {
                "gpus": [{"id": "X", "memory_gib": -1, "bandwidth_gb_s": 1, "fp16_tflops": 1, "sources": ["me"]}],
                "models": [{"id": "a/b", "colour": "red"}],
                "cpus": [],
            }
        )
    fields = {error.field for error in refused.value.errors}
    assert {"cpus", "gpus.0.memory_gib", "models.0.colour", "models.0.num_layers"} <= fields


def test_an_impossible_shape_is_refused() -> None:
    llama = CATALOGUE.model("meta-llama/Llama-3.1-8B-Instruct")
    assert llama is not None
    with pytest.raises(CatalogueError, match="num_kv_heads 64 must not exceed num_heads 32"):
        CATALOGUE.merged({"models": [llama.model_dump(mode="json") | {"num_kv_heads": 64}]})
