"""The configuration schema: each key with its default, range, unit and description.

This is the only place that states them. The checks on load, `osaurusctl config` and the table in docs/configuration.md
derive from it.
"""

from typing import Annotated, Literal

import msgspec

from osaurusd.config.keys import GIB, KIB, MIB
from osaurusd.config.keys import count as _count
from osaurusd.config.keys import seconds as _seconds
from osaurusd.config.keys import setting as _setting
from osaurusd.config.keys import size as _bytes

SHUTDOWN_GRACE_SECONDS = 20.0
"""Default grace period. The service managers' stop timeouts in `launchd/` must be longer."""

MAX_IMAGES_BYTES = 256 * MIB
"""What a worker accepts with one request."""

MAX_PIXELS = 89_000_000
"""Above this size, the image library warns of a decompression bomb."""

BUDGET_FRACTION = 0.7
"""Default of `residency.budget_bytes`, as a share of the machine's memory."""


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the tables in the configuration file."""


class Server(Section, frozen=True):
    """`[server]`: listening addresses, access and shutdown."""

    host: Annotated[
        str,
        _setting("Address to listen on. `localhost` means 127.0.0.1 and, where available, ::1", restart=True),
    ] = "localhost"
    port: Annotated[int, _setting("TCP port. 0 picks a free port", ge=0, le=65535, restart=True)] = 8080
    allowed_hosts: Annotated[
        list[str], _setting("Additional names accepted in the `Host` header, such as the name of a reverse proxy")
    ] = []
    allowed_origins: Annotated[
        list[str],
        _setting("Origins of web pages and desktop apps that may call the API, besides pages served from loopback"),
    ] = []
    insecure: Annotated[bool, _setting("Serve other machines without requiring an API key")] = False
    require_key: Annotated[bool, _setting("Require an API key from every TCP client, including loopback clients")] = (
        False
    )
    trust_loopback: Annotated[
        bool,
        _setting(
            "Do not require an API key from loopback clients. A reverse proxy on this machine is one, for all its users"
        ),
    ] = False
    tls_certificate: (
        Annotated[
            str,
            _setting(
                "PEM file with the certificate and its chain. An absolute path, or one that starts with `~`",
                restart=True,
            ),
        ]
        | None
    ) = None
    tls_key: Annotated[str, _setting("PEM file with the private key, without a passphrase", restart=True)] | None = None
    max_body_bytes: Annotated[int, _bytes("Maximum size of a request body")] = 32 * MIB
    first_byte_seconds: Annotated[
        float,
        _seconds(
            "A stream without output after this time sends its headers, and then a comment at least every 10 s. "
            "0: wait for the first output",
            ge=0,
        ),
    ] = 10.0
    shutdown_grace_seconds: Annotated[float, _seconds("How long running requests may continue after SIGTERM", ge=0)] = (
        SHUTDOWN_GRACE_SECONDS
    )


class Limits(Section, frozen=True):
    """`[limits]`: how much of the shared resources clients may use."""

    max_connections: Annotated[
        int,
        _count(
            "Open connections over TCP, and as many again over the Unix socket. "
            "The system's file descriptor limit may lower this",
            le=65_536,
        ),
    ] = 1024
    max_requests: Annotated[
        int, _count("Running and waiting requests to models, over all models. Further requests get a 429")
    ] = 256
    max_buffered_bytes: Annotated[int, _bytes("Memory for the bodies of all requests in progress")] = 256 * MIB
    max_request_line_bytes: Annotated[int, _bytes("Maximum size of a request target", ge=256, le=MIB)] = 8 * KIB
    max_headers: Annotated[int, _count("Maximum number of headers in a request", ge=16, le=10_000)] = 100
    max_header_bytes: Annotated[int, _bytes("Maximum size of one header", ge=256, le=MIB)] = 16 * KIB
    max_head_bytes: Annotated[
        int, _bytes("Maximum size of the request target and all headers together", ge=1024, le=16 * MIB)
    ] = 64 * KIB
    header_seconds: Annotated[
        float, _seconds("Maximum time from the first byte of a request to the end of its headers", gt=0)
    ] = 20.0
    body_stall_seconds: Annotated[float, _seconds("Maximum pause while a request body is received", gt=0)] = 30.0
    body_seconds: Annotated[float, _seconds("Maximum time to receive a request body", gt=0)] = 300.0
    idle_seconds: Annotated[float, _seconds("An idle connection is closed after this time", gt=0)] = 75.0
    websocket_idle_seconds: Annotated[float, _seconds("An idle WebSocket is closed after this time", gt=0)] = 3600.0
    reader_stall_seconds: Annotated[
        float, _seconds("A connection is closed if its client reads nothing of the response for this long", gt=0)
    ] = 60.0
    request_seconds: Annotated[
        float, _seconds("Maximum duration of a request to a model, including queueing. 0: unlimited", ge=0)
    ] = 0.0


class Defaults(Section, frozen=True):
    """`[defaults]`: sampling parameters for requests that omit them."""

    temperature: Annotated[
        float,
        _setting(
            "Applies if the request sets none and the model's `generation_config.json` has no sampling parameters",
            ge=0,
            le=2,
        ),
    ] = 0.0
    top_p: Annotated[
        float,
        _setting("Applies if neither the request nor the model's `generation_config.json` sets it", gt=0, le=1),
    ] = 1.0
    max_tokens: (
        Annotated[
            int,
            _count("Maximum number of generated tokens when the request sets none. Unset: until the context is full"),
        ]
        | None
    ) = None


class Worker(Section, frozen=True):
    """`[worker]`: the processes that run models."""

    dequantize: Annotated[
        Literal["auto", "always", "never"],
        _setting("Whether a CPU backend computes in float32. `auto`: if the float32 weights fit into memory"),
    ] = "auto"
    blas: Annotated[
        str,
        _setting(
            "BLAS library preloaded into workers on Linux. `auto`: the system's OpenBLAS; `none`: MLX's own; or a path"
        ),
    ] = "auto"
    prefix_cache_bytes: (
        Annotated[
            int,
            _bytes(
                "Memory per worker for the KV cache of earlier prompts, which speeds up prompts with the same prefix. "
                "0: disabled. Unset: an eighth of the machine's memory",
                ge=0,
            ),
        ]
        | None
    ) = None
    max_waiting: Annotated[
        int, _count("Maximum number of requests queued for one model. Further requests get `queue_full`")
    ] = 64
    stall_seconds: Annotated[
        float,
        _seconds(
            "Maximum pause of running generations while a prompt is processed, or the time of six decode steps",
            gt=0,
            le=60,
        ),
    ] = 0.2
    wire: Annotated[
        Literal["auto", "never", "always"],
        _setting(
            "Whether macOS must keep weights in memory, which speeds up very large models but has caused kernel panics."
            " `auto`: weights over 60 % of the GPU's recommended limit"
        ),
    ] = "auto"
    load_timeout_seconds: Annotated[float, _seconds("A model load that takes longer fails", ge=0)] = 600.0
    stop_grace_seconds: Annotated[
        float, _seconds("Time between the shutdown request to a worker, SIGTERM and SIGKILL", ge=0)
    ] = 5.0


KeepAlive = Annotated[float, msgspec.Meta(ge=-1, le=10**9)]


class Residency(Section, frozen=True):
    """`[residency]`: which models stay in memory, and for how long."""

    budget_bytes: (
        Annotated[
            int,
            _bytes("Memory for all models, at most the GPU's recommended limit. Unset: 70 % of the machine's memory"),
        ]
        | None
    ) = None
    keep_alive_seconds: Annotated[
        float,
        _seconds("An idle model is unloaded after this time. 0: after its last request; -1: never", ge=-1, le=10**9),
    ] = 900.0
    keep_alive_by_model: Annotated[
        dict[str, KeepAlive], _setting("`keep_alive_seconds` for individual models, by name", unit="seconds")
    ] = {}
    wait_seconds: Annotated[
        float,
        _seconds(
            "How long a load waits for running requests to free memory before it fails with `insufficient_memory`",
            ge=0,
        ),
    ] = 60.0
    min_residency_seconds: Annotated[
        float, _seconds("How long a loaded model serves requests before another model may evict it", ge=0)
    ] = 10.0
    hang_seconds: Annotated[
        float, _seconds("A worker that has requests but makes no progress for this long is killed", gt=0)
    ] = 120.0
    standby_seconds: Annotated[
        float,
        _seconds(
            "How long a standby worker, with its imports done, is kept after a load to speed up the next one. "
            "0: no standby worker",
            ge=0,
        ),
    ] = 0.0


class Input(Section, frozen=True):
    """`[input]`: upper bounds for the parts of a request. A request that exceeds one gets a 400.

    Where OpenAI has a limit, the default is equal or higher: programs written for local models send more.
    """

    max_messages: Annotated[int, _count("Messages in a chat request")] = 4096
    max_parts: Annotated[int, _count("Content parts in a message")] = 2048
    max_tool_calls: Annotated[int, _count("Tool calls in a message")] = 128
    max_name_length: Annotated[
        int,
        _count(
            "Length of a model name, a message's `name`, a tool call's id or function name, and `tool_call_id`",
            unit="characters",
        ),
    ] = 256
    max_forced_calls: Annotated[
        int, _count("Tool calls in the response to a request that requires calls. The response then ends", le=128)
    ] = 4
    max_stop_strings: Annotated[int, _count("Stop strings")] = 16
    max_stop_length: Annotated[int, _count("Length of a stop string", unit="characters")] = 1024
    max_tools: Annotated[int, _count("Tools in a chat request")] = 128
    max_schema_bytes: Annotated[
        int,
        _count(
            "Size, as JSON, of a schema, of the `parameters` of all tools together, and of `chat_template_kwargs`",
            unit="bytes",
        ),
    ] = 128 * KIB
    max_schema_depth: Annotated[
        int,
        _count(
            "Nesting depth of a schema, of the `parameters` of a tool, and of `chat_template_kwargs`",
            unit="levels",
            le=400,
        ),
    ] = 100
    max_choices: Annotated[int, _count("Choices per request (`n`)", le=128)] = 8
    max_top_logprobs: Annotated[int, _count("`top_logprobs`, and `logprobs` of a completion", le=100)] = 20
    max_logit_bias: Annotated[int, _count("Entries in `logit_bias`")] = 1024
    max_prompts: Annotated[int, _count("Prompts in a completion request")] = 128
    max_question_bytes: Annotated[int, _bytes("Questions of a decision request, as JSON", le=16 * MIB)] = 4 * MIB
    max_inputs: Annotated[int, _count("Texts in an embedding request, and documents in a rerank request")] = 2048


class Structured(Section, frozen=True):
    """`[structured]`: structured output."""

    describe_schema: Annotated[
        bool,
        _setting(
            "Tell the model the JSON schema of a structured output, unless the messages of the request do. "
            "It is part of the prompt and counts as such"
        ),
    ] = True


class Vision(Section, frozen=True):
    """`[vision]`: images in requests. A request that exceeds a limit gets a 400."""

    allowed_url_hosts: Annotated[
        list[str],
        _setting(
            "Hosts from which the daemon downloads images that requests refer to by URL, such as `images.example.com`, "
            "`*.example.com` or `example.com:8443`. `*`: every host with a public address. Empty: no downloads"
        ),
    ] = []
    max_images: Annotated[int, _count("Images in a request", le=4096)] = 100
    max_image_bytes: Annotated[int, _bytes("Size of an image file", le=MAX_IMAGES_BYTES)] = 20 * MIB
    max_request_bytes: Annotated[int, _bytes("Size of all image files of a request together", le=MAX_IMAGES_BYTES)] = (
        64 * MIB
    )
    max_image_pixels: Annotated[
        int,
        _count("Width times height of an image, which is checked before it is decoded", unit="pixels", le=MAX_PIXELS),
    ] = 64_000_000
    url_timeout_seconds: Annotated[
        float, _seconds("Maximum time to download an image, including redirects", gt=0, le=300)
    ] = 10.0


class Log(Section, frozen=True):
    """`[log]`: what the daemon logs."""

    level: Annotated[Literal["debug", "info", "warning", "error"], _setting("Least severe level that is logged")] = (
        "info"
    )
    content: Annotated[bool, _setting("Also log prompts and generated text")] = False


class Models(Section, frozen=True):
    """`[models]`: where models are looked up."""

    roots: Annotated[
        list[str],
        _setting(
            "Read-only model folders. Each contains `NAME` or `ORG/NAME` folders, or is a model or a Hugging Face cache"
        ),
    ] = []
    rerankers: Annotated[list[str], _setting("Names of chat models that also serve `/v1/rerank`")] = []


class Responses(Section, frozen=True):
    """`[responses]`: OpenAI's Responses API."""

    max_bytes: Annotated[
        int,
        _bytes(
            "Memory for stored responses. Those that were not used for longest are dropped. 0: none is kept in memory",
            ge=0,
        ),
    ] = 64 * MIB
    store: Annotated[
        Literal["memory", "disk"],
        _setting("Where responses are stored. `disk`: they survive a restart of the daemon", restart=True),
    ] = "memory"
    max_disk_bytes: Annotated[
        int, _bytes("Disk space for stored responses. Those that were not used for longest are deleted")
    ] = GIB


