"""Commands that generate text: run, bench."""

import click

from osaurusctl import benchmark, completion
from osaurusctl.benchmark import BenchmarkOptions, DecodeResult, Report
from osaurusctl.chat import ChatOptions, answer_prompt, chat, read_prompt, resolve_default_model
from osaurusctl.client import connect
from osaurusctl.command import Command
from osaurusctl.formatting import format_bytes, format_table
from osaurusctl.output import Output


@click.command(
    "run",
    cls=Command,
    examples=[
        'osaurusctl run llama-3.2-3b-instruct "Why is the sky blue?"',
        'git diff | osaurusctl run llama-3.2-3b-instruct "Summarize this change."',
    ],
)
@click.argument("name", required=False, shell_complete=completion.available_models)
@click.argument("prompt", required=False)
@click.option("--system", help="System prompt")
@click.option("--temperature", type=click.FloatRange(0, 2), help="Sampling temperature; 0 is deterministic")
@click.option("--max-tokens", type=click.IntRange(1), help="Maximum number of tokens in an answer")
@click.option("--seed", type=int, help="Sampling seed, for reproducible answers")
@click.pass_obj
def run(
    output: Output,
    name: str | None,
    prompt: str | None,
    system: str | None,
    temperature: float | None,
    max_tokens: int | None,
    seed: int | None,
) -> None:
    """Chat with a model, or answer one prompt

    Standard input, unless it is a terminal, is appended to PROMPT. Without a prompt, start a conversation. Without
    NAME, use the model that `default_model` configures.
    """
    text = read_prompt(prompt)
    if text == "" or (text is None and output.json):
        raise click.UsageError("missing prompt; give PROMPT or write it to standard input")
    client = connect()
    model = name or resolve_default_model(client, command="run")
    options = ChatOptions(model=model, system=system, temperature=temperature, max_tokens=max_tokens, seed=seed)
    if text is None:
        chat(client, options, output)
    else:
        answer_prompt(client, options, text, output)


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

    Loads the model if necessary, and leaves it loaded. Without NAME, use the model that `default_model` configures.
    """
    client = connect()
    model = name or resolve_default_model(client, command="bench")
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
