"""Commands that generate text: run, bench."""

from pathlib import Path

import click

from osaurusctl import benchmark, completion
from osaurusctl.benchmark import BenchmarkOptions, DecodeResult, Report
from osaurusctl.chat.attachments import parse_format, user_message
from osaurusctl.chat.conversation import Conversation, answer_prompt, read_prompt, require_prompt
from osaurusctl.chat.display import View
from osaurusctl.chat.model import ModelFinder, split_arguments
from osaurusctl.chat.stream import ChatOptions
from osaurusctl.client import connect
from osaurusctl.command import Command, Duration
from osaurusctl.formatting import format_table
from osaurusctl.output import Output
from osaurusd.wire.sizes import format_bytes

_EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(
    "run",
    cls=Command,
    examples=[
        "osaurusctl run llama-3.2-3b-instruct",
        'osaurusctl run "Why is the sky blue?"',
        'git diff | osaurusctl run llama-3.2-3b-instruct "Summarize this change."',
        'osaurusctl run "List three colors." --format json',
    ],
)
@click.argument("arguments", metavar="[NAME] [PROMPT]...", nargs=-1, shell_complete=completion.available_models)
@click.option("--system", help="System prompt")
@click.option("--file", "files", type=_EXISTING_FILE, multiple=True, help="Text file for the prompt; repeatable")
@click.option("--image", "images", type=_EXISTING_FILE, multiple=True, help="Image for the prompt; repeatable")
@click.option(
    "--format", "answer_format", metavar="json|SCHEMA.json", help="Answer in JSON, or in JSON that conforms to a schema"
)
@click.option("--temperature", type=click.FloatRange(0, 2), help="Sampling temperature; 0 is deterministic")
@click.option("--max-tokens", type=click.IntRange(1), help="Maximum number of tokens in an answer")
@click.option("--seed", type=int, help="Sampling seed, for reproducible answers")
@click.option("--keep-alive", type=Duration(), help="Unload the model after this idle time: 90s, 15m, 1h; -1 for never")
@click.option("--hide-thinking", is_flag=True, help="Do not show the reasoning of the model")
@click.option("--plain", is_flag=True, help="Do not render Markdown")
@click.option("--verbose", is_flag=True, help="Show token counts and speed after each answer")
@click.option("-y", "--yes", is_flag=True, help="Start the daemon and download the model without asking")
@click.pass_obj
def run(
    output: Output,
    arguments: tuple[str, ...],
    system: str | None,
    files: tuple[Path, ...],
    images: tuple[Path, ...],
    answer_format: str | None,
    temperature: float | None,
    max_tokens: int | None,
    seed: int | None,
    keep_alive: float | None,
    hide_thinking: bool,
    plain: bool,
    verbose: bool,
    yes: bool,
) -> None:
    """Chat with a model, or answer one prompt

    Standard input, unless it is a terminal, is appended to PROMPT. Without a prompt, start a conversation. Without
    NAME, use the model that `default_model` configures, or the only one on this machine.
    """
    client = connect()
    finder = ModelFinder(client, output, yes=yes)
    name, prompt = split_arguments(arguments, finder.names)
    prompt = read_prompt(prompt)
    require_prompt(prompt, output)
    form = parse_format(answer_format) if answer_format else None
    message = user_message(prompt or "", files, images)
    load = prompt is None or keep_alive is not None or yes or output.shows_progress
    model = _find_model(finder, name, keep_alive, load=load)
    view = View(thinking=not hide_thinking, markdown=not plain, verbose=verbose)
    options = ChatOptions(
        model=model, system=system, temperature=temperature, max_tokens=max_tokens, seed=seed, response_format=form
    )
    if prompt is None:
        Conversation(client, options, view, output).run(message if files or images else None)
    else:
        answer_prompt(client, options, message, view, output)


def _find_model(finder: ModelFinder, name: str | None, keep_alive: float | None, *, load: bool) -> str:
    finder.require_daemon()
    model = name or finder.default(command="run")
    finder.check_task(model, "generate")
    return finder.load(model, keep_alive).model if load else model


@click.command(
    "bench", cls=Command, examples=["osaurusctl bench llama-3.2-3b-instruct", "osaurusctl bench --streams 4 --json"]
)
@click.argument("name", required=False, shell_complete=completion.available_models)
@click.option("--tokens", type=click.IntRange(2), default=128, show_default=True, help="Tokens in each answer")
@click.option(
    "--prompt-tokens",
    type=click.IntRange(1),
    default=512,
    show_default=True,
    help="Approximate number of tokens in each prompt",
)
@click.option("--streams", type=click.IntRange(1), default=8, show_default=True, help="Number of concurrent requests")
@click.pass_obj
def bench(output: Output, name: str | None, tokens: int, prompt_tokens: int, streams: int) -> None:
    """Measure the speed of a model

    Loads the model if necessary, and leaves it loaded. Without NAME, use the model that `default_model` configures, or
    the only one on this machine.
    """
    client = connect()
    model = name or ModelFinder(client, output).default(command="bench")
    options = BenchmarkOptions(model=model, tokens=tokens, prompt_tokens=prompt_tokens, streams=streams)
    report = benchmark.measure(client, options, output.note)
    output.show(report, format_table(_report_rows(report)))


def _report_rows(report: Report) -> list[tuple[str, str, str]]:
    load = "-" if report.load_seconds is None else _format_seconds(report.load_seconds)
    return [
        ("model", report.model, f"on {report.device}" if report.device else ""),
        ("load", load, ""),
        ("memory", format_bytes(report.memory_bytes), ""),
        ("TTFT, cold", _format_seconds(report.cold_ttft_seconds), f"new prompt of {report.prompt_tokens} tokens"),
        (
            "TTFT, warm",
            _format_seconds(report.warm_ttft_seconds),
            f"same prefix, {report.cached_tokens} tokens from the prefix cache",
        ),
        ("prefill", _format_rate(report.prefill_tokens_per_second), ""),
        *map(_decode_row, report.decode),
    ]


def _decode_row(result: DecodeResult) -> tuple[str, str, str]:
    label = "1 stream" if result.streams == 1 else f"{result.streams} streams"
    return f"decode, {label}", _format_rate(result.tokens_per_second), "" if result.streams == 1 else "in total"


def _format_seconds(value: float) -> str:
    return f"{value:.3f} s" if value < 1 else f"{value:.2f} s"


def _format_rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} tok/s"
