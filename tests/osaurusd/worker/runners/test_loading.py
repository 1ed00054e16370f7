"""Loading models whose files mlx_lm or transformers misread as they are."""

import json
import os
import shutil
import tempfile

import pytest

from osaurusd.rpc import messages
from osaurusd.worker.runners.folder import loadable
from osaurusd.worker.runners.loading import load_model_folder

from .layouts import TEMPLATE, TEXT, TOKENIZER_CLASSES, Parts


@pytest.fixture(scope="module")
def parts():
    return Parts()


@pytest.fixture
def folder(parts, tmp_path):
    """A small model with the plainest files."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(parts.config))
    (path / "model.safetensors").write_bytes(parts.whole[False])
    (path / "tokenizer.json").write_bytes(parts.tokenizers["json"]["tokenizer.json"])
    return path


def load(folder):
    return load_model_folder(messages.Load(path=str(folder))).tokenizer


def text_of(tokenizer):
    return tokenizer.decode(tokenizer.encode(TEXT, add_special_tokens=False))


def test_regular_folder_is_loaded_in_place(folder):
    with loadable(folder) as path:
        assert folder == path


@pytest.mark.parametrize("name", ["[a]", "a*?", "{x}[!y]"])
def test_pattern_characters_in_the_path_are_literal(folder, name):
    assert text_of(load(folder.rename(folder.with_name(name)))) == TEXT


def test_temporary_folder_may_contain_pattern_characters(folder, tmp_path, monkeypatch):
    (tmp_path / "[tmp]").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "[tmp]"))
    assert text_of(load(folder.rename(tmp_path / "[model]"))) == TEXT


def test_temporary_folder_is_removed_and_the_model_unchanged(folder, tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    folder = folder.rename(tmp_path / "[model]")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    load(folder)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert [] == list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_json_in_any_encoding_of_unicode_is_read(folder, encoding):
    for path in folder.glob("*.json"):
        path.write_text(path.read_text(), encoding)
    assert text_of(load(folder)) == TEXT


def test_byte_order_mark_does_not_become_part_of_the_chat_template(folder):
    (folder / "chat_template.jinja").write_text(TEMPLATE, "utf-8-sig")
    assert load(folder).chat_template == TEMPLATE


@pytest.mark.parametrize("name", ["chat_template.json", "processor_config.json"])
def test_template_of_older_processors_is_used(folder, name):
    (folder / name).write_text(json.dumps({"chat_template": TEMPLATE}))
    tokenizer = load(folder)
    assert tokenizer.chat_template == TEMPLATE
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert rendered == "<user>Hi"


def test_named_templates_of_older_processors_are_used(folder):
    templates = [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": "x"}]
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": templates}))
    assert load(folder).chat_template == {"default": TEMPLATE, "tool_use": "x"}


@pytest.mark.parametrize("default", ["chat_template.jinja", "tokenizer_config.json", None])
def test_named_templates_in_files_are_used_beside_the_default_one(folder, default):
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("<tools>")
    if default == "chat_template.jinja":
        (folder / default).write_text(TEMPLATE)
    elif default:
        (folder / default).write_text(json.dumps({"chat_template": TEMPLATE}))
    expected = {"tool_use": "<tools>"} | ({"default": TEMPLATE} if default else {})
    assert load(folder).chat_template == expected


@pytest.mark.parametrize("content", ["{}", '{"a": 1}', '{"version": "1.0"', "", "[]"])
def test_damaged_tokenizer_is_one_clear_line(folder, content):
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"the tokenizer cannot be loaded; its files may be damaged: .") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json"])
def test_other_templates_take_precedence_over_those_of_processors(folder, name):
    (folder / "chat_template.json").write_text('{"chat_template": "other"}')
    text = TEMPLATE if name.endswith(".jinja") else json.dumps({"chat_template": TEMPLATE})
    (folder / name).write_text(text)
    assert load(folder).chat_template == TEMPLATE


@pytest.mark.parametrize("name", [*TOKENIZER_CLASSES, "PreTrainedTokenizerBase", "SiglipTokenizer"])
def test_tokenizer_is_used_without_a_class_that_cannot_load_it(folder, name):
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    assert TEXT.split()[0] in text_of(load(folder))


@pytest.mark.parametrize(
    "content", ["", "[]", "null", '{"eos', "[" * 100_000], ids=["empty", "array", "null", "cut", "deep"]
)
def test_damaged_generation_config_is_ignored(folder, content):
    (folder / "generation_config.json").write_text(content)
    assert text_of(load(folder)) == TEXT


def test_tokenizer_without_a_vocabulary_is_an_error(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    with pytest.raises(ValueError, match="the tokenizer has no vocabulary"):
        load(folder)


def test_links_of_the_folder_are_followed(folder, tmp_path):
    store = shutil.copytree(folder, tmp_path / "store")
    linked = tmp_path / "[linked]"
    linked.mkdir()
    for path in store.iterdir():
        (linked / path.name).symlink_to(os.path.relpath(path, linked))
    assert text_of(load(linked)) == TEXT
