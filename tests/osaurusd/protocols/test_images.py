"""Images in the requests of every protocol: parsing, transport to the worker, and rejection by their fields."""

import base64
import contextlib
import json

import msgspec
import pytest
from aiohttp import ClientSession

from osaurusd.config import Config
from osaurusd.http.app import create_app
from osaurusd.inference.request import ImagePart, TextPart
from osaurusd.models import vision
from osaurusd.rpc import messages
from tests.images import PNG, data_url
from tests.osaurusd.http.serve import serving
from tests.osaurusd.models import disk

from .helpers import MODEL, REPO, STORED_BYTES, client_groups, running_backend

FIRST, SECOND = b"the first file", b"the second file"
FILES = (FIRST, SECOND)
URLS = tuple(map(data_url, FILES))


def encoded(file):
    return base64.b64encode(file).decode()


def user(*content):
    return [{"role": "user", "content": [*content]}]


def chat_image(image):
    return {"type": "image_url", "image_url": {"url": image, "detail": "low"}}


def chat(text, images):
    return {"messages": user({"type": "text", "text": text}, *map(chat_image, images))}


def responses(text, images):
    parts = [{"type": "input_image", "image_url": image, "detail": "low"} for image in images]
    return {"input": user({"type": "input_text", "text": text}, *parts)}


def anthropic_image(image):
    if image.startswith("http"):
        return {"type": "image", "source": {"type": "url", "url": image}}
    _, _, data = image.rpartition(",")
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}


def anthropic(text, images):
    return {"max_tokens": 9, "messages": user({"type": "text", "text": text}, *map(anthropic_image, images))}


def ollama_chat(text, images):
    data = [image.rpartition(",")[2] for image in images]
    return {"messages": [{"role": "user", "content": text, "images": data}], "stream": False}


def ollama_generate(text, images):
    return {"prompt": text, "images": [image.rpartition(",")[2] for image in images], "stream": False}


BODIES = {
    "/v1/chat/completions": (chat, "messages[0].content[{}].image_url.url"),
    "/v1/responses": (responses, "input[0].content[{}].image_url"),
    "/v1/messages": (anthropic, "messages[0].content[{}].source.data"),
    "/api/chat": (ollama_chat, "messages[0].images[{}]"),
    "/api/generate": (ollama_generate, "images[{}]"),
}
PATHS = list(BODIES)


def field(path, number):
    """Return the path of the field with an image."""
    return BODIES[path][1].format(number if path.startswith("/api") else number + 1)


class Served:
    """A server with a model that a fake worker runs.

    Attributes:
        config: replacing it is a reload.
    """

    def __init__(self, config):
        self.config = config
        self.server = self.folder = None

    async def post(self, path, body):
        """Return the status and the text of the response."""
        content = json.dumps({"model": MODEL, **body}).encode()
        response = await self.server.request("POST", path, "Content-Type: application/json", body=content)
        return response.status, response.body.decode()

    async def send(self, path, text="hello", images=URLS):
        """Send a text with images."""
        return await self.post(path, BODIES[path][0](text, images))

    @property
    def received(self):
        """The last request with images that the worker has received, and their files."""
        content = json.loads((self.folder / "images.json").read_bytes())
        frame = msgspec.convert(content["request"], messages.ToWorker)
        return frame.request, [base64.b64decode(blob) for blob in content["blobs"]]


@contextlib.asynccontextmanager
async def running(tmp_path, served, download=None, **settings):
    async with running_backend(tmp_path, REPO, config=lambda: served.config, download=download, **settings) as backend:
        (served.folder,) = backend.folders
        disk.write(served.folder, {"processor_config.json": b"{}", "chat_template.jinja": b"{{ messages }}"})
        await backend.catalog.refresh()
        app = create_app(client_groups(backend), lambda: served.config)
        async with serving(app, served.config) as served.server:
            yield served


@pytest.fixture
def packages(monkeypatch):
    """The packages for images are installed."""
    monkeypatch.setattr(vision, "vision_available", lambda: True)
    monkeypatch.setattr(vision, "_is_implemented", lambda architecture: True)


@pytest.fixture
async def served(tmp_path, packages):
    async with running(tmp_path, Served(Config()), model_type="smolvlm", vision_config={}) as served:
        yield served


def limited(**limits):
    return msgspec.convert({"vision": limits}, Config)


@pytest.mark.parametrize("path", PATHS)
async def test_files_reach_the_worker_unchanged_and_in_their_order(served, path):
    status, text = await served.send(path)
    assert (200, True) == (status, "hello" in text)

    request, blobs = served.received

    assert list(FILES) == blobs
    parts = request.prompt.messages[-1].content
    images = [part for part in parts if isinstance(part, ImagePart)]
    assert [0, 1] == [image.blob for image in images]
    assert [TextPart(text="hello")] == [part for part in parts if not isinstance(part, ImagePart)]
    detail = "low" if path in ("/v1/chat/completions", "/v1/responses") else "auto"
    assert {detail} == {image.detail for image in images}


