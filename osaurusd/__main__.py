"""`osaurusd serve`: run the daemon in the foreground."""

import argparse
import faulthandler
import sys
from pathlib import Path

from osaurusd import __version__, app, config
from osaurusd.errors import OsaurusError
from osaurusd.wire import paths


def main() -> None:
    """Parse the command line, read the configuration and serve."""
    faulthandler.enable()
    arguments = _parser().parse_args()
    options = {("server", key): getattr(arguments, key) for key in ("host", "port", "insecure")}
    flags: dict[tuple[str, ...], object] = {key: value for key, value in options.items() if value is not None}
    try:
        places = paths.resolve()
        file = arguments.config or places.config_file
        app.run(lambda: config.load(file, flags=flags), places)
    except (OsaurusError, paths.SocketPathTooLong) as error:
        print(f"osaurusd: {error}", file=sys.stderr)  # noqa: T201  outside the block in which logging is configured
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="osaurusd", description="Serve MLX models over HTTP.")
    parser.add_argument("--version", action="version", version=f"osaurusd {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve in the foreground until SIGTERM or SIGINT")
    serve.add_argument("--host", help="address to listen on (default: localhost, IPv4 and IPv6)")
    serve.add_argument("--port", type=int, help="port to listen on (default: 8080)")
    serve.add_argument(
        "--insecure",
        action="store_const",
        const=True,
        help="serve other machines without requiring an API key",
    )
    serve.add_argument("--config", type=Path, help="configuration file (default: the user's config.toml)")
    return parser


if __name__ == "__main__":
    main()
