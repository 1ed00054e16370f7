"""Images through every protocol and its official client, with a real daemon, worker and tiny vision-language model."""

import base64
import contextlib
import importlib
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import ollama
import openai
import psutil
import pytest
from openai import OpenAI
from PIL import Image

from tests import daemons
from tests.daemons import Daemon, ctl, wait_until
from tests.images import BAD_IMAGES, PNG, data_url, drawing, encode, png_bomb
from tests.models import make_tiny, skip_without_mlx_vlm
from tests.osaurusd.worker.runners.vision.tiny_models import tiny_vision_model

skip_without_mlx_vlm()

MODEL, BLIND = "eyes", "tiny"
QUESTION = "What is this?"
OTHER = encode(Image.effect_noise((64, 48), 90).convert("RGB"))
TOKENS = 8


@pytest.fixture(scope="module")
def daemon(module_home: Path, tiny_tokenizer: Path) -> Iterator[Daemon]:
    models = module_home / "models"
    tiny_vision_model("smolvlm", models / MODEL, tiny_tokenizer)
    make_tiny(models / BLIND, tiny_tokenizer)
    (module_home / "config.toml").write_text('[vision]\nallowed_url_hosts = ["*"]\n')
    with daemons.running(module_home) as running:
        yield running


@pytest.fixture(scope="module")
def client(daemon: Daemon) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{daemon.url}/v1", api_key="not-needed", max_retries=0) as openai_client:
        yield openai_client


def image_part(file: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(file)}}


def ask(client: OpenAI, *files: bytes, text: str = QUESTION, **options: Any) -> Any:
    content = [*map(image_part, files), {"type": "text", "text": text}]
    messages = [{"role": "user", "content": content}]
    return client.chat.completions.create(**{"model": MODEL, "messages": messages, "max_tokens": TOKENS, **options})


def ask_responses(daemon: Daemon, file: bytes) -> str:
    content = [{"type": "input_image", "image_url": data_url(file)}, {"type": "input_text", "text": QUESTION}]
    with OpenAI(base_url=f"{daemon.url}/v1", api_key="x", max_retries=0) as client:
        response = client.responses.create(
            model=MODEL, input=[{"role": "user", "content": content}], max_output_tokens=TOKENS
        )
    return response.output_text


def ask_anthropic(daemon: Daemon, file: bytes) -> str:
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(file).decode()}
    content = [{"type": "image", "source": source}, {"type": "text", "text": QUESTION}]
    anthropic = importlib.import_module("anthropic")  # takes seconds in each process that collects tests
    with anthropic.Anthropic(base_url=daemon.url, api_key="x", max_retries=0) as client:
        message = client.messages.create(
            model=MODEL, max_tokens=TOKENS, messages=[{"role": "user", "content": content}]
        )
    return message.content[0].text


def ask_ollama_chat(daemon: Daemon, file: bytes) -> str:
    with ollama.Client(daemon.url) as client:
        messages = [{"role": "user", "content": QUESTION, "images": [file]}]
        return client.chat(MODEL, messages, options={"num_predict": TOKENS}).message.content


def ask_ollama_generate(daemon: Daemon, file: bytes) -> str:
    with ollama.Client(daemon.url) as client:
        return client.generate(MODEL, QUESTION, images=[file], options={"num_predict": TOKENS}).response


def ask_langchain(daemon: Daemon, file: bytes) -> str:
    langchain_openai = importlib.import_module("langchain_openai")  # takes seconds, as well
    model = langchain_openai.ChatOpenAI(
        base_url=f"{daemon.url}/v1", api_key="x", model=MODEL, max_completion_tokens=TOKENS, max_retries=0
    )
    image = {"type": "image", "base64": base64.b64encode(file).decode(), "mime_type": "image/png"}
    message = {"role": "user", "content": [image, {"type": "text", "text": QUESTION}]}
    return str(model.invoke([message]).content)


# LangChain takes longer to import than all others together, and uses the protocol of OpenAI's client.
CLIENTS = [
    ask_responses,
    ask_anthropic,
    ask_ollama_chat,
    ask_ollama_generate,
    pytest.param(ask_langchain, marks=pytest.mark.long),
]


