"""What looks like a secret is taken out of texts, and what does not is left alone."""

import pytest

from osaurusd.redaction import redacted, redacted_fields

SECRET = "s3cretPLANTED0123456789"


@pytest.mark.parametrize(
    ("text", "rest"),
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
def test_secrets_are_taken_out_and_the_rest_stays(text, rest):
    assert rest == redacted(text)


def test_redacting_twice_is_redacting_once():
    text = f"Authorization: Bearer {SECRET} at https://u:{SECRET}@h/p?token={SECRET} with hf_{SECRET}"
    once = redacted(text)
    assert SECRET not in once
    assert once == redacted(once)


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
def test_what_is_no_secret_stays(text):
    assert text == redacted(text)


def test_fields_are_redacted_however_deep_and_by_their_names():
    fields = {
        "event": f"asked with hf_{SECRET}",
        "token": SECRET,
        "headers": {"Authorization": SECRET, "host": "a"},
        "tried": [f"http://u:{SECRET}@h/", 1, None, True, 1.5],
        "error": ValueError(f"Bearer {SECRET}"),
        "tokens": 5,
    }

    assert {
        "event": "asked with hf_[redacted]",
        "token": "[redacted]",
        "headers": {"Authorization": "[redacted]", "host": "a"},
        "tried": ["http://[redacted]@h/", 1, None, True, 1.5],
        "error": "ValueError('Bearer [redacted]')",
        "tokens": 5,
    } == redacted_fields(fields)


def test_a_long_text_takes_no_longer_than_its_length():
    """No rule may search again from every character of a prompt that is logged."""
    for text in ("://" * 200_000, "token " * 100_000, "a" * 500_000 + "://", "x-" * 200_000, "-key" * 100_000 + "="):
        redacted(text)
