"""The eight models of the guide in their real architectures; no Python code from their folders ever runs.

The weights are tiny and random, so the tests check that a model generates output, not which.
"""

import json
import runpy
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import NotFoundError, OpenAI
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionMessageParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionUserMessageParam,
)

from osaurusd.models.names import PUBLISHED
from tests import daemons
from tests.daemons import Daemon
from tests.models import make_tiny
from tests.osaurusd.models.disk import write_hub

QUESTION: ChatCompletionUserMessageParam = {"role": "user", "content": "What is the capital of France?"}
SYSTEM: ChatCompletionSystemMessageParam = {"role": "system", "content": "You are terse."}

LLAMA_TEMPLATE = (
    "{{- bos_token }}{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}"
    "{% endif %}{{- 'Today Date: ' + date_string + '\\n' }}{% for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim "
    "+ '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
    "{% endif %}{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"
)
DEEPSEEK_TEMPLATE = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(system_prompt='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}"
    "{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}{{bos_token}}{{ns.system_prompt}}"
    "{%- for message in messages %}{%- if message['role'] == 'user' %}{{'<｜User｜>' + message['content']}}{%- endif %}"  # noqa: RUF001  the model uses these characters
    "{%- if message['role'] == 'assistant' and message['content'] is not none %}{% set content = message['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor -%}"  # noqa: RUF001  the model uses these characters
    "{% if add_generation_prompt %}{{'<｜Assistant｜><think>\\n'}}{% endif %}"  # noqa: RUF001  the model uses these characters
)

LLAMA3_ROPE = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "head_dim": 32,
    "rope_theta": 500000.0,
    "rope_scaling": LLAMA3_ROPE,
    "max_position_embeddings": 131072,
    "eos_token_id": [2, 0],
    "template": LLAMA_TEMPLATE,
}
QWEN: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 64,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "use_sliding_window": False,
}
GEMMA: dict[str, Any] = {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "head_dim": 16,
    "hidden_size": 64,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "max_position_embeddings": 8192,
    "cache_implementation": "hybrid",
    "template": GEMMA_TEMPLATE,
}
OPENELM: dict[str, Any] = {
    "architectures": ["OpenELMForCausalLM"],
    "model_type": "openelm",
    "auto_map": {
        "AutoConfig": "configuration_openelm.OpenELMConfig",
        "AutoModelForCausalLM": "modeling_openelm.OpenELMForCausalLM",
    },
    "head_dim": 32,
    "num_transformer_layers": 2,
    "model_dim": 64,
    "ffn_dim_divisor": 64,
    "num_query_heads": [2, 4],
    "num_kv_heads": [1, 2],
    "ffn_multipliers": [1.0, 2.0],
    "max_context_length": 2048,
    "template": None,
}
MODELS: dict[str, dict[str, Any]] = {
    "mlx-community/Llama-3.2-3B-Instruct-4bit": {**LLAMA, "hidden_size": 64, "group_size": 64},
    "mlx-community/Llama-3.2-1B-Instruct-4bit": LLAMA,
    "mlx-community/Qwen2.5-7B-Instruct-4bit": {**QWEN, "group_size": 64, "tie_word_embeddings": False},
    "mlx-community/Qwen2.5-3B-Instruct-4bit": {**QWEN, "group_size": 32},
    "mlx-community/gemma-2-9b-it-4bit": {**GEMMA, "num_attention_heads": 4, "group_size": 64},
    "mlx-community/gemma-2-2b-it-4bit": GEMMA,
    "mlx-community/DeepSeek-R1-Distill-Qwen-1.5B-4bit": {**QWEN, "group_size": 64, "template": DEEPSEEK_TEMPLATE},
    "mlx-community/OpenELM-3B-Instruct-4bit": {**OPENELM, "group_size": 64},
}

SIMILAR = {
    "mlx-community/Llama-3.2-3B-Instruct-4bit",
    "mlx-community/Qwen2.5-7B-Instruct-4bit",
    "mlx-community/Qwen2.5-3B-Instruct-4bit",
    "mlx-community/gemma-2-9b-it-4bit",
}
"""Models that differ from another one only in their sizes, or in that they have the template of most tests."""

