"""The configuration schema: each key with its default, range, unit and description.

This package is the only place that states them. The checks on load, `osaurusctl config` and the table in
docs/configuration.md derive from it.
"""

from typing import Annotated, Literal

import msgspec

from osaurusd.config.connections import Limits, Server
from osaurusd.config.distributed import Distributed
from osaurusd.config.keys import GIB, KIB, MIB, Section, count, seconds, setting, size

MAX_IMAGES_BYTES = 256 * MIB
"""What a worker accepts with one request."""

MAX_PIXELS = 89_000_000
"""Above this size, the image library warns of a decompression bomb."""

BUDGET_FRACTION = 0.7
"""Default of `residency.budget_bytes`, as a share of the machine's memory."""


class Defaults(Section, frozen=True):
    """`[defaults]`: sampling parameters for requests that omit them."""

    temperature: Annotated[
        float,
        setting(
            "Applies if the request sets none and the model's `generation_config.json` has no sampling parameters",
            ge=0,
            le=2,
        ),
    ] = 0.0
    top_p: Annotated[
        float,
        setting("Applies if neither the request nor the model's `generation_config.json` sets it", gt=0, le=1),
    ] = 1.0
    max_tokens: (
        Annotated[
            int,
            count("Maximum number of generated tokens when the request sets none. Unset: until the context is full"),
        ]
        | None
    ) = None


class Worker(Section, frozen=True):
    """`[worker]`: the processes that run models."""

    dequantize: Annotated[
        Literal["auto", "always", "never"],
        setting("Whether a CPU backend computes in float32. `auto`: if the float32 weights fit into memory"),
    ] = "auto"
    blas: Annotated[
        str,
        setting(
            "BLAS library preloaded into workers on Linux. `auto`: the system's OpenBLAS; `none`: MLX's own; or a path"
        ),
    ] = "auto"
    prefix_cache_bytes: (
        Annotated[
            int,
            size(
                "Memory per worker for the KV cache of earlier prompts, which speeds up prompts with the same prefix. "
                "0: disabled. Unset: an eighth of the machine's memory",
                ge=0,
            ),
        ]
        | None
    ) = None
    max_waiting: Annotated[
        int, count("Maximum number of requests queued for one model. Further requests get `queue_full`")
    ] = 64
    stall_seconds: Annotated[
        float,
        seconds(
            "Maximum pause of running generations while a prompt is processed, or the time of six decode steps",
            gt=0,
            le=60,
        ),
    ] = 0.2
    wire: Annotated[
        Literal["auto", "never", "always"],
        setting(
            "Whether macOS must keep weights in memory, which speeds up very large models but has caused kernel panics."
            " `auto`: weights over 60 % of the GPU's recommended limit"
        ),
    ] = "auto"
    load_timeout_seconds: Annotated[float, seconds("A model load that takes longer fails", ge=0)] = 600.0
    stop_grace_seconds: Annotated[
        float, seconds("Time between the shutdown request to a worker, SIGTERM and SIGKILL", ge=0)
    ] = 5.0


KeepAlive = Annotated[float, msgspec.Meta(ge=-1, le=10**9)]


class Residency(Section, frozen=True):
    """`[residency]`: which models stay in memory, and for how long."""

    budget_bytes: (
        Annotated[
            int,
            size("Memory for all models, at most the GPU's recommended limit. Unset: 70 % of the machine's memory"),
        ]
        | None
    ) = None
    keep_alive_seconds: Annotated[
        float,
        seconds("An idle model is unloaded after this time. 0: after its last request; -1: never", ge=-1, le=10**9),
    ] = 900.0
    keep_alive_by_model: Annotated[
        dict[str, KeepAlive], setting("`keep_alive_seconds` for individual models, by name", unit="seconds")
    ] = msgspec.field(default_factory=dict)
    wait_seconds: Annotated[
        float,
        seconds(
            "How long a load waits for running requests to free memory before it fails with `insufficient_memory`",
            ge=0,
        ),
    ] = 60.0
    min_residency_seconds: Annotated[
        float, seconds("How long a loaded model serves requests before another model may evict it", ge=0)
    ] = 10.0
    hang_seconds: Annotated[
        float, seconds("A worker that has requests but makes no progress for this long is killed", gt=0)
    ] = 120.0
    standby_seconds: Annotated[
        float,
        seconds(
            "How long a standby worker, with its imports done, is kept after a load to speed up the next one. "
            "0: no standby worker",
            ge=0,
        ),
    ] = 0.0


