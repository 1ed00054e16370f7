import click

from osaurusctl import chat, complete
from osaurusctl.client import connect
from osaurusctl.command import Command
from osaurusctl.output import Output


@click.command("run", cls=Command)
@click.argument("name", required=False, shell_complete=complete.available)
@click.argument("prompt", required=False)
@click.option("--system", help="What the model is told before the conversation.")
@click.option(
    "--temperature", type=click.FloatRange(0, 2), help="How freely words are chosen; 0: always the likeliest."
)
@click.option("--max-tokens", type=click.IntRange(1), help="The most tokens that an answer may have.")
@click.option("--seed", type=int, help="Makes answers repeatable.")
@click.pass_obj
def command(
    output: Output,
    name: str | None,
    prompt: str | None,
    system: str | None,
    temperature: float | None,
    max_tokens: int | None,
    seed: int | None,
) -> None:
    """Ask the model NAME something, or talk with it.

    Standard input, unless it is a terminal, is the prompt or goes after PROMPT. Without a prompt a conversation
    starts. Without NAME the configuration's `default_model` answers.
    """
    text = chat.prompt_text(prompt)
    if text == "" or (text is None and output.json):
        raise click.UsageError("there is no prompt: give PROMPT, or write it to standard input")
    client = connect()
    model = name or chat.default_model(client)
    settings = chat.Settings(model=model, system=system, temperature=temperature, max_tokens=max_tokens, seed=seed)
    if text is None:
        chat.converse(client, settings, output)
    else:
        chat.answer_once(client, settings, text, output)