TOOL_RESULTS = {
    "/v1/responses": {
        "input": [
            {"role": "user", "content": "Look."},
            {"type": "function_call", "call_id": "c", "name": "camera", "arguments": "{}"},
            {
                "type": "function_call_output",
                "call_id": "c",
                "output": [{"type": "input_image", "image_url": data_url(FIRST)}],
            },
        ]
    },
    "/v1/chat/completions": {
        "messages": [
            {"role": "user", "content": "Look."},
            {
                "role": "assistant",
                "tool_calls": [{"id": "c", "type": "function", "function": {"name": "camera", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "c", "content": [chat_image(data_url(FIRST))]},
        ]
    },
    "/v1/messages": {
        "max_tokens": 9,
        "messages": [
            {"role": "user", "content": "Look."},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "camera", "input": {}}]},
            *user({"type": "tool_result", "tool_use_id": "c", "content": [anthropic_image(data_url(FIRST))]}),
        ],
    },
    "/api/chat": {
        "stream": False,
        "messages": [
            {"role": "user", "content": "Look."},
            {"role": "assistant", "tool_calls": [{"function": {"name": "camera", "arguments": {}}}]},
            {"role": "tool", "tool_name": "camera", "content": "", "images": [encoded(FIRST)]},
        ],
    },
}


@pytest.mark.parametrize("path", TOOL_RESULTS)
async def test_result_of_a_tool_can_have_an_image(served, path):
    assert 200 == (await served.post(path, TOOL_RESULTS[path]))[0]

    request, blobs = served.received

    assert [FIRST] == blobs
    (result,) = request.prompt.messages[-1].tool_results
    assert ("camera", 0) == (result.name, result.content[-1].blob)


@pytest.mark.parametrize("path", PATHS)
async def test_image_that_the_worker_rejects_is_named(served, path):
    status, text = await served.send(path, "damaged")

    assert (400, True) == (status, f"`{field(path, 1)}`: no" in text)


INVALID = {
    "data:image/png;base64,AAAAA": "not valid base64",
    "data:image/png;base64,AA==AAAA": "not valid base64",
    "data:image/png;base64,AA-_": 'not valid base64: it contains "-"; send the content of the file in standard base64',
    "data:image/png;base64,AA%3D": 'not valid base64: it contains "%"',
    "data:image/png;base64,zwölf": 'not valid base64: it contains "ö"',
    "data:image/png;base64,": "the image is empty",
}


@pytest.mark.parametrize("path", PATHS)
async def test_text_that_is_not_base64_is_rejected(served, path):
    for image, reason in INVALID.items():
        status, text = await served.send(path, images=[data_url(FIRST), image])
        assert (400, True, True) == (status, reason in text.replace('\\"', '"'), f"`{field(path, 1)}`" in text)
    assert not (served.folder / "received").exists()


@pytest.mark.parametrize(
    "image",
    [
        "file:///etc/passwd",
        "data:image/png,raw",
        "ftp://example.com/x.png",
        "data:text/html;charset=utf-8,x",
        "urn:x:y",
    ],
)
async def test_other_url_is_rejected(served, image):
    status, text = await served.send("/v1/chat/completions", images=[image])

    assert (400, True) == (status, "must be a `data:` URL" in text)


async def test_local_path_is_never_opened(served, tmp_path):
    file = tmp_path / "photo.png"
    file.write_bytes(PNG)

    status, text = await served.send("/v1/chat/completions", images=[str(file)])

    assert (400, True) == (status, "not valid base64" in text)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
async def test_download_is_rejected_unless_a_host_is_allowed(served, path):
    status, text = await served.send(path, images=["https://images.example.com/x.png"])

    assert (400, True) == (status, "`vision.allowed_url_hosts`" in text)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
async def test_downloaded_file_reaches_the_worker(tmp_path, packages, path):
    requested = []

    async def download(url, settings):
        requested.append(url)
        return SECOND

    config = limited(allowed_url_hosts=["images.example.com"])
    async with running(tmp_path, Served(config), download, model_type="smolvlm", vision_config={}) as served:
        url = "https://images.example.com/x.png"
        assert 200 == (await served.send(path, images=[data_url(FIRST), url]))[0]

        assert [url] == requested
        assert list(FILES) == served.received[1]


LIMITS = [
    ({"max_images": 1}, "the request has 2 images; at most 1 are allowed (`vision.max_images`)"),
    ({"max_image_bytes": 14}, "the image has 15 bytes; at most 14 are allowed (`vision.max_image_bytes`)"),
    ({"max_request_bytes": 28}, "at most 28 are allowed (`vision.max_request_bytes`)"),
]


@pytest.mark.parametrize("path", PATHS)
async def test_each_limit_has_its_own_error(served, path):
    for limits, reason in LIMITS:
        served.config = limited(**limits)
        status, text = await served.send(path)
        assert (400, True, True) == (status, reason in text, f"`{field(path, 1)}`" in text)


async def test_images_at_the_limits_are_accepted(served):
    served.config = limited(max_images=2, max_image_bytes=15, max_request_bytes=29)

    assert 200 == (await served.send("/v1/chat/completions"))[0]