class Input(Section, frozen=True):
    """`[input]`: upper bounds for the parts of a request. A request that exceeds one gets a 400.

    Where OpenAI has a limit, the default is equal or higher: programs written for local models send more.
    """

    max_messages: Annotated[int, count("Messages in a chat request")] = 4096
    max_parts: Annotated[int, count("Content parts in a message")] = 2048
    max_tool_calls: Annotated[int, count("Tool calls in a message")] = 128
    max_name_length: Annotated[
        int,
        count(
            "Length of a model name, a message's `name`, a tool call's id or function name, and `tool_call_id`",
            unit="characters",
        ),
    ] = 256
    max_forced_calls: Annotated[
        int, count("Tool calls in the response to a request that requires calls. The response then ends", le=128)
    ] = 4
    max_stop_strings: Annotated[int, count("Stop strings")] = 16
    max_stop_length: Annotated[int, count("Length of a stop string", unit="characters")] = 1024
    max_tools: Annotated[int, count("Tools in a chat request")] = 128
    max_schema_bytes: Annotated[
        int,
        count(
            "Size, as JSON, of a schema, of the `parameters` of all tools together, and of `chat_template_kwargs`",
            unit="bytes",
        ),
    ] = 128 * KIB
    max_schema_depth: Annotated[
        int,
        count(
            "Nesting depth of a schema, of the `parameters` of a tool, and of `chat_template_kwargs`",
            unit="levels",
            le=400,
        ),
    ] = 100
    max_choices: Annotated[int, count("Choices per request (`n`)", le=128)] = 8
    max_top_logprobs: Annotated[int, count("`top_logprobs`, and `logprobs` of a completion", le=100)] = 20
    max_logit_bias: Annotated[int, count("Entries in `logit_bias`")] = 1024
    max_prompts: Annotated[int, count("Prompts in a completion request")] = 128
    max_question_bytes: Annotated[int, size("Questions of a decision request, as JSON", le=16 * MIB)] = 4 * MIB
    max_inputs: Annotated[int, count("Texts in an embedding request, and documents in a rerank request")] = 2048


class Structured(Section, frozen=True):
    """`[structured]`: structured output."""

    describe_schema: Annotated[
        bool,
        setting(
            "Tell the model the JSON schema of a structured output, unless the messages of the request do. "
            "It is part of the prompt and counts as such"
        ),
    ] = True


class Vision(Section, frozen=True):
    """`[vision]`: images in requests. A request that exceeds a limit gets a 400."""

    allowed_url_hosts: Annotated[
        list[str],
        setting(
            "Hosts from which the daemon downloads images that requests refer to by URL, such as `images.example.com`, "
            "`*.example.com` or `example.com:8443`. `*`: every host with a public address. Empty: no downloads"
        ),
    ] = msgspec.field(default_factory=list)
    max_images: Annotated[int, count("Images in a request", le=4096)] = 100
    max_image_bytes: Annotated[int, size("Size of an image file", le=MAX_IMAGES_BYTES)] = 20 * MIB
    max_request_bytes: Annotated[int, size("Size of all image files of a request together", le=MAX_IMAGES_BYTES)] = (
        64 * MIB
    )
    max_image_pixels: Annotated[
        int,
        count("Width times height of an image, which is checked before it is decoded", unit="pixels", le=MAX_PIXELS),
    ] = 64_000_000
    feature_cache_bytes: Annotated[
        int,
        size(
            "Size of the features of recent images for each model, so that a known image is not encoded again; 0: none",
            ge=0,
        ),
    ] = 256 * MIB
    url_timeout_seconds: Annotated[
        float, seconds("Maximum time to download an image, including redirects", gt=0, le=300)
    ] = 10.0


class Log(Section, frozen=True):
    """`[log]`: what the daemon logs."""

    level: Annotated[Literal["debug", "info", "warning", "error"], setting("Least severe level that is logged")] = (
        "info"
    )
    content: Annotated[bool, setting("Also log prompts and generated text")] = False


class Models(Section, frozen=True):
    """`[models]`: where models are looked up."""

    roots: Annotated[
        list[str],
        setting(
            "Read-only model folders. Each contains `NAME` or `ORG/NAME` folders, or is a model or a Hugging Face cache"
        ),
    ] = msgspec.field(default_factory=list)
    rerankers: Annotated[list[str], setting("Names of chat models that also serve `/v1/rerank`")] = msgspec.field(
        default_factory=list
    )


class Responses(Section, frozen=True):
    """`[responses]`: OpenAI's Responses API."""

    max_bytes: Annotated[
        int,
        size(
            "Memory for stored responses. Those that were not used for longest are dropped. 0: none is kept in memory",
            ge=0,
        ),
    ] = 64 * MIB
    store: Annotated[
        Literal["memory", "disk"],
        setting("Where responses are stored. `disk`: they survive a restart of the daemon", restart=True),
    ] = "memory"
    max_disk_bytes: Annotated[
        int, size("Disk space for stored responses. Those that were not used for longest are deleted")
    ] = GIB


class Ollama(Section, frozen=True):
    """`[ollama]`: Ollama's API."""

    allow_management: Annotated[
        bool, setting("Let TCP clients of Ollama's API download, name and remove models, as Unix socket clients can")
    ] = False


class Pulls(Section, frozen=True):
    """`[pulls]`: downloads from the Hugging Face Hub."""

    connections: Annotated[int, count("Connections per download", le=32)] = 6
    stall_seconds: Annotated[
        float, seconds("A connection that receives nothing for this long is replaced", gt=0, le=3600)
    ] = 30.0
    retry_seconds: Annotated[
        float, seconds("How long a download that receives nothing is retried before it fails", ge=0)
    ] = 1800.0
    disk_margin_bytes: Annotated[
        int, size("Disk space that stays free. A download that needs more is rejected", ge=0)
    ] = GIB


class Config(Section, frozen=True):
    """The whole configuration."""

    default_model: Annotated[str, setting("Model for `osaurusctl run` and for requests that name none")] | None = None
    default_for_unknown: Annotated[
        bool, setting("Let `default_model` also serve requests that name an unknown model")
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
    distributed: Distributed = Distributed()
    log: Log = Log()
