import click

from osaurusctl import bench, chat, complete
from osaurusctl.bench import Decode, Plan, Report
from osaurusctl.client import connect
from osaurusctl.command import Command
from osaurusctl.layout import size, table
from osaurusctl.output import Output


@click.command("bench", cls=Command)
@click.argument("name", required=False, shell_complete=complete.available)
@click.option("--tokens", type=click.IntRange(2), default=128, show_default=True, help="Tokens of an answer.")
@click.option(
    "--prompt-tokens", type=click.IntRange(1), default=512, show_default=True, help="About how long the prompts are."
)
@click.option("--streams", type=click.IntRange(1), default=8, show_default=True, help="Answers at once.")
@click.pass_obj
def command(output: Output, name: str | None, tokens: int, prompt_tokens: int, streams: int) -> None:
    """Measure how fast the model NAME answers.

    Without NAME it is the configuration's `default_model`. The model is loaded if need be, and stays so.
    """
    client = connect()
    model = name or chat.default_model(client, command="bench")
    plan = Plan(model=model, tokens=tokens, prompt_tokens=prompt_tokens, streams=streams)
    report = bench.measure(client, plan, output.note)
    output.show(report, table(_rows(report)))


def _rows(report: Report) -> list[tuple[str, str, str]]:
    load = "-" if report.load_seconds is None else _seconds(report.load_seconds)
    reused = f"{report.cached_tokens} of its tokens were in the prefix cache"
    return [
        ("model", report.model, f"on {report.device}" if report.device else ""),
        ("load", load, ""),
        ("memory", size(report.memory_bytes), ""),
        ("TTFT, cold", _seconds(report.cold_ttft_seconds), f"a new prompt of {report.prompt_tokens} tokens"),
        ("TTFT, warm", _seconds(report.warm_ttft_seconds), f"a prompt that begins alike: {reused}"),
        ("prefill", _rate(report.prefill_tokens_per_second), ""),
        *map(_decode, report.decode),
    ]


def _decode(decode: Decode) -> tuple[str, str, str]:
    label = "1 stream" if decode.streams == 1 else f"{decode.streams} streams"
    return f"decode, {label}", _rate(decode.tokens_per_second), "" if decode.streams == 1 else "all together"


def _seconds(value: float) -> str:
    return f"{value:.3f} s" if value < 1 else f"{value:.2f} s"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} tok/s"
