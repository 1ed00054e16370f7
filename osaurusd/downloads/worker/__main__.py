"""`python -m osaurusd.downloads.worker --fd N COMMAND …`: asks the hub, and says over a socket how it goes.

The last frame of `pull` is a Pulled, that of `search` a HubModels, and of whatever failed a HubFailure.
"""

import argparse
import asyncio
import sys
from pathlib import Path

from osaurusd.downloads.worker import listing
from osaurusd.downloads.worker.failure import PullError, Retry
from osaurusd.downloads.worker.pull import Order, answer
from osaurusd.downloads.worker.transfer import Limits
from osaurusd.models.worker.failure import printable
from osaurusd.rpc import job, messages
from osaurusd.wire.errors import ErrorCode


def main(arguments: list[str]) -> int:
    """Does what the command line says; 0 if that could be done, 1 if not."""
    options = _parser().parse_args(arguments)
    last = job.report(options.fd, lambda send: _attempt(options, send))
    return 1 if isinstance(last, messages.HubFailure) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m osaurusd.downloads.worker")
    parser.add_argument("--fd", type=int, required=True, help="the inherited socket that takes the frames")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("pull")
    command.add_argument("--cache", type=Path, required=True, help="the Hugging Face cache")
    command.add_argument("--repo", required=True, help="ORG/NAME of a model on the hub")
    command.add_argument("--revision", default="main", help="branch, tag or commit")
    command.add_argument("--connections", type=int, default=6, help="how many at once")
    command.add_argument("--stall", type=float, default=30, help="seconds that a connection may give nothing")
    command.add_argument("--patience", type=float, default=1800, help="seconds that asking may lead to nothing")
    command.add_argument("--margin", type=int, default=0, help="bytes of the disk that stay free")
    command = commands.add_parser("search")
    command.add_argument("--words", default="", help="what the models are to be called like")
    command.add_argument("--author", help="whose models; anybody's if left out")
    command.add_argument("--limit", type=int, default=20, help="how many at most")
    return parser


def _attempt(options: argparse.Namespace, send: job.Send) -> messages.Frame:
    """The frame that ends the command, once it is carried out."""
    try:
        if options.command == "pull":
            return asyncio.run(answer(_order(options), send))
        return messages.HubModels(models=listing.search(options.words, options.author, options.limit))
    except PullError as error:
        return messages.HubFailure(code=error.code, message=printable(error.message))
    except Retry as error:
        return messages.HubFailure(code=ErrorCode.PULL_FAILED, message=printable(str(error)))
    except Exception as error:  # noqa: BLE001  the daemon sees nothing else of what goes wrong in here
        message = f"the process that asks the hub failed: {type(error).__name__}: {error}"
        return messages.HubFailure(code=ErrorCode.INTERNAL_ERROR, message=printable(message))


def _order(options: argparse.Namespace) -> Order:
    return Order(
        cache=options.cache.expanduser().resolve(),
        repo=options.repo,
        revision=options.revision,
        limits=Limits(options.connections, options.stall, options.patience),
        margin=options.margin,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