@pytest.mark.parametrize(
    ("path", "field_of_detail"),
    [
        ("/v1/chat/completions", "messages[0].content[1].image_url.detail"),
        ("/v1/responses", "input[0].content[1].detail"),
    ],
)
async def test_unknown_detail_is_rejected(served, path, field_of_detail):
    body = BODIES[path][0]("x", [data_url(FIRST)])
    content = json.dumps(body).replace('"low"', '"tiny"')
    status, text = await served.post(path, json.loads(content))

    assert (400, True) == (status, f"`{field_of_detail}`: must be one of `auto`, `low`, `high`, `original`" in text)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {"messages": user({"type": "image_url"})}, "messages[0].content[0].image_url"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "system", "content": [chat_image("AAAA")]}]},
            "messages[0].content[0]",
        ),
        ("/v1/responses", {"input": user({"type": "input_image", "file_id": "file_1"})}, "input[0].content[0].file_id"),
        (
            "/v1/messages",
            {"max_tokens": 9, "messages": user({"type": "image", "source": {"type": "file", "file_id": "f"}})},
            "messages[0].content[0].source.type",
        ),
        (
            "/v1/messages",
            {"max_tokens": 9, "messages": user({"type": "image", "source": {"type": "base64"}})},
            "messages[0].content[0].source.data",
        ),
        ("/api/chat", {"messages": [{"role": "system", "content": "x", "images": ["AAAA"]}]}, "messages[0].images"),
        ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": [1]}]}, "messages[0].images[0]"),
        ("/api/generate", {"prompt": "x", "images": "AAAA"}, "images"),
    ],
)
async def test_image_in_the_wrong_place_or_form_is_named(served, path, body, param):
    status, text = await served.post(path, body)

    assert (400, True) == (status, f"`{param}`" in text)


REFUSALS = [
    ({"model_type": "llama"}, "it is a text model"),
    ({"model_type": "gemma4", "vision_config": {}}, "images of the architecture `gemma4` are not supported"),
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("settings", "reason"), REFUSALS)
async def test_model_that_cannot_see_is_named_with_the_reason(tmp_path, packages, path, settings, reason):
    async with running(tmp_path, Served(Config()), **settings) as served:
        status, text = await served.send(path)

    assert (400, True, True) == (status, reason in text, f"`{field(path, 0)}`" in text)
    if path.startswith("/v1/chat"):
        assert "image_input_unsupported" == json.loads(text)["error"]["code"]


async def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(vision, "vision_available", lambda: False)
    async with running(tmp_path, Served(Config()), model_type="pixtral", vision_config={}) as served:
        status, text = await served.send("/v1/chat/completions")

    assert (400, True) == (status, vision.EXTRA in text)


@pytest.mark.parametrize("path", ["/v1/messages/count_tokens", "/v1/responses/input_tokens"])
async def test_tokens_of_a_prompt_with_images_are_counted(served, path):
    base = path.rpartition("/")[0]

    assert 200 == (await served.post(path, BODIES[base][0]("x", [data_url(FIRST)])))[0]
    assert [FIRST] == served.received[1]


async def test_images_of_earlier_turns_are_sent_again(served):
    status, text = await served.send("/v1/responses", images=[data_url(FIRST)])
    assert 200 == status
    turn = {**responses("again", [data_url(SECOND)]), "previous_response_id": json.loads(text)["id"]}

    assert 200 == (await served.post("/v1/responses", turn))[0]

    assert list(FILES) == served.received[1]


async def test_lists_of_models_tell_what_they_see(served):
    models = (await served.server.request("GET", "/v1/models")).json["data"]
    catalog = (await served.server.request("GET", "/v1/models?client_version=1")).json["models"]
    shown = await served.post("/api/show", {"model": MODEL})

    assert [["text", "image"]] * 2 == [models[0]["input_modalities"], catalog[0]["input_modalities"]]
    assert "vision" in json.loads(shown[1])["capabilities"]


async def test_images_count_against_the_bytes_of_stored_responses(served):
    status, text = await served.send("/v1/responses", images=[data_url(bytes(STORED_BYTES))])
    assert 200 == status
    turn = {"input": "again", "previous_response_id": json.loads(text)["id"]}

    assert "previous_response_not_found" in (await served.post("/v1/responses", turn))[1]


async def test_images_of_a_conversation_reach_the_worker(served):
    items = responses("look", [data_url(FIRST)])["input"]
    conversation = json.loads((await served.post("/v1/conversations", {"items": items}))[1])["id"]

    assert 200 == (await served.post("/v1/responses", {"input": "again", "conversation": conversation}))[0]

    assert [FIRST] == served.received[1]


async def test_image_over_a_websocket_reaches_the_worker(served):
    async with ClientSession() as session, session.ws_connect(f"{served.server.url}/v1/responses") as socket:
        await socket.send_json({"type": "response.create", "model": MODEL, **responses("hello", [data_url(FIRST)])})
        while (await socket.receive_json())["type"] != "response.completed":
            pass
        await socket.send_json({"type": "response.create", "model": MODEL, **responses("damaged", URLS)})
        error = await socket.receive_json()

    assert ("error", 400, field("/v1/responses", 1)) == (error["type"], error["status"], error["error"]["param"])
