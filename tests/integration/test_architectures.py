"""The eight models that the guide names, each in its real architecture, with code in every folder that must never run.

The weights are tiny and random, so what is answered does not matter; that there is an answer does.
"""

import json
import runpy
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import NotFoundError, OpenAI
from openai.types.chat import ChatCompletion

from osaurusd.models.names import PUBLISHED
from tests import daemons
from tests.daemons import Daemon
from tests.models import make_tiny
from tests.osaurusd.models.disk import write_hub

QUESTION = {"role": "user", "content": "What is the capital of France?"}
SYSTEM = {"role": "system", "content": "You are terse."}

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
    "{%- for message in messages %}{%- if message['role'] == 'user' %}{{'<｜User｜>' + message['content']}}{%- endif %}"  # noqa: RUF001  as the model spells it
    "{%- if message['role'] == 'assistant' and message['content'] is not none %}{% set content = message['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor -%}"  # noqa: RUF001  as the model spells it
    "{% if add_generation_prompt %}{{'<｜Assistant｜><think>\\n'}}{% endif %}"  # noqa: RUF001  as the model spells it
)

LLAMA3_ROPE = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "head_dim": 32,
    "rope_theta": 500000.0,
    "rope_scaling": LLAMA3_ROPE,
    "max_position_embeddings": 131072,
    "eos_token_id": [2, 0],
    "template": LLAMA_TEMPLATE,
}
QWEN = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 64,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "use_sliding_window": False,
}
GEMMA = {
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
OPENELM = {
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
MODELS = {
    "mlx-community/Llama-3.2-3B-Instruct-4bit": {**LLAMA, "hidden_size": 64, "group_size": 64},
    "mlx-community/Llama-3.2-1B-Instruct-4bit": LLAMA,
    "mlx-community/Qwen2.5-7B-Instruct-4bit": {**QWEN, "group_size": 64, "tie_word_embeddings": False},
    "mlx-community/Qwen2.5-3B-Instruct-4bit": {**QWEN, "group_size": 32},
    "mlx-community/gemma-2-9b-it-4bit": {**GEMMA, "num_attention_heads": 4, "group_size": 64},
    "mlx-community/gemma-2-2b-it-4bit": GEMMA,
    "mlx-community/DeepSeek-R1-Distill-Qwen-1.5B-4bit": {**QWEN, "group_size": 64, "template": DEEPSEEK_TEMPLATE},
    "mlx-community/OpenELM-3B-Instruct-4bit": {**OPENELM, "group_size": 64},
}

PLAIN_OPENELM = PUBLISHED["mlx-community/OpenELM-3B-Instruct-4bit"]
OWN_TOKENIZER = "tokenization_openelm.OpenELMTokenizer"
# What tokenizer_config.json says in repos whose tokenizer.json makes the code that it names unnecessary.
TOKENIZER_SETTINGS = {
    "no-class": {"tokenizer_class": None, "auto_map": {"AutoTokenizer": [OWN_TOKENIZER, None]}},
    "own-class": {"tokenizer_class": "OpenELMTokenizer", "auto_map": [OWN_TOKENIZER, OWN_TOKENIZER]},
    "known-class": {"tokenizer_class": "LlamaTokenizer", "auto_map": {"AutoTokenizer": [None, OWN_TOKENIZER]}},
}
SERVABLE = sorted([*PUBLISHED.values(), *(f"openelm-{variant}" for variant in TOKENIZER_SETTINGS)])

UNUSABLE = {
    "own-code": "the model requires custom code (`model_file`), which osaurusd never runs",
    "own-tokenizer": "the tokenizer requires custom code (`auto_map`), which osaurusd never runs",
}
CODE = ("configuration_openelm.py", "modeling_openelm.py", "tokenization_openelm.py", "model.py")


class Shelf:
    """A Hugging Face cache to put models into. Any code in them that runs leaves the file `marker` behind."""

    def __init__(self, hub: Path, tokenizer: Path) -> None:
        self.hub = hub
        self.marker = hub.parent / "code-has-run"
        self._tokenizer = tokenizer

    def add(self, repo, *, tokenizer_settings=None, without=(), **model) -> None:
        """Lay a repo down.

        Args:
            repo: its id.
            tokenizer_settings: what differs in tokenizer_config.json; None takes a key away.
            without: names of files to leave out.
            model: what `make_tiny` is to make.
        """
        with tempfile.TemporaryDirectory() as made:
            folder = make_tiny(Path(made), self._tokenizer, **model)
            files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in without}
        settings = {**json.loads(files["tokenizer_config.json"]), **(tokenizer_settings or {})}
        settings = {key: value for key, value in settings.items() if value is not None}
        trap = f"from pathlib import Path\nPath({str(self.marker)!r}).touch()\n"
        code = {name: f"# {name} of {repo}\n{trap}".encode() for name in CODE}
        write_hub(self.hub, repo, {**files, "tokenizer_config.json": json.dumps(settings).encode(), **code})


@pytest.fixture(scope="module")
def shelf(smollm_folder: Path) -> Iterator[Shelf]:
    home = Path(tempfile.mkdtemp(prefix="osaurus-", dir="/tmp"))
    shelf = Shelf(home / "hub", smollm_folder)
    for seed, (repo, model) in enumerate(MODELS.items()):
        # Gemma and DeepSeek keep their templates where repos had them before chat_template.jinja was thought of.
        inside = model.get("template") in (GEMMA_TEMPLATE, DEEPSEEK_TEMPLATE)
        settings = {"chat_template": model["template"]} if inside else {}
        shelf.add(repo, seed=seed, tokenizer_settings=settings, **(model | ({"template": None} if inside else {})))
    alike = {**MODELS["mlx-community/OpenELM-3B-Instruct-4bit"], "seed": len(MODELS) - 1}
    for variant, settings in TOKENIZER_SETTINGS.items():
        shelf.add(f"org/OpenELM-{variant}", tokenizer_settings=settings, **alike)
    shelf.add("org/Own-Code", model_file="model.py")
    own = {"tokenizer_class": None, "auto_map": {"AutoTokenizer": [OWN_TOKENIZER, None]}}
    shelf.add("org/Own-Tokenizer", tokenizer_settings=own, without=["tokenizer.json"], **OPENELM)
    yield shelf
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def daemon(shelf: Shelf) -> Iterator[Daemon]:
    with daemons.running(shelf.hub.parent) as daemon:
        yield daemon


@pytest.fixture
def client(daemon: Daemon, shelf: Shelf) -> Iterator[OpenAI]:
    """The official client; after each test all models are unloaded, and no code in any folder has run."""
    with OpenAI(base_url=daemon.url, api_key="not-needed", max_retries=0) as openai_client:
        yield openai_client
    daemon.admin("POST", "/v0/unload", {})
    assert not shelf.marker.exists()


def ask(client: OpenAI, model: str, *messages: dict[str, str]) -> ChatCompletion:
    """A short answer, checked for being one."""
    response = client.chat.completions.create(model=model, messages=messages, max_tokens=4, temperature=0)
    assert model == response.model
    assert response.usage is not None
    assert 1 <= response.usage.completion_tokens <= 4
    assert response.choices[0].finish_reason in ("length", "stop")
    assert response.choices[0].message.content
    return response


def gist(response: ChatCompletion) -> tuple[int, str | None]:
    """What is the same for the same prompt."""
    return response.usage.prompt_tokens, response.choices[0].message.content


def test_the_list_has_the_guides_names_and_only_what_can_be_served(client: OpenAI) -> None:
    assert PUBLISHED.keys() == MODELS.keys()
    assert SERVABLE == sorted(model.id for model in client.models.list().data)


@pytest.mark.parametrize("repo", MODELS)
def test_each_model_of_the_guide_answers(client: OpenAI, daemon: Daemon, repo: str) -> None:
    name = PUBLISHED[repo]
    _, models = daemon.admin("GET", "/v0/models")
    (listed,) = (model for model in models if model["name"] == name)

    assert repo == listed["repo"]
    assert MODELS[repo].get("model_type", "llama") == listed["architecture"]
    assert ("4-bit" if "group_size" in MODELS[repo] else None) == listed.get("quantization")
    # A template may have a system text of its own for chats without one, longer than ours.
    assert gist(ask(client, name, QUESTION)) != gist(ask(client, name, SYSTEM, QUESTION))
    ask(client, name, QUESTION, {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nParis."}, QUESTION)
    assert (200, {"unloaded": [name]}) == daemon.admin("POST", "/v0/unload", {"model": name})


def test_a_template_that_refuses_the_system_role_gets_its_text_with_the_first_turn(client: OpenAI) -> None:
    together = {"role": "user", "content": f"{SYSTEM['content']}\n\n{QUESTION['content']}"}

    assert gist(ask(client, "gemma-2-2b-instruct", together)) == gist(
        ask(client, "gemma-2-2b-instruct", SYSTEM, QUESTION)
    )


def test_a_tokenizer_that_names_code_loads_without_it(client: OpenAI, daemon: Daemon) -> None:
    expected = gist(ask(client, PLAIN_OPENELM, QUESTION))

    for variant in TOKENIZER_SETTINGS:
        name = f"openelm-{variant}"
        assert expected == gist(ask(client, name, QUESTION)), name
        daemon.admin("POST", "/v0/unload", {"model": name})


@pytest.mark.parametrize(("name", "reason"), UNUSABLE.items())
def test_a_model_that_needs_its_own_code_is_not_served(client: OpenAI, daemon: Daemon, name: str, reason: str) -> None:
    _, models = daemon.admin("GET", "/v0/models")
    (listed,) = (model for model in models if model["name"] == name)

    assert ("unusable", reason) == (listed["state"], listed["reason"])
    with pytest.raises(NotFoundError) as caught:
        client.chat.completions.create(model=name, messages=[QUESTION])
    assert f"the model `{name}` is unusable: {reason}" == caught.value.body["message"]
    assert name not in [model.id for model in client.models.list().data]


def test_the_code_in_the_folders_would_have_been_noticed(shelf: Shelf) -> None:
    code = list(shelf.hub.glob("models--*/snapshots/*/*.py"))

    assert len(CODE) * (len(SERVABLE) + len(UNUSABLE)) == len(code)
    for path in code:
        runpy.run_path(str(path))
        assert shelf.marker.exists(), path
        shelf.marker.unlink()