def worker(daemon: Daemon) -> tuple[int, int]:
    """Return the process id of the model's worker, and how many requests it serves."""
    workers = daemon.admin("GET", "/v0/workers")[1]
    return next((each["pid"], each["in_flight"]) for each in workers if each["model"] == MODEL)


@pytest.mark.parametrize("ask_other", CLIENTS)
def test_every_client_gets_the_same_answer_about_an_image(
    daemon: Daemon, client: OpenAI, ask_other: Callable[[Daemon, bytes], str]
) -> None:
    answers = [ask(client, file).choices[0].message.content for file in (PNG, OTHER)]

    assert answers == [ask_other(daemon, PNG), ask_other(daemon, OTHER)]
    assert answers[0] != answers[1]


def test_formats_that_decode_to_the_same_pixels_get_the_same_answer(client: OpenAI) -> None:
    answers = {ask(client, encode(drawing(), format_)).choices[0].message.content for format_ in ("PNG", "GIF")}

    assert 1 == len(answers)


def test_usage_counts_the_tokens_of_images(daemon: Daemon, client: OpenAI, anthropic: ModuleType) -> None:
    none, one, two = (ask(client, *files).usage.prompt_tokens for files in ([], [PNG], [PNG, PNG]))
    assert none < one < two
    assert two - one == one - none

    content = [{"type": "text", "text": QUESTION}]
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(PNG).decode()}
    with anthropic.Anthropic(base_url=daemon.url, api_key="x") as claude:
        counts = [
            claude.messages.count_tokens(model=MODEL, messages=[{"role": "user", "content": parts}]).input_tokens
            for parts in (content, [{"type": "image", "source": source}, *content])
        ]
    assert one - none == counts[1] - counts[0]


def test_low_detail_takes_fewer_tokens(client: OpenAI) -> None:
    def prompt_tokens(detail: str) -> int:
        image = {"type": "image_url", "image_url": {"url": data_url(OTHER), "detail": detail}}
        return ask(client, messages=[{"role": "user", "content": [image]}]).usage.prompt_tokens

    assert prompt_tokens("low") < prompt_tokens("high") == prompt_tokens("auto")


def test_second_question_about_an_image_continues_the_stored_response(client: OpenAI) -> None:
    content = [{"type": "input_text", "text": QUESTION}, {"type": "input_image", "image_url": data_url(OTHER)}]
    first = client.responses.create(model=MODEL, input=[{"role": "user", "content": content}], max_output_tokens=TOKENS)
    second = client.responses.create(
        model=MODEL, input="And now?", previous_response_id=first.id, max_output_tokens=TOKENS
    )

    assert second.usage.input_tokens > first.usage.input_tokens
    assert second.usage.input_tokens_details.cached_tokens > 0
    assert data_url(OTHER) in client.responses.input_items.with_raw_response.list(second.id).text


def test_bad_image_is_rejected_and_the_worker_lives(daemon: Daemon, client: OpenAI) -> None:
    before = ask(client, PNG).choices[0].message.content
    pid, _ = worker(daemon)

    for file in BAD_IMAGES.values():
        with pytest.raises(openai.BadRequestError) as raised:
            ask(client, PNG, file)
        assert "messages[0].content[1].image_url.url" == raised.value.param

    wait_until(lambda: (pid, 0) == worker(daemon))
    assert before == ask(client, PNG).choices[0].message.content


@pytest.mark.parametrize("ask_other", CLIENTS)
def test_every_client_gets_a_400_for_bad_images_and_the_worker_lives(
    daemon: Daemon, anthropic: ModuleType, ask_other: Callable[[Daemon, bytes], str]
) -> None:
    ask_other(daemon, PNG)
    pid, _ = worker(daemon)
    for problem in ("svg", "truncated jpeg", "bomb", "png header only"):
        with pytest.raises((openai.BadRequestError, anthropic.BadRequestError, ollama.ResponseError)) as raised:
            ask_other(daemon, BAD_IMAGES[problem])
        assert 400 == getattr(raised.value, "status_code")  # noqa: B009

    assert pid == worker(daemon)[0]


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1)])
def test_image_of_an_extreme_size_is_no_failure_of_the_daemon(client: OpenAI, size: tuple[int, int]) -> None:
    with contextlib.suppress(openai.BadRequestError):
        ask(client, encode(Image.new("RGB", size)))
    assert ask(client, PNG).usage.prompt_tokens > 0


