import click
from click.shell_completion import get_completion_class

from osaurusctl.command import Command
from osaurusctl.output import Output

SHELLS = ("bash", "zsh", "fish")


@click.command("completion", cls=Command)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print a script that completes commands and model names.

    Bash: `eval "$(osaurusctl completion bash)"` in ~/.bashrc. Zsh: likewise in ~/.zshrc.
    Fish: `osaurusctl completion fish | source` in its configuration.
    """
    root = ctx.find_root()
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"there is no completion for {shell}")
    script = kind(root.command, {}, "osaurusctl", "_OSAURUSCTL_COMPLETE").source()
    ctx.ensure_object(Output).show({"shell": shell, "script": script}, script)
