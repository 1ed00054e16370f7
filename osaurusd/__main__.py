"""`osaurusd serve`: run the daemon in the foreground."""

import gc

# Nearly everything that imports create stays: looking for garbage would take a tenth of the start-up time.
gc.disable()

# isort: split
import argparse  # noqa: E402
import faulthandler  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

from osaurusd.lean_imports import without_ca_certificates  # noqa: E402

with without_ca_certificates():
    import aiohttp  # noqa: F401

from osaurusd import __version__, config, serve  # noqa: E402
from osaurusd.errors import OsaurusError  # noqa: E402
from osaurusd.wire import machine, paths  # noqa: E402


def main() -> None:
    """Parse the command line, read the configuration and serve."""
    gc.freeze()
    gc.enable()
    faulthandler.enable()
    arguments = _parser().parse_args()
    options = {("server", key): getattr(arguments, key) for key in ("host", "port", "insecure")}
    flags: dict[tuple[str, ...], object] = {key: value for key, value in options.items() if value is not None}
    try:
        machine.check()
        locations = paths.resolve()
        file = arguments.config or locations.config_file
        serve.run(lambda: config.load(file, flags=flags), locations)
    except (OsaurusError, machine.UnsupportedMachine, paths.SocketPathTooLong) as error:
        print(f"osaurusd: {error}", file=sys.stderr)  # noqa: T201  outside the block in which logging is configured
        sys.exit(1)


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
