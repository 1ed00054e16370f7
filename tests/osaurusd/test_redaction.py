"""Secrets are masked, and other text is unchanged."""

import pytest

from osaurusd.redaction import redact, redact_fields

SECRET = "s3cretPLANTED0123456789"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"token hf_{SECRET} refused", "token hf_[redacted] refused"),
        (f"key 'sk-proj-{SECRET}'", "key 'sk-[redacted]'"),
        (f"sk-osaurus-{SECRET}, and more", "sk-[redacted], and more"),
        (f"Authorization: Bearer {SECRET}", "Authorization: Bearer [redacted]"),
        (f"b'authorization: basic {SECRET}=='", "b'authorization: basic [redacted]'"),
        (f"{{'Authorization': 'Bearer {SECRET}'}}", "{'Authorization': 'Bearer [redacted]'}"),
        (f"bearer  {SECRET}", "bearer [redacted]"),
        (f"X-Api-Key: {SECRET}", "X-Api-Key: [redacted]"),
        (f"HF_TOKEN={SECRET} MLX_X=1", "HF_TOKEN=[redacted] MLX_X=1"),
        (f'{{"token":"{SECRET}","model":"a"}}', '{"token":"[redacted]","model":"a"}'),
        (f'{{\\"token\\": \\"{SECRET}\\"}}', '{\\"token\\": \\"[redacted]\\"}'),
        (f"api_key={SECRET}&x=1", "api_key=[redacted]&x=1"),
        (f"password: {SECRET}", "password: [redacted]"),
        (f"http://user:{SECRET}@proxy:3128 refuses", "http://[redacted]@proxy:3128 refuses"),
        (f"socks5h://{SECRET}@proxy", "socks5h://[redacted]@proxy"),
        (
            f"url='https://cdn.example/a/b?Expires=1&Signature={SECRET}&Key-Pair-Id=K'",
            "url='https://cdn.example/a/b?[redacted]'",
        ),
        (f"/a/b?X-Amz-Signature={SECRET}&X-Amz-Date=1", "/a/b?X-Amz-Signature=[redacted]&X-Amz-Date=[redacted]"),
        (f"?sig={SECRET}", "?sig=[redacted]"),
        (f"Cookie: session={SECRET}", "Cookie: [redacted]"),
    ],
)
def test_secrets_are_masked_and_the_rest_is_unchanged(text, expected):
    assert expected == redact(text)


def test_redaction_is_idempotent():
    text = f"Authorization: Bearer {SECRET} at https://u:{SECRET}@h/p?token={SECRET} with hf_{SECRET}"
    once = redact(text)
    assert SECRET not in once
    assert once == redact(once)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "serving",
        "max_tokens: 512, prompt_tokens=12",
        "the token budget is 12",
        "what is a token: how long is it? and a secret: is it kept?",
        "a key that is unknown: `server.porrt`",
        "http://localhost:8080/v1/models",
        "['http://127.0.0.1:8080', 'http://[::1]:8080']",
        "unix:///tmp/x.sock is in the way; is that right?",
        "half_life of a task-scheduler",
        "mlx-community/Llama-3.2-1B-Instruct-4bit@main",
        "basic arithmetic",
        "tokenizer.json: missing",
        "what is https://chat.example? it is an origin",
    ],
)
def test_text_without_secrets_is_unchanged(text):
    assert text == redact(text)


def test_nested_fields_are_redacted_by_content_and_by_name():
    fields = {
        "event": f"called with hf_{SECRET}",
        "token": SECRET,
        "headers": {"Authorization": SECRET, "host": "a"},
        "tried": [f"http://u:{SECRET}@h/", 1, None, True, 1.5],
        "error": ValueError(f"Bearer {SECRET}"),
        "tokens": 5,
    }

    assert {
        "event": "called with hf_[redacted]",
        "token": "[redacted]",
        "headers": {"Authorization": "[redacted]", "host": "a"},
        "tried": ["http://[redacted]@h/", 1, None, True, 1.5],
        "error": "ValueError('Bearer [redacted]')",
        "tokens": 5,
    } == redact_fields(fields)


def test_redaction_runs_in_linear_time():
    """Logged prompts are long: no rule may backtrack from every character."""
    for text in ("://" * 200_000, "token " * 100_000, "a" * 500_000 + "://", "x-" * 200_000, "-key" * 100_000 + "="):
        redact(text)