def test_prompt_with_too_many_images_exceeds_the_context(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"2000 of them for images") as raised:
        ask(client, *[OTHER] * 100, text="word " * 3500)
    assert "context_length_exceeded" == raised.value.code


def test_model_without_vision_is_named(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match='"tiny" does not accept images: it is a text model') as raised:
        ask(client, PNG, model=BLIND)
    assert "image_input_unsupported" == raised.value.code


def test_url_of_this_machine_is_not_requested(daemon: Daemon, client: OpenAI) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        port = server.getsockname()[1]
        for host, port_text in (("127.0.0.1", ""), ("localhost", ""), ("127.0.0.1", f":{port}")):
            content = [{"type": "image_url", "image_url": {"url": f"http://{host}{port_text}/x.png"}}]
            with pytest.raises(openai.BadRequestError, match=r"public internet|allowed_url_hosts"):
                ask(client, messages=[{"role": "user", "content": content}])
        with pytest.raises(TimeoutError):
            server.accept()


def test_cli_asks_about_a_file(daemon: Daemon, client: OpenAI, tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(PNG)
    options = ("--image", str(tmp_path / "photo"), "--max-tokens", str(TOKENS), "--json")
    result = ctl(daemon.home, "run", MODEL, QUESTION, *options)
    text, image = {"type": "text", "text": QUESTION}, image_part(PNG)
    expected = ask(client, messages=[{"role": "user", "content": [text, image]}])

    answer = json.loads(result.stdout)
    assert expected.choices[0].message.content == answer["content"]
    assert expected.usage.prompt_tokens == answer["usage"]["prompt_tokens"]
    (tmp_path / "photo").write_bytes(BAD_IMAGES["truncated png"])
    result = ctl(daemon.home, "run", MODEL, QUESTION, *options[:2])
    assert (1, "error: the PNG image is damaged") == (result.returncode, result.stderr[:31])
    assert "vision" in ctl(daemon.home, "ls", MODEL).stdout


def test_lists_tell_what_a_model_sees(daemon: Daemon, client: OpenAI) -> None:
    models = {model.id: model.model_dump() for model in client.models.list()}
    assert ["text", "image"] == models[MODEL]["input_modalities"]
    assert "input_modalities" not in models[BLIND]
    with ollama.Client(daemon.url) as native:
        assert "vision" in native.show(MODEL).capabilities
        assert "vision" not in native.show(BLIND).capabilities
    details = daemon.admin("POST", "/v0/models/details", {"model": MODEL})[1]
    assert (True, True) == (details["vision"], details["model"]["vision"])


def test_image_of_many_megabytes_is_accepted_and_only_the_worker_keeps_it(daemon: Daemon, client: OpenAI) -> None:
    noise = encode(Image.effect_noise((2600, 2600), 100).convert("RGB"), compress_level=0)
    assert len(noise) > 20_000_000
    assert ask(client, noise).usage.prompt_tokens > 0
    process = psutil.Process(daemon.process.pid)
    before = process.memory_info().rss

    def measure() -> int | None:
        """Return the daemon's bytes while the worker answers; None if the answer was complete before."""
        with ask(client, noise, stream=True, max_tokens=2000) as chunks:
            next(iter(chunks))
            nbytes = int(process.memory_info().rss)
            return nbytes if 1 == worker(daemon)[1] else None

    # A busy machine may delay this process for so long that the answer is complete.
    assert next(filter(None, (measure() for _ in range(10)))) < before + len(noise) / 2


def test_memory_for_a_large_image_is_returned_by_the_worker(daemon: Daemon, client: OpenAI) -> None:
    """An image of 16 million pixels takes more than 60 MB while it is decoded and resized."""
    ask(client, PNG)
    process = psutil.Process(worker(daemon)[0])
    before = process.memory_info().rss

    assert ask(client, png_bomb(4000, 4000)).usage.prompt_tokens > 0

    assert process.memory_info().rss < before + 24 * 1024**2
