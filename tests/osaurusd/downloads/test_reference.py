"""References to repositories: names, revisions and URLs of the hub."""

import pytest

from osaurusd.downloads.reference import parse_reference
from osaurusd.errors import InvalidRequest

MIRROR = {"HF_ENDPOINT": "https://mirror.example:8443"}


@pytest.mark.parametrize(
    ("text", "name", "revision"),
    [
        ("qwen3-4b", "qwen3-4b", "main"),
        ("qwen3-4b@v2", "qwen3-4b", "v2"),
        ("org/Name@refs/pr/1", "org/Name", "refs/pr/1"),
        ("https://huggingface.co/org/Name", "org/Name", "main"),
        ("https://huggingface.co/org/Name/", "org/Name", "main"),
        (" HTTPS://HuggingFace.co/org/Name?not-for-all-audiences=true#readme ", "org/Name", "main"),
        ("https://huggingface.co/org/Name/tree/refs%2Fpr%2F1", "org/Name", "refs/pr/1"),
        ("https://huggingface.co/org/Name/tree/feature/x", "org/Name", "feature/x"),
        ("https://huggingface.co/org/Name/blob/v1/folder/config.json", "org/Name", "v1"),
        ("https://huggingface.co/org/Name/discussions/3", "org/Name", "main"),
        ("https://huggingface.co/org/Name@v3", "org/Name", "v3"),
        ("huggingface.co/org/Name", "org/Name", "main"),
        ("hf.co/org/Name", "org/Name", "main"),
        ("http://www.huggingface.co/org/Name", "org/Name", "main"),
        ("hf://org/Name", "org/Name", "main"),
        ("hf://models/org/Name@v1", "org/Name", "v1"),
        ("https://mirror.example:8443/org/Name", "org/Name", "main"),
    ],
)
def test_reference_is_a_name_and_a_revision(text, name, revision):
    assert parse_reference(text, MIRROR) == (name, revision)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("https://example.com/org/Name", "not a page of the Hugging Face Hub"),
        ("https://mirror.example:8443/org/Name", "not a page of the Hugging Face Hub"),
        ("file:///etc/passwd", "not a page of the Hugging Face Hub"),
        ("https://huggingface.co/datasets/org/Name", "not the page of a model"),
        ("https://huggingface.co/gpt2", "names no repository"),
        ("https://huggingface.co", "names no repository"),
        ("https://huggingface.co/org/..", "invalid repository"),
        ("https://huggingface.co/org/a%2Fb", "invalid repository"),
        ("hf.co/org/Name:Q4_K_M", "invalid repository"),
        ("https://huggingface.co/org/Name/tree/..%2F..", "invalid revision"),
        ("https://[::1/org/Name", "not a page of the Hugging Face Hub"),
        ("org/" + "x" * 300, "at most 200 characters"),
        ("a/b/c", "invalid repository"),
    ],
)
def test_other_text_is_rejected(text, message):
    with pytest.raises(InvalidRequest, match=message) as failure:
        parse_reference(text, {})
    assert ("model",) == failure.value.location
