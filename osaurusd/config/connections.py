"""The configuration sections about connections: `[server]` and `[limits]`."""

from typing import Annotated

import msgspec

from osaurusd.config.keys import KIB, MIB, Section, count, seconds, setting, size

SHUTDOWN_GRACE_SECONDS = 20.0
"""Default grace period. The service managers' stop timeouts in `launchd/` must be longer."""


class Server(Section, frozen=True):
    """`[server]`: listening addresses, access and shutdown."""

    host: Annotated[
        str,
        setting("Address to listen on. `localhost` means 127.0.0.1 and, where available, ::1", restart=True),
    ] = "localhost"
    port: Annotated[int, setting("TCP port. 0 picks a free port", ge=0, le=65535, restart=True)] = 8080
    allowed_hosts: Annotated[
        list[str], setting("Additional names accepted in the `Host` header, such as the name of a reverse proxy")
    ] = msgspec.field(default_factory=list)
    allowed_origins: Annotated[
        list[str],
        setting("Origins of web pages and desktop apps that may call the API, besides pages served from loopback"),
    ] = msgspec.field(default_factory=list)
    insecure: Annotated[bool, setting("Serve other machines without requiring an API key")] = False
    require_key: Annotated[bool, setting("Require an API key from every TCP client, including loopback clients")] = (
        False
    )
    trust_loopback: Annotated[
        bool,
        setting(
            "Do not require an API key from loopback clients. A reverse proxy on this machine is one, for all its users"
        ),
    ] = False
    tls_certificate: (
        Annotated[
            str,
            setting(
                "PEM file with the certificate and its chain. An absolute path, or one that starts with `~`",
                restart=True,
            ),
        ]
        | None
    ) = None
    tls_key: Annotated[str, setting("PEM file with the private key, without a passphrase", restart=True)] | None = None
    max_body_bytes: Annotated[int, size("Maximum size of a request body")] = 32 * MIB
    first_byte_seconds: Annotated[
        float,
        seconds(
            "A stream without output after this time sends its headers, and then a comment at least every 10 s. "
            "0: wait for the first output",
            ge=0,
        ),
    ] = 10.0
    shutdown_grace_seconds: Annotated[float, seconds("How long running requests may continue after SIGTERM", ge=0)] = (
        SHUTDOWN_GRACE_SECONDS
    )


class Limits(Section, frozen=True):
    """`[limits]`: how much of the shared resources clients may use."""

    max_connections: Annotated[
        int,
        count(
            "Open connections over TCP, and as many again over the Unix socket. "
            "The system's file descriptor limit may lower this",
            le=65_536,
        ),
    ] = 1024
    max_requests: Annotated[
        int, count("Running and waiting requests to models, over all models. Further requests get a 429")
    ] = 256
    max_buffered_bytes: Annotated[int, size("Memory for the bodies and images of all requests in progress")] = 256 * MIB
    max_request_line_bytes: Annotated[int, size("Maximum size of a request target", ge=256, le=MIB)] = 8 * KIB
    max_headers: Annotated[int, count("Maximum number of headers in a request", ge=16, le=10_000)] = 100
    max_header_bytes: Annotated[int, size("Maximum size of one header", ge=256, le=MIB)] = 16 * KIB
    max_head_bytes: Annotated[
        int, size("Maximum size of the request target and all headers together", ge=1024, le=16 * MIB)
    ] = 64 * KIB
    header_seconds: Annotated[
        float, seconds("Maximum time from the first byte of a request to the end of its headers", gt=0)
    ] = 20.0
    body_stall_seconds: Annotated[float, seconds("Maximum pause while a request body is received", gt=0)] = 30.0
    body_seconds: Annotated[float, seconds("Maximum time to receive a request body", gt=0)] = 300.0
    idle_seconds: Annotated[float, seconds("An idle connection is closed after this time", gt=0)] = 75.0
    websocket_idle_seconds: Annotated[float, seconds("An idle WebSocket is closed after this time", gt=0)] = 3600.0
    reader_stall_seconds: Annotated[
        float, seconds("A connection is closed if its client reads nothing of the response for this long", gt=0)
    ] = 60.0
    request_seconds: Annotated[
        float, seconds("Maximum duration of a request to a model, including queueing. 0: unlimited", ge=0)
    ] = 0.0
