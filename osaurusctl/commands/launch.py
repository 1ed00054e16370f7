"""Commands that connect client programs to the daemon: launch, env."""

import os
import shutil
from pathlib import Path

import click

from osaurusctl import client_programs, completion, progress
from osaurusctl.chat.model import ModelFinder
from osaurusctl.client import Client, connect
from osaurusctl.client_programs import Connection
from osaurusctl.command import SHELLS, Command
from osaurusctl.errors import CliError, ExitCode
from osaurusctl.output import Output

API_KEY_VARIABLE = "OSAURUS_API_KEY"

_model_option = click.option(
    "--model", "-m", "name", help="Model  [default: `default_model`]", shell_complete=completion.available_models
)


@click.command(
    "launch",
    cls=Command,
    context_settings={"ignore_unknown_options": True},
    examples=[
        "osaurusctl launch opencode --model qwen3-8b",
        'osaurusctl launch aider -- --message "Add a test"',
        "osaurusctl launch -- python my_script.py",
    ],
)
@click.argument("program", metavar="CLIENT")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@_model_option
@click.option("--any-context", is_flag=True, help="Accept a model whose context is too short for the client")
@click.pass_obj
def launch(output: Output, program: str, arguments: tuple[str, ...], name: str | None, any_context: bool) -> None:
    """Run a client program with a local model

    CLIENT is claude, codex, opencode, aider, llm, or any other program that uses OpenAI's or Ollama's API. The model is
    loaded first. Settings are passed as variables and arguments; no file is changed. OSAURUS_API_KEY is the API key if
    the daemon requires one.
    """
    client = connect()
    known = client_programs.find_program(program)
    if known.executable is None:
        raise click.UsageError(
            f'"{program}" is an API, not a program; run "osaurusctl env {program}" for its variables'
        )
    executable = shutil.which(known.executable)
    if executable is None:
        hint = f'install it with "{known.install}"' if known.install else None
        raise CliError(f"the program {known.executable} is not installed", hint=hint, code="program_not_found")
    connection = _connect(client, output, name, command="launch")
    model = client.details(connection.model).model
    client_programs.check_program(client, program, known, model, any_context=any_context)
    with progress.spinner(output, f"loading {connection.model}"):
        client.load(connection.model)
    own = known.arguments(connection)
    # A program with subcommands gets the user's instead of the default one.
    command = [executable, *(arguments if arguments and program == "llm" else (*own, *arguments))]
    os.execve(executable, command, {**os.environ, **known.environment(connection)})


@click.command("env", cls=Command, examples=['eval "$(osaurusctl env openai)"', "osaurusctl env claude --shell fish"])
@click.argument("program", metavar="CLIENT", type=click.Choice(sorted(client_programs.PROGRAMS)))
@_model_option
@click.option("--shell", type=click.Choice(SHELLS), help="Shell  [default: the one in SHELL]")
@click.pass_obj
def env(output: Output, program: str, name: str | None, shell: str | None) -> None:
    """Print the variables that connect a client to the daemon"""
    known = client_programs.PROGRAMS[program]
    connection = _connect(connect(), output, name, command="env")
    variables = dict(known.environment(connection))
    output.show(variables, "\n".join(client_programs.format_variables(variables, shell or _default_shell())))


def _connect(client: Client, output: Output, name: str | None, *, command: str) -> Connection:
    finder = ModelFinder(client, output)
    status = finder.require_daemon()
    model = client.details(name or finder.default(command=f"{command} CLIENT --model")).model
    if model.reason is not None:
        raise CliError(f'model "{model.name}" cannot be used: {model.reason}', exit_code=ExitCode.MODEL_NOT_FOUND)
    key = client_programs.resolve_api_key(status, os.environ.get(API_KEY_VARIABLE))
    return Connection(client_programs.base_url(status), key, model.name, model.context_length)


def _default_shell() -> str:
    name = Path(os.environ.get("SHELL", "")).name
    return name if name in SHELLS else "bash"
