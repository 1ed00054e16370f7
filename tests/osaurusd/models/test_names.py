from pathlib import Path

import pytest

from osaurusd.errors import InvalidRequest, ModelNotFound, NameTaken
from osaurusd.models import names
from osaurusd.models.names import NameRegistry

GUIDE = {
    "mlx-community/Llama-3.2-3B-Instruct-4bit": "llama-3.2-3b-instruct",
    "mlx-community/Llama-3.2-1B-Instruct-4bit": "llama-3.2-1b-instruct",
    "mlx-community/Qwen2.5-7B-Instruct-4bit": "qwen2.5-7b-instruct",
    "mlx-community/Qwen2.5-3B-Instruct-4bit": "qwen2.5-3b-instruct",
    "mlx-community/gemma-2-9b-it-4bit": "gemma-2-9b-instruct",
    "mlx-community/gemma-2-2b-it-4bit": "gemma-2-2b-instruct",
    "mlx-community/DeepSeek-R1-Distill-Qwen-1.5B-4bit": "deepseek-r1-1.5b",
    "mlx-community/OpenELM-3B-Instruct-4bit": "openelm-3b-instruct",
}


@pytest.mark.parametrize(("repo", "name"), GUIDE.items())
def test_published_models_have_the_documented_names(repo, name):
    assert names.api_name(repo) == name
    assert names.api_name(repo.lower()) == name


def test_published_names_are_the_documented_ones():
    assert names.PUBLISHED == GUIDE
    assert names.assign(GUIDE, {}) == GUIDE


@pytest.mark.parametrize(
    ("repo", "name"),
    [
        ("mlx-community/Mistral-7B-Instruct-v0.3-4bit", "mistral-7b-instruct-v0.3"),
        ("mlx-community/Qwen2.5-0.5B-Instruct-8bit", "qwen2.5-0.5b-instruct-8bit"),
        ("mlx-community/Qwen2.5-0.5B-Instruct-4bit-DWQ", "qwen2.5-0.5b-instruct-4bit-dwq"),
        ("mlx-community/gemma-3-1b-it-4bit", "gemma-3-1b-instruct"),
        ("mlx-community/gemma-3-1b-it", "gemma-3-1b-instruct"),
        ("mlx-community/gemma-3-1b-it-8bit", "gemma-3-1b-instruct-8bit"),
        ("google/gemma-2-2b-it", "gemma-2-2b-it"),
        ("someone/Split-Italian-Iteration", "split-italian-iteration"),
        ("someone/it-it", "it-instruct"),
        ("someone/Model", "model"),
        ("gpt2", "gpt2"),
        ("imported-it-4bit", "imported-it-4bit"),
    ],
)
def test_other_models_are_named_by_the_rule(repo, name):
    assert names.api_name(repo) == name


def test_first_repository_gets_the_short_name_and_the_second_a_longer_one():
    assert names.assign(["One/Model-4bit", "Two/Model"], {}) == {"One/Model-4bit": "model", "Two/Model": "two/model"}
    assert names.assign(["Two/Model", "One/Model-4bit"], {}) == {
        "Two/Model": "model",
        "One/Model-4bit": "model-4bit",
    }


def test_published_name_is_reserved_for_its_repository():
    published = "mlx-community/gemma-2-2b-it-4bit"
    assert names.assign(["google/gemma-2-2b-it"], {}) == {"google/gemma-2-2b-it": "gemma-2-2b-it"}
    assert names.assign(["google/gemma-2-2b-it", published], {}) == {
        published: "gemma-2-2b-instruct",
        "google/gemma-2-2b-it": "gemma-2-2b-it",
    }


def test_existing_names_do_not_change():
    existing = {"two/model": "model"}
    assert names.assign(["one/model", "two/model"], existing) == {"two/model": "model", "one/model": "one/model"}


def test_reserved_names_are_not_assigned():
    assert names.assign(["org/model"], {}, reserved=["model"]) == {"org/model": "org/model"}


