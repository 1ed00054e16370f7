"""`osaurusd serve`: the daemon in the foreground."""

import argparse
import faulthandler
import sys
from pathlib import Path
from typing import NoReturn

from osaurusd import __version__, app, config
from osaurusd.errors import OsaurusError
from osaurusd.wire import paths


def main() -> None:
    """Parse the command line, read the configuration, serve."""
    faulthandler.enable()
    arguments = _parser().parse_args()
    try:
        places = paths.resolve()
        flags = {("server", key): getattr(arguments, key) for key in ("host", "port", "insecure")}
        given = {key: value for key, value in flags.items() if value is not None}
        file = arguments.config or places.config_file
        app.run(lambda: config.load(file, flags=given), places)
    except paths.SocketPathTooLong as error:
        _fail(str(error))
    except OsaurusError as error:
        _fail(error.message)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="osaurusd", description="Serve MLX models to OpenAI clients.")
    parser.add_argument("--version", action="version", version=f"osaurusd {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve in the foreground until told to stop")
    serve.add_argument("--host", help="address to listen on (default: localhost, both families)")
    serve.add_argument("--port", type=int, help="port to listen on (default: 8080)")
    serve.add_argument(
        "--insecure",
        action="store_const",
        const=True,
        help="let anyone who can connect use it without an API key, other machines too",
    )
    serve.add_argument("--config", type=Path, help="TOML file to read instead of the usual one")
    return parser


def _fail(message: str) -> NoReturn:
    print(f"osaurusd: {message}", file=sys.stderr)  # noqa: T201  before and after logging, this is how to say it
    sys.exit(1)


if __name__ == "__main__":
    main()
