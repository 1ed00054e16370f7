"""Files of Ollama's own converter give the same networks, tokenizers and chats as the models that they come from."""

import json
import random
import shutil
from functools import partial

import mlx.core as mx
import pytest
from gguf import GGMLQuantizationType as Type
from mlx_lm.utils import load, load_model
from tokenizers import Tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from osaurusd.errors import ImportFailed
from osaurusd.imports.worker import check as checks
from osaurusd.imports.worker import gguf, vocabulary, weights
from osaurusd.imports.worker.importer import Options, import_model
from osaurusd.imports.worker.metadata import MAX_LAYERS
from osaurusd.wire.imports import CheckItem
from osaurusd.wire.quantization import ImportQuantization
from tests.osaurusd.worker.networks import select
from tests.osaurusd.worker.templates import COMPLETE, OWN

from .networks import CASES, HIDDEN, INNER, Network, write_file
from .ollama_files import Gemma3, GptOss, Multimodal, vision_tensors
from .test_families import PROMPT, check
from .test_importer import damage

USER = {"role": "user", "content": "hello"}
SYSTEM = {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": "he"}


@pytest.fixture
def imported(tmp_path, dest):
    """Imports a network; returns the folder and the notes."""

    def imported(network):
        notes = []
        import_model(network.write(tmp_path / "x.gguf"), dest, lambda *_: None, note=notes.append)
        return dest, notes

    return imported


def failure_of(network, tmp_path):
    dest = tmp_path / "failed"
    dest.mkdir(exist_ok=True)
    path = network.write(tmp_path / "x.gguf")
    with pytest.raises(ImportFailed) as caught:
        import_model(path, dest, lambda *_: None)
    assert checks.check(CheckItem(format="gguf", file="x.gguf"), path).reason
    return caught.value.message


def read(folder, name):
    return json.loads((folder / name).read_text())


# Networks


@pytest.mark.parametrize(
    ("variant", "kind"),
    [
        ("vision", Type.Q8_0),
        ("first", Type.Q8_0),
        ("text", Type.Q8_0),
        ("vision", Type.Q4_K),
        pytest.param("first", Type.Q4_K, marks=pytest.mark.long),
        pytest.param("text", Type.Q4_K, marks=pytest.mark.long),
    ],
)
def test_gemma_3_computes_the_same(tmp_path, variant, kind):
    check(Gemma3(variant, kind), tmp_path)


@pytest.mark.parametrize("variant", ["fused", "split", "renamed"])
def test_gpt_oss_computes_the_same(tmp_path, variant):
    check(GptOss(variant), tmp_path)


@pytest.mark.parametrize(
    ("model_type", "architecture", "split"),
    [("qwen2", "qwen25vl", ["HelloWorld", "Ġ", "1", "2"]), ("llama", "mistral3", ["Hello", "World", "Ġ", "1", "2"])],
)
def test_the_text_models_of_other_families_compute_the_same(tmp_path, model_type, architecture, split):
    network = Multimodal(model_type, architecture, "default")
    check(network, tmp_path)
    assert ["the image encoder is left out; the result accepts text only"] == read(tmp_path / "dest", "osaurus.json")[
        "notes"
    ]
    tokenizer = Tokenizer.from_file(str(tmp_path / "dest" / "tokenizer.json"))
    assert split == [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str("HelloWorld 12")]


@pytest.mark.parametrize("mode", [ImportQuantization.NONE, ImportQuantization.BITS_8])
def test_fused_experts_are_converted_to_other_formats(tmp_path, dest, mode):
    network = GptOss("fused")
    import_model(network.write(tmp_path / "x.gguf"), dest, lambda *_: None, Options(mode))
    model, _ = load_model(dest)
    model.set_dtype(mx.float32)
    network.model.set_dtype(mx.float32)
    expected = network.model(PROMPT)
    assert mx.allclose(model(PROMPT), expected, rtol=0.05, atol=0.05 * mx.abs(expected).max().item())


def test_the_experts_of_gpt_oss_keep_their_blocks(imported):
    folder, _ = imported(GptOss("fused"))
    matrices = {each["type"]: each for each in read(folder, "osaurus.json")["quantization"]["matrices"]}
    assert (matrices["MXFP4"]["count"], matrices["MXFP4"]["stored"], matrices["MXFP4"]["error"]) == (6, "mxfp4", 0.0)


# What is left out, and what is added


@pytest.mark.parametrize("variant", ["vision", "text"])
def test_what_the_model_lacks_and_what_is_added_is_noted_and_recorded(imported, variant):
    folder, notes = imported(Gemma3(variant))
    encoder = ["the image encoder is left out; the result accepts text only"] if variant == "vision" else []
    assert [*encoder, "the file has no chat template; a template for Gemma 3 is added"] == notes
    assert notes == read(folder, "osaurus.json")["notes"]


@pytest.mark.parametrize("build", [partial(Gemma3, "vision"), partial(GptOss, "fused")], ids=["gemma3", "gpt-oss"])
def test_such_a_model_is_listed_as_importable(tmp_path, build):
    network = build()
    result = checks.check(CheckItem(format="gguf", file="x.gguf"), network.write(tmp_path / "x.gguf"))
    assert (None, network.network.case.architecture) == (result.reason, result.architecture)


def test_a_template_in_the_file_is_kept(imported):
    network = Gemma3("vision")
    network.metadata["tokenizer.chat_template"] = "{{ messages[0].content }}"
    folder, notes = imported(network)
    assert "{{ messages[0].content }}" == (folder / "chat_template.jinja").read_text()
    assert ["the image encoder is left out; the result accepts text only"] == notes


@pytest.mark.parametrize("model_type", ["gemma3_text", "gpt_oss"])
def test_nothing_is_added_to_files_of_llama_cpp(imported, model_type):
    folder, notes = imported(Network(next(case for case in CASES if case.model_type == model_type), Type.Q8_0))
    assert [] == notes
    assert "notes" not in read(folder, "osaurus.json")
    assert not (folder / "chat_template.jinja").exists()


# Tokenizers


def test_texts_of_gemma_get_no_space_and_tags_are_single_tokens(imported):
    folder, _ = imported(Gemma3("vision"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def pieces(text):
        return tokenizer.encode(text, add_special_tokens=False).tokens

    assert ["hello", "▁w"] == pieces("hello w")
    turn = ["<start_of_turn>", "he", "\n", "hell", "<end_of_turn>"]
    assert turn == pieces("".join(turn))
    assert ["<table>", "he"] == pieces("<table>he")
    # Learned from text, not declared.
    assert "<i>" not in pieces("<i>")
    assert "<image_soft_token>" not in tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("build", "ends"),
    [(partial(Gemma3, "vision"), [1, 5]), (partial(Gemma3, "text"), [1, 5]), (partial(GptOss, "split"), [1, 2, 3])],
    ids=["turns", "declared", "gpt-oss"],
)
def test_all_end_tokens_end_an_output(imported, build, ends):
    folder, _ = imported(build())
    assert ends == read(folder, "generation_config.json")["eos_token_id"]


def test_gpt_oss_splits_words_like_its_own_tokenizer(imported):
    folder, _ = imported(GptOss("split"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    words = [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str("HelloWorld 12345")]
    assert ["Hello", "World", "Ġ", "123", "45"] == words


def test_padding_of_the_vocabulary_is_not_found_in_texts(imported):
    folder, _ = imported(GptOss("split"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert ["[", "P", "A", "D", "0", "]"] == tokenizer.encode("[PAD0]").tokens
    assert "[PAD1]" in tokenizer.get_vocab()


# Chat templates


def test_a_chat_with_gemma_has_the_turns_of_the_published_template(imported):
    folder, _ = imported(Gemma3("vision"))
    _, tokenizer = load(str(folder))
    text = tokenizer.apply_chat_template([SYSTEM, USER, ANSWER, USER], add_generation_prompt=True, tokenize=False)
    assert text == (
        "<bos><start_of_turn>user\nBe brief.\n\nhello<end_of_turn>\n<start_of_turn>model\nhe<end_of_turn>\n"
        "<start_of_turn>user\nhello<end_of_turn>\n<start_of_turn>model\n"
    )
    tokens = tokenizer.apply_chat_template([USER], add_generation_prompt=True)
    assert 1 == tokens.count(tokenizer.bos_token_id)


def render(template, messages, tools=None, **variables):
    options = {"chat_template": template, "add_generation_prompt": True, **variables}
    return render_jinja_template([messages], tools, **options)[0][0]


@pytest.mark.parametrize("messages", [[USER], [USER, ANSWER, USER], [SYSTEM, USER]], ids=["user", "answer", "system"])
@pytest.mark.parametrize("effort", [None, "high"])
def test_a_chat_with_gpt_oss_is_that_of_the_published_template(messages, effort):
    variables = {"reasoning_effort": effort} if effort else {}
    published = render(COMPLETE["gpt-oss"], messages, **variables)
    # The published template ends instructions with an empty line, unlike the description of the format.
    assert published.replace("\n\n<|end|>", "<|end|>") == render(OWN["own-gpt-oss"], messages, **variables)


@pytest.mark.parametrize(
    ("effort", "level"),
    [("none", "low"), ("minimal", "low"), ("medium", "medium"), ("xhigh", "high"), ("max", "high"), (None, "medium")],
)
def test_gpt_oss_gets_the_nearest_level_that_its_format_has(effort, level):
    assert f"\n\nReasoning: {level}\n\n" in render(OWN["own-gpt-oss"], [USER], reasoning_effort=effort)


def test_functions_are_declared_as_the_harmony_format_describes():
    properties = {
        "location": {"type": "string", "description": "The city and state", "default": "Paris"},
        "format": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
        "days": {"type": "array", "items": {"type": "integer"}},
        "hours": {"anyOf": [{"type": "number"}, {"type": "null"}]},
        "place": {"type": "object", "properties": {"x": {"type": ["string", "null"]}}, "required": ["x"]},
    }
    parameters = {"type": "object", "properties": properties, "required": ["location"]}
    tools = [
        {"type": "function", "function": {"name": "locate", "description": "Gets the place.", "parameters": {}}},
        {"type": "function", "function": {"name": "weather", "description": "Gets it.", "parameters": parameters}},
    ]
    text = render(OWN["own-gpt-oss"], [SYSTEM, USER], tools)
    assert text.split("<|start|>developer<|message|>")[1].split("<|end|>")[0] == (
        "# Instructions\n\nBe brief.\n\n# Tools\n\n## functions\n\nnamespace functions {\n\n"
        "// Gets the place.\ntype locate = () => any;\n\n"
        '// Gets it.\ntype weather = (_: {\n// The city and state\nlocation: string, // default: "Paris"\n'
        'format?: "celsius" | "fahrenheit", // default: celsius\n'
        "days?: number[],\nhours?: number | null,\nplace?: {\nx: string | null,\n},\n}) => any;\n\n"
        "} // namespace functions"
    )
    assert "must go to the commentary channel: 'functions'.<|end|>" in text


def test_reasoning_is_repeated_until_an_answer_follows_it():
    function = {"name": "look", "arguments": {"at": "it"}}
    call = {
        "role": "assistant",
        "content": "",
        "reasoning_content": "Hm.",
        "tool_calls": [{"id": "1", "function": function}],
    }
    result = {"role": "tool", "tool_call_id": "1", "content": "done"}
    during, after = (render(OWN["own-gpt-oss"], [USER, call, result, *rest]) for rest in ([], [ANSWER, USER]))
    expected = (
        '<|start|>assistant<|channel|>commentary to=functions.look <|constrain|>json<|message|>{"at": "it"}<|call|>'
        "<|start|>functions.look to=assistant<|channel|>commentary<|message|>done<|end|><|start|>assistant"
    )
    assert during.endswith(f"<|start|>assistant<|channel|>analysis<|message|>Hm.<|end|>{expected}")
    assert "Hm." not in after
    assert expected in after


# Malformed files


def test_an_image_encoder_without_a_text_model_is_rejected(tmp_path):
    network = Gemma3("vision")
    network.tensors = vision_tensors()
    assert "x.gguf: it contains an image encoder, but no text model" == failure_of(network, tmp_path)


def test_a_byte_level_tokenizer_of_gemma_is_rejected(tmp_path):
    network = Gemma3("text")
    network.metadata["tokenizer.ggml.model"] = "gpt2"
    assert 'x.gguf: the tokenizer "gpt2" is not supported for Gemma 3' == failure_of(network, tmp_path)


def test_an_embedding_model_is_rejected(tmp_path):
    network = Gemma3("vision")
    network.tensors["dense.0.weight"] = network.tensors["v.blk.0.attn_q.weight"]
    assert "it is an embedding model" in failure_of(network, tmp_path)


@pytest.mark.parametrize("name", ["blk.5.post_ffw_norm.weight", "token_embd.weight", "output_norm.weight"])
def test_a_missing_tensor_of_gemma_is_named(tmp_path, name):
    network = Gemma3("text")
    del network.tensors[name]
    assert f'x.gguf: the tensor "{name}" is missing' == failure_of(network, tmp_path)


def test_irregular_layers_of_gemma_are_rejected(tmp_path):
    network = Gemma3("text")
    network.metadata["gemma3.attention.sliding_window_pattern"] = [True, False, True, True, False, True]
    assert "are irregular" in failure_of(network, tmp_path)


def test_a_cap_of_logits_that_a_model_has_is_rejected(tmp_path):
    network = Gemma3("text")
    network.metadata["gemma3.final_logit_softcapping"] = 30.0
    assert '"gemma3.final_logit_softcapping" has the unsupported value 30' in failure_of(network, tmp_path)


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("attn_qkv.weight", lambda data: data[:-1]),
        ("attn_qkv.bias", lambda data: data[:-4]),
        ("ffn_gate_up_exps.weight", lambda data: data[:, :-1]),
        ("ffn_gate_up_exps.weight", lambda data: data[:, :-2]),
        ("ffn_gate_up_exps.weight", lambda data: data[0]),
        ("ffn_gate_up_exps.bias", lambda data: data[:, :-4]),
        ("ffn_gate_up_exps.bias", lambda data: data[0]),
    ],
)
def test_fused_tensors_of_another_shape_are_rejected(tmp_path, name, cut):
    network = GptOss("fused")
    data, kind = network.tensors[f"blk.1.{name}"]
    network.tensors[f"blk.1.{name}"] = (cut(data), kind)
    assert "has the shape" in failure_of(network, tmp_path)


@pytest.mark.parametrize(
    ("leaf", "shape"), [("weight", (4, 2, INNER, -1)), ("bias", (4, 2, INNER))], ids=["weight", "bias"]
)
def test_fused_experts_whose_rows_do_not_take_turns_are_rejected(tmp_path, leaf, shape):
    network = GptOss("fused")
    data, kind = network.tensors[f"blk.1.ffn_gate_up_exps.{leaf}"]
    if leaf == "bias":
        shape = (*shape[:-1], shape[-1] * 4)
    network.tensors[f"blk.1.ffn_gate_up_exps.{leaf}"] = (data.reshape(shape), kind)
    assert "has the shape" in failure_of(network, tmp_path)


@pytest.mark.parametrize("pattern", [[True] * 6, [False, True] * 3, [False, True] * 512, [False] * 5 + [True]], ids=len)
def test_a_pattern_that_no_layer_count_explains_is_rejected(tmp_path, pattern):
    network = Gemma3("text")
    network.metadata["gemma3.attention.sliding_window_pattern"] = pattern
    assert "are irregular" in failure_of(network, tmp_path)


def test_metadata_that_takes_long_to_check_is_rejected(tmp_path):
    network = GptOss("fused")
    network.metadata["gptoss.attention.head_count"] = [8] * (MAX_LAYERS + 1)
    assert '"gpt-oss.attention.head_count" is not one integer' in failure_of(network, tmp_path)
    network = Gemma3("text")
    network.metadata["gemma3.block_count"] = MAX_LAYERS + 1
    network.tensors |= {f"x{number}": network.tensors["output_norm.weight"] for number in range(MAX_LAYERS)}
    assert f"it declares {MAX_LAYERS + 1} layers, more than {MAX_LAYERS}" in failure_of(network, tmp_path)


def test_an_enormous_list_of_numbers_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "MAX_ARRAY_NUMBERS", 250)
    assert '"tokenizer.ggml.scores" has 279 numbers, more than 250' in failure_of(Gemma3("text"), tmp_path)


def test_an_enormous_vocabulary_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(vocabulary, "MAX_TOKENS", 250)
    assert "the vocabulary has 278 tokens, more than 250" in failure_of(Gemma3("text"), tmp_path)


@pytest.mark.parametrize("build", [partial(GptOss, "fused"), partial(Gemma3, "vision")], ids=["merges", "scores"])
def test_a_file_without_the_rules_of_its_tokenizer_is_not_listed_as_importable(tmp_path, build, request):
    network = build()
    key = f"tokenizer.ggml.{request.node.callspec.id}"
    del network.metadata[key]
    assert f'the metadata key "{key}" is missing' in failure_of(network, tmp_path)


# Numbers of bits differ only in what they round to.
@pytest.mark.parametrize(
    "mode", select(ImportQuantization, ImportQuantization.AUTO, ImportQuantization.NONE, ImportQuantization.BITS_4)
)
def test_fused_experts_read_in_pieces_are_the_same(tmp_path, dest, monkeypatch, mode):
    path = GptOss("fused").write(tmp_path / "x.gguf")
    import_model(path, dest, lambda *_: None, Options(mode))
    pieces = tmp_path / "pieces"
    pieces.mkdir()
    # Odd, so no multiple of a turn.
    monkeypatch.setattr(weights, "PIECE_WEIGHTS", 111 * HIDDEN)
    import_model(path, pieces, lambda *_: None, Options(mode))
    assert (dest / "model.safetensors").read_bytes() == (pieces / "model.safetensors").read_bytes()


@pytest.mark.parametrize("build", [partial(Gemma3, "vision"), partial(GptOss, "fused")], ids=["gemma3", "gpt-oss"])
@pytest.mark.parametrize("count", [12, pytest.param(300, marks=pytest.mark.long)])
def test_damaged_files_are_imported_or_rejected(tmp_path, build, count):
    rng = random.Random(count)
    path = build().write(tmp_path / "x.gguf")
    valid = path.read_bytes()
    messages = []
    for attempt in range(count):
        damage(path, valid, rng, rng.choice((2500, len(valid) // 8)))
        folder = tmp_path / f"dest{attempt}"
        folder.mkdir()
        try:
            import_model(path, folder, lambda *_: None)
        except ImportFailed as failure:
            messages.append(failure.message)
        shutil.rmtree(folder)
    assert len(messages) > count / 4
    assert all(message.startswith("x.gguf: ") for message in messages)


def test_experts_without_rows_are_rejected(tmp_path):
    network = GptOss("split")
    data, kind = network.tensors["blk.0.ffn_gate_exps.weight"]
    network.tensors["blk.0.ffn_gate_exps.weight"] = (data[0, 0], kind)
    assert "expert_feed_forward_length" in failure_of(network, tmp_path)


def test_a_missing_projection_of_gpt_oss_is_named(tmp_path):
    network = GptOss("split")
    del network.tensors["blk.1.attn_out.weight"]
    assert 'x.gguf: the tensor "blk.1.attn_output.weight" is missing' == failure_of(network, tmp_path)


def test_a_tensor_in_both_forms_is_rejected(tmp_path):
    network = GptOss("fused")
    network.tensors["blk.0.attn_q.weight"] = network.tensors["blk.0.attn_out.weight"]
    message = 'x.gguf: the tensor "blk.0.attn_q.weight" is also a part of "blk.0.attn_qkv.weight"'
    assert message == failure_of(network, tmp_path)


@pytest.mark.parametrize("ids", [[1, 5000], [-1], [0.5]], ids=str)
def test_end_tokens_outside_the_vocabulary_are_rejected(tmp_path, ids):
    network = Gemma3("text")
    network.metadata["tokenizer.ggml.eos_token_ids"] = ids
    assert "tokenizer.ggml.eos_token_ids contains" in failure_of(network, tmp_path)


@pytest.mark.parametrize("architecture", ["mllama", "olmo3", "glmocr"])
def test_other_formats_of_ollama_are_rejected_by_name(tmp_path, architecture):
    network = Network(CASES[0], Type.Q8_0)
    path = write_file(tmp_path / "x.gguf", architecture, network.tokenizer, network.tensors)
    reason = checks.check(CheckItem(format="gguf", file="x.gguf"), path).reason
    assert f'the architecture "{architecture}" is Ollama\'s own format, which is not supported' in reason


def test_scaled_positions_of_mistral_3_are_rejected(tmp_path):
    network = Multimodal("llama", "mistral3", "tekken")
    network.metadata |= {"mistral3.rope.scaling.factor": 16.0, "mistral3.rope.scaling_beta": 0.1}
    assert '"mistral3.rope.scaling.factor" is not supported for Mistral 3' in failure_of(network, tmp_path)


def test_an_image_encoder_beside_another_text_model_is_rejected(tmp_path):
    network = Network(CASES[0], Type.Q8_0)
    network.tensors |= vision_tensors()
    assert 'Ollama\'s own format of the architecture "llama"' in failure_of(network, tmp_path)