def test_imported_model_keeps_its_name_when_repositories_are_added():
    assert names.assign(["model", "org/Model-4bit"], {}) == {"model": "model", "org/Model-4bit": "model-4bit"}


@pytest.mark.parametrize(
    "repos",
    [
        pytest.param(["a/m", "b/m", "c/M-4bit", "d/m"], id="repositories with the same preferred name"),
        pytest.param(["org/Model-4bit", "model"], id="imported model added after a repository"),
        pytest.param(["gemma-2-2b-instruct", "mlx-community/gemma-2-2b-it-4bit"], id="imported under a published name"),
        pytest.param(["Model", "model"], id="imported models that differ in case"),
    ],
)
def test_names_are_unique(repos):
    assigned = names.assign(repos, {})
    assert set(assigned) == set(repos)
    assert len(set(assigned.values())) == len(repos), assigned


def test_published_repository_does_not_take_the_name_of_an_imported_model():
    assigned = names.assign(["gemma-2-2b-instruct", "mlx-community/gemma-2-2b-it-4bit"], {})
    assert assigned["gemma-2-2b-instruct"] == "gemma-2-2b-instruct"


@pytest.mark.parametrize(
    "name", ["a", "0", "llama-3.2-3b-instruct", "a_b", "a..b", "a.", "x" * 96, "é", "模型-ünï", "हिन्दी", "文" * 66]
)
def test_valid_names(name):
    assert names.is_valid(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".hidden",
        "-x",
        "_x",
        "A",
        "a b",
        "a/b",
        "../a",
        "a\\b",
        "a\n",
        "\na",
        "a\0",
        "É",
        "e\u0301",
        "\u0301e",
        "a\u202eb",
        "🦖",
        "文" * 67,
        "x" * 97,
        "a:b",
    ],
)
def test_invalid_names(name):
    assert not names.is_valid(name)


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("Llama-3.2-1B-Instruct-Q4_K_M", "llama-3.2-1b-instruct"),
        ("Llama-3.2-1B-Instruct.Q4_0", "llama-3.2-1b-instruct"),
        ("SmolLM2-135M-Instruct.Q4_1", "smollm2-135m-instruct"),
        ("model-f16", "model"),
        ("model_bf16", "model"),
        ("model.F32", "model"),
        ("qwen2.5-0.5b-q8_0", "qwen2.5-0.5b"),
        ("My Model (final)", "my-model-final"),
        ("ünïcode", "ünïcode"),
        ("模型-Ünï", "模型-ünï"),
        ("U\u0308n", "ün"),
        ("🦖 model", "model"),
        ("..hidden..", "hidden"),
        ("日本語", "日本語"),
        ("", "model"),
        ("---", "model"),
        ("q4_0", "q4_0"),
        ("quantum-q", "quantum-q"),
    ],
)
def test_name_is_derived_from_a_file_name(stem, name):
    assert names.from_file(stem) == name


@pytest.mark.parametrize(
    "stem",
    [
        pytest.param("a" * 200, id="long"),
        pytest.param("x" * 95 + " y", id="one character too long"),
        pytest.param("." * 200, id="dots"),
        pytest.param("-" + "é" * 300 + "x", id="dashes"),
        pytest.param("İstanbul", id="longer in lowercase"),
        pytest.param("a\nb\0c", id="control characters"),
        pytest.param("文" * 300, id="long in bytes"),
        pytest.param("\ud800", id="surrogate"),
        pytest.param("A/b", id="slash"),
    ],
)
def test_derived_names_are_always_valid(stem):
    assert names.is_valid(names.from_file(stem))


@pytest.mark.parametrize(
    ("name", "similar"),
    [
        ("llama-3.2-3b", ["llama-3.2-3b-instruct", "llama-3.2-1b-instruct"]),
        ("LLAMA-3.2-3B-INSTRUKT", ["llama-3.2-3b-instruct", "llama-3.2-1b-instruct"]),
        ("qwen", []),
        ("", []),
    ],
)
def test_similar_names_are_found_ignoring_case(name, similar):
    assert names.similar_names(name, ["zephyr", "llama-3.2-1b-instruct", "llama-3.2-3b-instruct"]) == similar


