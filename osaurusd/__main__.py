"""`osaurusd serve`: run the daemon in the foreground."""

import argparse
import faulthandler
import gc
import sys
from pathlib import Path

from osaurusd import __version__
from osaurusd.wire import machine


def main() -> None:
    """Parse the command line and serve."""
    faulthandler.enable()
    arguments = _parser().parse_args()
    try:
        machine.check()
    except machine.UnsupportedMachine as error:
        sys.exit(f"osaurusd: {error}")
    # Nearly everything that imports create stays: looking for garbage would take a tenth of the start-up time.
    gc.disable()
    # `--version` and `--help` take a tenth of the time without the server.
    from osaurusd.lean_imports import without_ca_certificates  # noqa: PLC0415

    with without_ca_certificates():
        from osaurusd import serve  # noqa: PLC0415
    gc.freeze()
    gc.enable()
    options = {("server", key): getattr(arguments, key) for key in ("host", "port", "insecure")}
    serve.main(arguments.config, {key: value for key, value in options.items() if value is not None})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="osaurusd", description="Serve MLX models over HTTP.")
    parser.add_argument("--version", action="version", version=f"osaurusd {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve in the foreground until SIGTERM or SIGINT")
    serve.add_argument("--host", help="host name or address to listen on (default: `server.host`)")
    serve.add_argument("--port", type=int, help="port to listen on (default: `server.port`)")
    serve.add_argument(
        "--insecure",
        action="store_const",
        const=True,
        help="disable API-key authentication, even if other machines can connect",
    )
    serve.add_argument(
        "--config", metavar="FILE", type=Path, help="configuration file (default: the user's config.toml)"
    )
    return parser


if __name__ == "__main__":
    main()
