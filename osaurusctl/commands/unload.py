import click

from osaurusctl import complete
from osaurusctl.client import Client, connect
from osaurusctl.command import Command
from osaurusctl.errors import CliError
from osaurusctl.output import Output
from osaurusd.wire.admin import UnloadReply


@click.command("unload", cls=Command)
@click.argument("names", metavar="NAME...", nargs=-1, shell_complete=complete.loaded)
@click.option("--all", "everything", is_flag=True, help="Unload every loaded model that is not pinned.")
@click.option("--force", is_flag=True, help="End requests that are running, and unload pinned models too.")
@click.pass_obj
def command(output: Output, names: tuple[str, ...], everything: bool, force: bool) -> None:
    """Free the memory of the models NAME..., or of all with --all."""
    if bool(names) == everything:
        raise click.UsageError("name the models to unload, or say `--all`")
    reply = _unload(connect(), names or (None,), force, output)
    output.show(reply, "\n".join(f"{name} is unloaded" for name in reply.unloaded))
    if not reply.unloaded:
        output.note("nothing was loaded" if everything else f"not loaded: {', '.join(names)}")


def _unload(client: Client, models: tuple[str | None, ...], force: bool, output: Output) -> UnloadReply:
    unloaded: list[str] = []
    try:
        for model in models:
            unloaded += client.unload(model, force=force).unloaded
    except CliError:
        for name in unloaded:
            output.note(f"{name} is unloaded")
        raise
    return UnloadReply(unloaded=unloaded)
