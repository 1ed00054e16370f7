import contextlib
import os

import click

from osaurusctl import complete, pulling
from osaurusctl.client import Client, connect
from osaurusctl.command import Command
from osaurusctl.errors import CliError, Interrupted
from osaurusctl.output import Output
from osaurusd.wire.pulls import PullInfo


@click.command("pull", cls=Command)
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=complete.pullable)
@click.option("--detach", is_flag=True, help="Return at once, and let the daemon download.")
@click.pass_obj
def command(output: Output, names: tuple[str, ...], detach: bool) -> None:
    """Download the models NAME... from the hub.

    NAME is an API name, an alias or ORG/REPO, with @REVISION behind it where not `main` is meant.
    """
    client = connect()
    token = os.environ.get("HF_TOKEN") or None
    pulls = {pull.id: pull for pull in [client.pull(name, token) for name in dict.fromkeys(names)]}
    if detach:
        lines = [
            f"{pull.name}: {pulling.state(pull)}; `osaurusctl pulls` shows how far it is" for pull in pulls.values()
        ]
        output.show(list(pulls.values()), "\n".join(lines))
        return
    try:
        ended = pulling.follow(client.watch_pulls(list(pulls)), len(pulls), output)
    except KeyboardInterrupt as error:
        _cancel(client, pulls)
        raise Interrupted("cancelled; the next pull goes on where this one was") from error
    if ended:
        for each in ended[:-1]:
            output.note(f"error: {pulling.failure(each)}")
        raise pulling.failure(ended[-1])


def _cancel(client: Client, pulls: dict[str, PullInfo]) -> None:
    for pull in pulls:
        # One that has ended by itself meanwhile needs no cancelling.
        with contextlib.suppress(CliError):
            client.cancel_pull(pull)