OPENELM_NAME = PUBLISHED["mlx-community/OpenELM-3B-Instruct-4bit"]
CUSTOM_TOKENIZER = "tokenization_openelm.OpenELMTokenizer"
# Variants of tokenizer_config.json that name custom code, although tokenizer.json makes it unnecessary.
TOKENIZER_SETTINGS: dict[str, dict[str, Any]] = {
    "no-class": {"tokenizer_class": None, "auto_map": {"AutoTokenizer": [CUSTOM_TOKENIZER, None]}},
    "custom-class": {"tokenizer_class": "OpenELMTokenizer", "auto_map": [CUSTOM_TOKENIZER, CUSTOM_TOKENIZER]},
    "known-class": {"tokenizer_class": "LlamaTokenizer", "auto_map": {"AutoTokenizer": [None, CUSTOM_TOKENIZER]}},
}
SERVABLE = sorted([*PUBLISHED.values(), *(f"openelm-{variant}" for variant in TOKENIZER_SETTINGS)])

UNUSABLE = {
    "custom-code": "the model requires custom code (`model_file`), which osaurusd never runs",
    "custom-tokenizer": "the tokenizer requires custom code (`auto_map`), which osaurusd never runs",
}
CODE_FILES = ("configuration_openelm.py", "modeling_openelm.py", "tokenization_openelm.py", "model.py")


class ModelCache:
    """A Hugging Face cache whose models contain Python files; running one of them creates the file `marker`."""

    def __init__(self, hub: Path, tokenizer: Path) -> None:
        self.hub = hub
        self.marker = hub.parent / "code-has-run"
        self._tokenizer = tokenizer

    def add(
        self,
        repo: str,
        *,
        tokenizer_settings: dict[str, Any] | None = None,
        without: Collection[str] = (),
        **model: Any,
    ) -> None:
        """Add a model repository.

        Args:
            repo: repository id, as in `org/name`.
            tokenizer_settings: overrides for tokenizer_config.json; a value of None removes the key.
            without: names of files to omit.
            model: arguments of `make_tiny`.
        """
        with tempfile.TemporaryDirectory() as temporary:
            folder = make_tiny(Path(temporary), self._tokenizer, **model)
            files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in without}
        settings = {**json.loads(files["tokenizer_config.json"]), **(tokenizer_settings or {})}
        settings = {key: value for key, value in settings.items() if value is not None}
        source = f"from pathlib import Path\nPath({str(self.marker)!r}).touch()\n"
        code = {name: f"# {name} of {repo}\n{source}".encode() for name in CODE_FILES}
        write_hub(self.hub, repo, {**files, "tokenizer_config.json": json.dumps(settings).encode(), **code})


@pytest.fixture(scope="module")
def cache(module_home: Path, tiny_tokenizer: Path) -> ModelCache:
    cache = ModelCache(module_home / "hub", tiny_tokenizer)
    for seed, (repo, model) in enumerate(MODELS.items()):
        # The repositories of Gemma and DeepSeek predate chat_template.jinja; tokenizer_config.json has the template.
        settings: dict[str, Any] = {}
        if model.get("template") in (GEMMA_TEMPLATE, DEEPSEEK_TEMPLATE):
            settings = {"chat_template": model["template"]}
            model = {**model, "template": None}
        cache.add(repo, seed=seed, tokenizer_settings=settings, **model)
    openelm = {**MODELS["mlx-community/OpenELM-3B-Instruct-4bit"], "seed": len(MODELS) - 1}
    for variant, settings in TOKENIZER_SETTINGS.items():
        cache.add(f"org/OpenELM-{variant}", tokenizer_settings=settings, **openelm)
    cache.add("org/Custom-Code", model_file="model.py")
    settings = {"tokenizer_class": None, "auto_map": {"AutoTokenizer": [CUSTOM_TOKENIZER, None]}}
    cache.add("org/Custom-Tokenizer", tokenizer_settings=settings, without=["tokenizer.json"], **OPENELM)
    return cache


@pytest.fixture(scope="module")
def daemon(cache: ModelCache) -> Iterator[Daemon]:
    with daemons.running(cache.hub.parent) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def shared_client(daemon: Daemon) -> Iterator[OpenAI]:
    with OpenAI(base_url=daemon.url, api_key="not-needed", max_retries=0) as openai_client:
        yield openai_client


