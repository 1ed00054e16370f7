"""Answer one prompt, or hold a conversation on a terminal."""

import sys
from typing import Any

import click
import msgspec

from osaurusctl.chat import display, slash
from osaurusctl.chat.display import View
from osaurusctl.chat.stream import Answer, ChatOptions, Message
from osaurusctl.client import Client
from osaurusctl.errors import CliError
from osaurusctl.output import Output, is_terminal
from osaurusd.wire import paths
from osaurusd.wire.errors import ErrorCode


def read_prompt(argument: str | None) -> str | None:
    """Return the prompt: `argument`, standard input, or both; None for an interactive conversation."""
    if is_terminal(sys.stdin):
        return argument
    piped = sys.stdin.read().strip("\n") if sys.stdin is not None else ""
    return "\n\n".join(part for part in (argument, piped) if part)


def answer_prompt(client: Client, options: ChatOptions, message: Message, view: View, output: Output) -> None:
    """Answer one prompt, as a stream of text or as one JSON document."""
    answer = Answer(model=options.model)
    try:
        display.receive(client, options, [message], answer, view, output)
    except CliError as error:
        raise _explain(error, options.model) from error
    if output.json:
        output.show(answer, "")
    display.show_notes(answer, output)


class Conversation:
    """A conversation. It ends with Ctrl-D or `/bye`.

    Attributes:
        messages: the history, without the system prompt.
        usage: token counts of the last answer.
        ended: whether the user has quit.
    """

    def __init__(self, client: Client, options: ChatOptions, view: View, output: Output) -> None:
        self.client = client
        self.options = options
        self.view = view
        self.output = output
        self.messages: list[Message] = []
        self.usage: dict[str, Any] | None = None
        self.ended = False

    def update_options(self, **fields: Any) -> None:
        self.options = msgspec.structs.replace(self.options, **fields)

    def run(self, first: Message | None = None) -> None:
        """Answer prompts until the user quits. The content of `first` precedes the first prompt."""
        # Importing prompt_toolkit takes longer than answering a short prompt, and only conversations need it.
        from osaurusctl.chat.prompt import PromptReader  # noqa: PLC0415

        reader = PromptReader(paths.resolve().state_dir / "prompt_history", list(slash.COMMANDS))
        self.output.note(f"{self.options.model}: /help lists commands, /bye or Ctrl-D quits")
        while not self.ended:
            prompt = reader.read()
            if prompt is None:
                return
            text = prompt.strip()
            if text.startswith("/") and "\n" not in text:
                self._run_command(text)
            elif text:
                self._answer(_join(first, prompt))
                first = None

    def _run_command(self, line: str) -> None:
        try:
            slash.run(self, line)
        except CliError as error:
            self.output.error(error.body, str(error), error.hint)

    def _answer(self, question: Message) -> None:
        """Answer one message. A failure ends the conversation only if there is no history to lose."""
        answer = Answer(model=self.options.model)
        try:
            display.receive(self.client, self.options, [*self.messages, question], answer, self.view, self.output)
        except KeyboardInterrupt:
            self.output.note("")
        except CliError as error:
            error = _explain(error, self.options.model)
            if not self.messages:
                raise error from error.__cause__
            self.output.error(error.body, str(error), error.hint)
        else:
            display.show_notes(answer, self.output)
            self.usage = answer.usage
        if answer.content:
            self.messages += [question, {"role": "assistant", "content": answer.content}]


def _join(first: Message | None, prompt: str) -> Message:
    """Build the message of a prompt, after the files and images of `first`."""
    if first is None:
        return {"role": "user", "content": prompt}
    content = first["content"]
    if isinstance(content, str):
        return {"role": "user", "content": f"{content}{prompt}"}
    text, *images = content
    return {"role": "user", "content": [{**text, "text": f"{text['text']}{prompt}"}, *images]}


def _explain(error: CliError, model: str) -> CliError:
    """Explain why a model rejects images; other errors explain themselves."""
    if error.body.code != ErrorCode.IMAGE_INPUT_UNSUPPORTED:
        return error
    return CliError(
        f'model "{model}" does not support images',
        hint="leave out --image, or choose a model with vision",
        code=error.body.code,
        kind=error.body.type,
        param=error.body.param,
    )


def require_prompt(prompt: str | None, output: Output) -> None:
    """Check that there is a prompt, unless a conversation can start.

    Raises:
        click.UsageError: the prompt is missing.
    """
    if prompt == "" or (prompt is None and output.json):
        raise click.UsageError("missing prompt; give PROMPT or write it to standard input")