class Ollama(Section, frozen=True):
    """`[ollama]`: Ollama's API."""

    allow_management: Annotated[
        bool, _setting("Let TCP clients of Ollama's API download, name and remove models, as Unix socket clients can")
    ] = False


class Pulls(Section, frozen=True):
    """`[pulls]`: downloads from the Hugging Face Hub."""

    connections: Annotated[int, _count("Connections per download", le=32)] = 6
    stall_seconds: Annotated[
        float, _seconds("A connection that receives nothing for this long is replaced", gt=0, le=3600)
    ] = 30.0
    patience_seconds: Annotated[
        float, _seconds("A download that receives nothing for this long, despite retries, fails", ge=0)
    ] = 1800.0
    disk_margin_bytes: Annotated[
        int, _bytes("Disk space that stays free. A download that needs more is rejected", ge=0)
    ] = GIB


class Config(Section, frozen=True):
    """The whole configuration."""

    default_model: Annotated[str, _setting("Model for `osaurusctl run` and for requests that name none")] | None = None
    default_for_unknown: Annotated[
        bool, _setting("Let `default_model` also serve requests that name an unknown model")
    ] = False
    models: Models = Models()
    server: Server = Server()
    limits: Limits = Limits()
    defaults: Defaults = Defaults()
    worker: Worker = Worker()
    residency: Residency = Residency()
    pulls: Pulls = Pulls()
    responses: Responses = Responses()
    ollama: Ollama = Ollama()
    input: Input = Input()
    structured: Structured = Structured()
    vision: Vision = Vision()
    log: Log = Log()
