import click

from osaurusctl import consent
from osaurusctl.command import Command
from osaurusctl.output import Output
from osaurusctl.service import install, manager, service
from osaurusd.wire import paths


@click.command("uninstall", cls=Command)
@click.option("--purge", is_flag=True, help="Remove settings, logs and imported models too; asks first.")
@click.option("--yes", is_flag=True, help="Remove without asking.")
@click.pass_obj
def command(output: Output, purge: bool, yes: bool) -> None:
    """Stop the service and remove it; models and settings stay."""
    service.refuse_root()
    service.refuse_inside()
    where = paths.resolve()
    there = service.found()
    if there is not None and not service.is_for(there):
        there = None
    if there is None and not purge:
        raise manager.not_installed()
    if purge and consent.needs(yes, output):
        places = "\n".join(map(str, install.purged(where)))
        consent.ask(places, "Remove the service and all of this for good?", output)
    for step in install.removing(there, where) if there is not None else []:
        step.act()
    removed = [str(place) for place in install.purged(where)] if purge else []
    if purge:
        install.purge(where)
    lines = [f"the service is removed ({there.file})"] if there is not None else []
    output.show(
        {"file": str(there.file) if there else None, "purged": removed},
        "\n".join([*lines, *(f"{place} is removed" for place in removed)]),
    )
    if not purge:
        output.note("models and settings are kept; `osaurusctl uninstall --purge` removes them too")
