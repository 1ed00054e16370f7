"""Answer one prompt, or hold a conversation on a terminal."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from osaurusctl.chat import display, slash
from osaurusctl.chat.display import View
from osaurusctl.chat.images import image_part, take_images
from osaurusctl.chat.stream import Answer, ChatOptions, Message
from osaurusctl.client import Client
from osaurusctl.errors import CliError
from osaurusctl.output import Output, is_terminal
from osaurusd.wire import paths
from osaurusd.wire.errors import ErrorCode

# In a question with images, the first part is the text.
_IMAGE_FIELD = re.compile(r"\.content\[(\d+)\]\.image_url")
_SINGLE_IMAGE_PARTS = 2


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
        raise _explain(error, message) from error
    if output.json:
        output.show(answer, "")
    display.show_notes(answer, output)


class Conversation:
    """A conversation. It ends with Ctrl-D or `/bye`.

    Attributes:
        messages: the history, without the system prompt.
        images: the parts with the images of the next prompt.
        usage: token counts of the last answer.
        ended: whether the user has quit.
    """

    def __init__(self, client: Client, options: ChatOptions, view: View, output: Output) -> None:
        self.client = client
        self.options = options
        self.view = view
        self.output = output
        self.messages: list[Message] = []
        self.images: list[dict[str, Any]] = []
        self.usage: dict[str, Any] | None = None
        self.ended = False
        self._first: Message | None = None

    def update_options(self, **fields: Any) -> None:
        self.options = msgspec.structs.replace(self.options, **fields)

    def run(self, first: Message | None = None) -> None:
        """Answer prompts until the user quits. The content of `first` precedes the first prompt."""
        # Importing prompt_toolkit takes longer than answering a short prompt, and only conversations need it.
        from osaurusctl.chat.prompt import PromptReader  # noqa: PLC0415

        self._first = first
        reader = PromptReader(paths.resolve().state_dir / "prompt_history", list(slash.COMMANDS))
        self.output.note(f"{self.options.model}: /help lists commands, /bye or Ctrl-D quits")
        while not self.ended:
            prompt = reader.read()
            if prompt is None:
                return
            try:
                self._handle(prompt)
            except KeyboardInterrupt:
                self.output.note("")

    def attach(self, paths: Sequence[Path]) -> None:
        """Add images to the next prompt.

        Raises:
            click.UsageError: a file cannot be read, or is not an image.
        """
        self.images += map(image_part, paths)
        self.output.note(f"attached {', '.join(path.name for path in paths)}")

    def _handle(self, prompt: str) -> None:
        """Run a command, attach images, or answer."""
        text = prompt.strip()
        if slash.is_command(text):
            self._run_command(text)
            return
        prompt, paths = take_images(prompt)
        try:
            if paths:
                self.attach(paths)
        except click.UsageError as error:  # the file has changed since it was recognized
            self.output.note(error.format_message())
            return
        if slash.is_unknown_command(text) and not paths:
            self._run_command(text)
        elif prompt.strip():
            question = _join(self._first, prompt, self.images)
            self._first, self.images = None, []
            self._answer(question)
        elif paths:
            self.output.note("ask about it, or attach another one")

    def _run_command(self, line: str) -> None:
        try:
            slash.run(self, line)
        except CliError as error:
            self.output.error(error.body, str(error), error.hint)

    def _answer(self, question: Message) -> None:
        """Answer one message, and keep what was received if this fails or is interrupted.

        A failure ends the conversation only if there is no history to lose.
        """
        answer = Answer(model=self.options.model)
        try:
            display.receive(self.client, self.options, [*self.messages, question], answer, self.view, self.output)
        except CliError as error:
            error = _explain(error, question)
            if not self.messages:
                raise error from error.__cause__
            self.output.error(error.body, str(error), error.hint)
        else:
            display.show_notes(answer, self.output)
            self.usage = answer.usage
        finally:
            if answer.content:
                self.messages += [question, {"role": "assistant", "content": answer.content}]


def _join(first: Message | None, prompt: str, images: list[dict[str, Any]]) -> Message:
    """Build the message of a prompt with images, after the files and images of `first`."""
    text = ""
    if first is not None and isinstance(first["content"], str):
        text = first["content"]
    elif first is not None:
        text_part, *first_images = first["content"]
        text, images = text_part["text"], [*first_images, *images]
    if not images:
        return {"role": "user", "content": f"{text}{prompt}"}
    return {"role": "user", "content": [{"type": "text", "text": f"{text}{prompt}"}, *images]}


def _explain(error: CliError, question: Message) -> CliError:
    """Leave out the field of the request in errors about images, which users of the CLI do not know.

    If the question has several images, the number of the image replaces it.
    """
    if (field := _IMAGE_FIELD.search(error.body.param or "")) is None:
        return error
    code = error.body.code or "failure"
    names_one = code == ErrorCode.INVALID_REQUEST and len(question["content"]) > _SINGLE_IMAGE_PARTS
    number = f"image {field[1]}: " if names_one else ""
    return CliError(
        number + str(error).removeprefix(f"`{error.body.param}`: "),
        hint="leave out the images, or use another model" if code == ErrorCode.IMAGE_INPUT_UNSUPPORTED else error.hint,
        code=code,
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
