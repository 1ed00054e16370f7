from pathlib import Path

import click

from osaurusctl.client import connect
from osaurusctl.command import Command
from osaurusctl.errors import Interrupted
from osaurusctl.layout import size
from osaurusctl.output import Output
from osaurusctl.progress import follow_import
from osaurusd.wire.admin import ImportRequest


@click.command("import", cls=Command)
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--name", help="Name of the new model; default: made from PATH.")
@click.pass_obj
def command(output: Output, path: Path, name: str | None) -> None:
    """Bring in the model at PATH.

    PATH is a folder with an MLX model, or a .gguf file.
    """
    request = ImportRequest(path=str(path.absolute()), name=name)
    try:
        done = follow_import(connect().import_model(request), output)
    except KeyboardInterrupt as error:
        raise Interrupted("the import is cancelled; nothing was left behind") from error
    output.show(done, f"{done.model.name} is imported ({size(done.model.bytes)})")
