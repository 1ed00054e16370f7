"""API names: the guide's table, the rule, and who yields when two want the same."""

import pytest

from osaurusd.models import names

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
def test_models_of_the_guide_have_the_guides_names(repo, name):
    assert names.api_name(repo) == name
    assert names.api_name(repo.lower()) == name


def test_the_table_is_the_guides():
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


def test_the_first_who_wants_a_name_gets_it_and_the_other_a_longer_one():
    assert names.assign(["One/Model-4bit", "Two/Model"], {}) == {"One/Model-4bit": "model", "Two/Model": "two/model"}
    assert names.assign(["Two/Model", "One/Model-4bit"], {}) == {
        "Two/Model": "model",
        "One/Model-4bit": "model-4bit",
    }


def test_a_published_name_belongs_to_its_repo_even_if_that_comes_later():
    ours = "mlx-community/gemma-2-2b-it-4bit"
    assert names.assign(["google/gemma-2-2b-it"], {}) == {"google/gemma-2-2b-it": "gemma-2-2b-it"}
    assert names.assign(["google/gemma-2-2b-it", ours], {}) == {
        ours: "gemma-2-2b-instruct",
        "google/gemma-2-2b-it": "gemma-2-2b-it",
    }


def test_a_name_once_given_stays_whatever_comes():
    given = {"two/model": "model"}
    assert names.assign(["one/model", "two/model"], given) == {"two/model": "model", "one/model": "one/model"}


def test_a_name_that_is_taken_by_something_else_is_not_given():
    assert names.assign(["org/model"], {}, taken=["model"]) == {"org/model": "org/model"}


def test_an_imported_model_keeps_its_name_from_later_repos():
    assert names.assign(["model", "org/Model-4bit"], {}) == {"model": "model", "org/Model-4bit": "model-4bit"}


@pytest.mark.parametrize(
    "repos",
    [
        pytest.param(["a/m", "b/m", "c/M-4bit", "d/m"], id="repos that want the same"),
        pytest.param(["org/Model-4bit", "model"], id="an imported model that came after a repo"),
        pytest.param(["gemma-2-2b-instruct", "mlx-community/gemma-2-2b-it-4bit"], id="imported under a published name"),
        pytest.param(["Model", "model"], id="imported models that differ in case"),
    ],
)
def test_no_two_names_are_alike(repos):
    assigned = names.assign(repos, {})
    assert set(assigned) == set(repos)
    assert len(set(assigned.values())) == len(repos), assigned


def test_a_published_repo_does_not_take_the_name_of_an_imported_model():
    assigned = names.assign(["gemma-2-2b-instruct", "mlx-community/gemma-2-2b-it-4bit"], {})
    assert assigned["gemma-2-2b-instruct"] == "gemma-2-2b-instruct"


@pytest.mark.parametrize("name", ["a", "0", "llama-3.2-3b-instruct", "a_b", "a..b", "a.", "x" * 96])
def test_names_that_may_be_given(name):
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
        "é",
        "x" * 97,
        "a:b",
    ],
)
def test_names_that_may_not_be_given(name):
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
        ("ünïcode", "n-code"),
        ("..hidden..", "hidden"),
        ("日本語", "model"),
        ("", "model"),
        ("---", "model"),
        ("q4_0", "q4_0"),
        ("quantum-q", "quantum-q"),
    ],
)
def test_a_file_names_its_model(stem, name):
    assert names.from_file(stem) == name


@pytest.mark.parametrize(
    "stem",
    [
        pytest.param("a" * 200, id="long"),
        pytest.param("x" * 95 + " y", id="one too long"),
        pytest.param("." * 200, id="dots"),
        pytest.param("-" + "é" * 300 + "x", id="dashes"),
        pytest.param("İstanbul", id="grows in lower case"),
        pytest.param("a\nb\0c", id="control characters"),
        pytest.param("\ud800", id="surrogate"),
        pytest.param("A/b", id="slash"),
    ],
)
def test_every_file_gives_a_valid_name(stem):
    assert names.is_valid(names.from_file(stem))


@pytest.mark.parametrize(
    ("meant", "found"),
    [
        ("llama-3.2-3b", ["llama-3.2-3b-instruct", "llama-3.2-1b-instruct"]),
        ("LLAMA-3.2-3B-INSTRUKT", ["llama-3.2-3b-instruct", "llama-3.2-1b-instruct"]),
        ("qwen", []),
        ("", []),
    ],
)
def test_near_names_are_found_in_any_case(meant, found):
    assert names.near(meant, ["zephyr", "llama-3.2-1b-instruct", "llama-3.2-3b-instruct"]) == found


def test_at_most_three_near_names_are_found():
    assert len(names.near("model", [f"model-{number}" for number in range(9)])) == 3