def test_at_most_three_similar_names_are_found():
    assert len(names.similar_names("model", [f"model-{number}" for number in range(9)])) == 3


@pytest.fixture
def registry(tmp_path):
    registry = NameRegistry(tmp_path / "names.json")
    registry.assign_names(["org/m"], keep_missing=False)
    return registry


def test_aliases_persist_across_restarts_and_can_be_changed_and_removed(registry, tmp_path):
    registry.add_alias("mine", "org/m")
    registry.add_alias("mine", "org/other")

    restarted = NameRegistry(tmp_path / "names.json")
    assert restarted.aliases == {"mine": "org/other"}
    assert restarted.remove_alias("mine") == "org/other"
    assert restarted.aliases == {}


@pytest.mark.parametrize("alias", ["m", "org/m"])
def test_name_of_a_model_is_rejected_as_an_alias(registry, alias):
    with pytest.raises((NameTaken, InvalidRequest)) as failure:
        registry.add_alias(alias, "org/other")
    assert failure.value.location == ("alias",)


def test_unknown_alias_cannot_be_removed(registry):
    with pytest.raises(ModelNotFound, match='alias "mine" does not exist'):
        registry.remove_alias("mine")


def test_forgetting_a_model_releases_its_name_and_aliases(registry):
    registry.add_alias("mine", "org/m")
    registry.forget("org/m")

    assert registry.aliases == {}
    assert registry.assign_names(["two/m"], keep_missing=True) == {"two/m": "m"}


def test_names_of_missing_models_are_kept_on_request(registry):
    assert registry.assign_names(["two/m"], keep_missing=True) == {"two/m": "two/m"}
    assert registry.assign_names(["three/m"], keep_missing=False) == {"three/m": "m"}


def test_damaged_state_file_is_moved_aside_and_reported(tmp_path):
    (tmp_path / "names.json").write_text("{garbage")
    registry = NameRegistry(tmp_path / "names.json")

    assert "names.json" in registry.fault
    assert registry.assign_names(["org/m"], keep_missing=False) == {"org/m": "m"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama3.2:3b", "llama3.2-3b"),
        ("phi4:latest", "phi4"),
        ("llama3.2:3b-instruct-q4_K_M", "llama3.2-3b-instruct"),
        ("someone/tuned:latest", "tuned"),
        ("hf.co/bartowski/Qwen3-4B-GGUF:Q4_K_M", "qwen3-4b"),
        ("lmstudio-community/Qwen3-4B-GGUF/Qwen3-4B-Q4_K_M.gguf", "qwen3-4b"),
        ("big/Large/Large-Q6_K-00001-of-00002.gguf", "large"),
        ("mlx-community/Qwen3-4B-4bit", "qwen3-4b-4bit"),
    ],
)
def test_name_of_another_program_becomes_an_api_name(name, expected):
    assert names.of_origin(name) == expected


@pytest.mark.parametrize(
    ("base", "label", "expected"),
    [
        ("qwen3-4b-bf16", "4bit", "qwen3-4b-4bit"),
        ("qwen3-4b", "mxfp4", "qwen3-4b-mxfp4"),
        ("qwen3-4b-8bit", "4bit", "qwen3-4b-4bit"),
        ("org/model", "6bit", "model-6bit"),
        ("x" * 96, "4bit", "x" * 91 + "-4bit"),
    ],
)
def test_quantized_model_is_named_after_its_base(base, label, expected):
    assert names.of_quantization(base, label) == expected
    assert names.is_valid(expected)


@pytest.mark.parametrize("file", ["M-Q4_K_M.gguf", "M-Q4_K_M-00001-of-00003.gguf", "M"])
def test_file_of_a_model_gives_its_name(file):
    assert names.of_path(Path("/models") / file) == "m"