@pytest.fixture
def client(daemon: Daemon, shared_client: OpenAI, cache: ModelCache) -> Iterator[OpenAI]:
    """The official client. Afterwards, unloads all models and checks that no code from a model folder has run."""
    yield shared_client
    daemon.admin("POST", "/v0/unload", {})
    assert not cache.marker.exists()


def complete(client: OpenAI, model: str, *messages: ChatCompletionMessageParam) -> ChatCompletion:
    """Return a short completion after checking its fields."""
    response = client.chat.completions.create(model=model, messages=messages, max_tokens=4, temperature=0)
    assert model == response.model
    assert response.usage is not None
    assert 1 <= response.usage.completion_tokens <= 4
    assert response.choices[0].finish_reason in ("length", "stop")
    assert response.choices[0].message.content
    return response


def fingerprint(response: ChatCompletion) -> tuple[int, str | None]:
    """Return the prompt length and the output, which are equal for equal prompts."""
    assert response.usage is not None
    return response.usage.prompt_tokens, response.choices[0].message.content


def test_models_of_the_guide_are_listed_and_unusable_ones_are_not(client: OpenAI) -> None:
    assert PUBLISHED.keys() == MODELS.keys()
    assert SERVABLE == sorted(model.id for model in client.models.list().data)


@pytest.mark.parametrize(
    "repo", [pytest.param(repo, marks=pytest.mark.long) if repo in SIMILAR else repo for repo in MODELS]
)
def test_each_model_of_the_guide_generates_output(client: OpenAI, daemon: Daemon, repo: str) -> None:
    name = PUBLISHED[repo]
    _, models = daemon.admin("GET", "/v0/models")
    (listed,) = (model for model in models if model["name"] == name)

    assert repo == listed["repo"]
    assert MODELS[repo].get("model_type", "llama") == listed["architecture"]
    assert ("4-bit" if "group_size" in MODELS[repo] else None) == listed.get("quantization")
    # Only inequality holds: a template may have a default system message that is longer than the given one.
    assert fingerprint(complete(client, name, QUESTION)) != fingerprint(complete(client, name, SYSTEM, QUESTION))
    complete(client, name, QUESTION, {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nParis."}, QUESTION)
    assert (200, {"unloaded": [name]}) == daemon.admin("POST", "/v0/unload", {"model": name})


def test_system_message_is_merged_into_the_first_user_message_if_the_template_rejects_its_role(client: OpenAI) -> None:
    merged: ChatCompletionMessageParam = {"role": "user", "content": f"{SYSTEM['content']}\n\n{QUESTION['content']}"}

    assert fingerprint(complete(client, "gemma-2-2b-instruct", merged)) == fingerprint(
        complete(client, "gemma-2-2b-instruct", SYSTEM, QUESTION)
    )


def test_tokenizer_with_unnecessary_custom_code_loads_without_it(client: OpenAI, daemon: Daemon) -> None:
    expected = fingerprint(complete(client, OPENELM_NAME, QUESTION))

    for variant in TOKENIZER_SETTINGS:
        name = f"openelm-{variant}"
        assert expected == fingerprint(complete(client, name, QUESTION)), name
        daemon.admin("POST", "/v0/unload", {"model": name})


@pytest.mark.parametrize(("name", "reason"), UNUSABLE.items())
def test_model_that_requires_custom_code_is_not_served(client: OpenAI, daemon: Daemon, name: str, reason: str) -> None:
    _, models = daemon.admin("GET", "/v0/models")
    (listed,) = (model for model in models if model["name"] == name)

    assert ("unusable", reason) == (listed["state"], listed["reason"])
    with pytest.raises(NotFoundError) as caught:
        client.chat.completions.create(model=name, messages=[QUESTION])
    assert isinstance(caught.value.body, dict)
    assert f'`model`: model "{name}" is unusable: {reason}' == caught.value.body["message"]
    assert name not in [model.id for model in client.models.list().data]


def test_running_code_from_a_model_folder_creates_the_marker(cache: ModelCache) -> None:
    code = list(cache.hub.glob("models--*/snapshots/*/*.py"))

    assert len(CODE_FILES) * (len(SERVABLE) + len(UNUSABLE)) == len(code)
    for path in code:
        runpy.run_path(str(path))
        assert cache.marker.exists(), path
        cache.marker.unlink()
