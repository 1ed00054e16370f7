"""`python -m osaurusd.downloads.worker --fd N COMMAND ...`: talks to the hub and reports over a socket.

Every command ends with one result frame: Pulled, SearchResult or Failure.
"""

import argparse
import asyncio
import sys
from pathlib import Path

from osaurusd.downloads import messages
from osaurusd.downloads.worker import hub
from osaurusd.downloads.worker.errors import PullError, TransientError
from osaurusd.downloads.worker.pull import PullOptions, pull
from osaurusd.downloads.worker.transfer import TransferLimits
from osaurusd.rpc import child
from osaurusd.wire.errors import ErrorCode
from osaurusd.wire.pulls import PullStage


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    options = _create_parser().parse_args(arguments)
    result = child.report(options.fd, lambda send: _run(options, send))
    return 1 if isinstance(result, messages.Failure) else 0


def _create_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m osaurusd.downloads.worker")
    parser.add_argument("--fd", type=int, required=True, help="inherited socket for the frames")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("pull")
    command.add_argument("--cache", type=Path, required=True, help="Hugging Face cache")
    command.add_argument("--repo", required=True, help="ORG/NAME of a model on the hub")
    command.add_argument("--revision", default="main", help="branch, tag or commit")
    command.add_argument("--connections", type=int, default=6, help="maximum number of connections")
    command.add_argument("--stall", type=float, default=30, help="seconds after which a silent connection is replaced")
    command.add_argument("--retry", type=float, default=1800, help="seconds without data after which a pull fails")
    command.add_argument("--margin", type=int, default=0, help="bytes of the disk that must stay free")
    command = commands.add_parser("search")
    command.add_argument("--query", default="", help="part of the model's name")
    command.add_argument("--task", choices=hub.TAGS, default="generate", help="what the model is for")
    command.add_argument("--author", help="organization or user (default: any)")
    command.add_argument("--limit", type=int, default=20, help="maximum number of models")
    return parser


def _run(options: argparse.Namespace, send: child.Send) -> messages.Message:
    """Carry out the command; returns the result frame."""
    try:
        if options.command == "pull":
            return asyncio.run(pull(_pull_options(options), send))
        # The limit for the response of the hub counts from here.
        send(messages.Progress(stage=PullStage.RESOLVING))
        return messages.SearchResult(models=hub.search(options.query, options.task, options.author, options.limit))
    except PullError as error:
        return messages.Failure(code=error.code, message=child.printable(error.message))
    except TransientError as error:
        return messages.Failure(code=ErrorCode.PULL_FAILED, message=child.printable(str(error)))
    except Exception as error:  # noqa: BLE001  the daemon does not see the traceback, only this message
        message = f"unexpected error in the download process: {type(error).__name__}: {error}"
        return messages.Failure(code=ErrorCode.INTERNAL_ERROR, message=child.printable(message))


def _pull_options(options: argparse.Namespace) -> PullOptions:
    return PullOptions(
        cache=options.cache.expanduser().resolve(),
        repo=options.repo,
        revision=options.revision,
        limits=TransferLimits(options.connections, options.stall, options.retry),
        margin=options.margin,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
