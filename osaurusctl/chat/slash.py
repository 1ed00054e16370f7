"""Commands inside a conversation, such as `/help`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from osaurusctl.chat.attachments import parse_format
from osaurusctl.chat.images import parse_path
from osaurusctl.chat.stream import ChatOptions, Message
from osaurusctl.errors import CliError
from osaurusctl.formatting import format_table
from osaurusd.wire.files import read_file, replace_file

if TYPE_CHECKING:
    from osaurusctl.chat.conversation import Conversation

UNSET_WORD = "default"


class SavedConversation(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a file that `/save` writes."""

    model: str
    messages: list[Message]
    options: dict[str, Any] = {}


@dataclass(frozen=True)
class SlashCommand:
    """A command; `handler` gets the conversation and the rest of the line."""

    usage: str
    summary: str
    handler: Callable[["Conversation", str], None]


def run(conversation: "Conversation", line: str) -> None:
    """Run the command in `line`.

    Raises:
        CliError: no such command, or its argument is wrong.
    """
    name, _, argument = line.partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        raise CliError(f"unknown command {name}", hint="/help lists the commands")
    try:
        command.handler(conversation, argument.strip())
    except click.UsageError as error:
        raise CliError(error.format_message()) from error


def is_command(line: str) -> bool:
    """Whether a prompt is one line that starts with the name of a command."""
    return "\n" not in line and line.partition(" ")[0] in COMMANDS


def is_unknown_command(line: str) -> bool:
    """Whether a prompt looks like a command, but is none. A path at its beginning does not look like one."""
    return line.startswith("/") and "\n" not in line and "/" not in line.partition(" ")[0][1:]


def _help(conversation: "Conversation", _argument: str) -> None:
    rows = [(command.usage, command.summary) for command in COMMANDS.values()]
    keys = [
        ('"""', "begins and ends a prompt of several lines"),
        ("Alt-Enter", "starts a new line"),
        ("Ctrl-C", "stops the answer"),
        ("Ctrl-D", "quits"),
    ]
    conversation.output.note(format_table([*rows, *keys]))


def _clear(conversation: "Conversation", _argument: str) -> None:
    conversation.messages.clear()
    conversation.images.clear()
    conversation.output.note("conversation cleared")


def _system(conversation: "Conversation", argument: str) -> None:
    if argument:
        conversation.update_options(system=None if argument == UNSET_WORD else argument)
    conversation.output.note(f"system prompt: {conversation.options.system or 'none'}")


def _set(conversation: "Conversation", argument: str) -> None:
    name, _, value = argument.partition(" ")
    if not name:
        conversation.output.note(format_table(_setting_rows(conversation)))
        return
    setting = _SETTINGS.get(name)
    if setting is None:
        raise CliError(f"unknown setting {name}", hint=f"the settings are {', '.join(_SETTINGS)}")
    if not value.strip():
        raise CliError(f"/set {name} needs a value: {setting.values}")
    try:
        setting.apply(conversation, value.strip())
    except click.BadParameter as error:
        raise CliError(f'invalid value "{value.strip()}"', hint=f"use {setting.values}") from error
    conversation.output.note(f"{name}: {setting.show(conversation)}")


def _image(conversation: "Conversation", argument: str) -> None:
    if not argument:
        raise CliError("/image needs the path of a file")
    conversation.attach([parse_path(argument)])


def _save(conversation: "Conversation", argument: str) -> None:
    path = _file_argument(argument, "/save")
    if path.exists():
        _read_conversation(path)  # raises an error for any other file, so that it is not overwritten
    options = msgspec.to_builtins(conversation.options)
    saved = SavedConversation(model=options.pop("model"), messages=conversation.messages, options=options)
    try:
        replace_file(path, msgspec.json.format(msgspec.json.encode(saved)) + b"\n", 0o600)
    except OSError as error:
        raise CliError(f"cannot write {path}: {error.strerror}") from error
    conversation.output.note(f"conversation saved to {path}")


def _load(conversation: "Conversation", argument: str) -> None:
    path = _file_argument(argument, "/load")
    saved = _read_conversation(path)
    options = {**saved.options, "model": conversation.options.model}
    try:
        conversation.options = msgspec.convert(options, ChatOptions)
    except msgspec.ValidationError as error:
        raise CliError(f"{path} is not a saved conversation: {error}") from error
    conversation.messages[:] = saved.messages
    with_model = "" if saved.model == conversation.options.model else f" with {saved.model}"
    conversation.output.note(f"loaded a conversation of {len(saved.messages)} messages{with_model}")


def _show(conversation: "Conversation", _argument: str) -> None:
    details = conversation.client.details(conversation.options.model).model
    usage = conversation.usage or {}
    rows = [
        ("model", details.name),
        ("repo", details.repo),
        ("quantization", details.quantization or "-"),
        ("context", f"{usage.get('total_tokens', 0)} of {details.context_length or 'unknown'} tokens"),
        ("messages", str(len(conversation.messages))),
        ("system", conversation.options.system or "none"),
        *_setting_rows(conversation),
    ]
    conversation.output.note(format_table(rows))


def _bye(conversation: "Conversation", _argument: str) -> None:
    conversation.ended = True


COMMANDS = {
    "/help": SlashCommand("/help", "show this list", _help),
    "/clear": SlashCommand("/clear", "start over; the system prompt and the settings stay", _clear),
    "/system": SlashCommand("/system [TEXT]", f'show or set the system prompt; "{UNSET_WORD}" removes it', _system),
    "/set": SlashCommand("/set [NAME VALUE]", "show or change the settings", _set),
    "/image": SlashCommand("/image FILE", "add an image to the next prompt; a pasted path does the same", _image),
    "/save": SlashCommand("/save FILE", "save the conversation", _save),
    "/load": SlashCommand("/load FILE", "continue a saved conversation", _load),
    "/show": SlashCommand("/show", "show the model and the state of the conversation", _show),
    "/bye": SlashCommand("/bye", "quit", _bye),
}


@dataclass(frozen=True)
class _Setting:
    """A setting: the values that it takes, how to change it, and how to show it."""

    values: str
    apply: Callable[["Conversation", str], None]
    show: Callable[["Conversation"], str]


def _option(field: str, values: str, parse: Callable[[str], Any]) -> _Setting:
    """Build a setting for a field of `ChatOptions`."""

    def apply(conversation: "Conversation", value: str) -> None:
        conversation.update_options(**{field: None if value == UNSET_WORD else parse(value)})

    def show(conversation: "Conversation") -> str:
        value = getattr(conversation.options, field)
        return UNSET_WORD if value is None else str(value.get("type") if isinstance(value, dict) else value)

    return _Setting(f'{values}, or "{UNSET_WORD}"', apply, show)


def _switch(field: str) -> _Setting:
    """Build a setting for a field of `View`."""

    def apply(conversation: "Conversation", value: str) -> None:
        if value not in ("on", "off"):
            raise CliError(f'invalid value "{value}"', hint="use on or off")
        conversation.view = msgspec.structs.replace(conversation.view, **{field: value == "on"})

    return _Setting("on or off", apply, lambda conversation: "on" if getattr(conversation.view, field) else "off")


def _number(kind: click.ParamType[Any]) -> Callable[[str], Any]:
    return lambda value: kind.convert(value, None, None)


_SETTINGS = {
    "temperature": _option("temperature", "0 to 2", _number(click.FloatRange(0, 2))),
    "max-tokens": _option("max_tokens", "a number from 1", _number(click.IntRange(1))),
    "seed": _option("seed", "a number", _number(click.INT)),
    "format": _option("response_format", "json, or the path of a JSON schema", parse_format),
    "thinking": _switch("thinking"),
    "markdown": _switch("markdown"),
    "verbose": _switch("verbose"),
}


def _setting_rows(conversation: "Conversation") -> list[tuple[str, str]]:
    return [(name, setting.show(conversation)) for name, setting in _SETTINGS.items()]


def _file_argument(argument: str, command: str) -> Path:
    if not argument:
        raise CliError(f"{command} needs the path of a file")
    return Path(argument).expanduser()


def _read_conversation(path: Path) -> SavedConversation:
    try:
        content = read_file(path)
    except OSError as error:
        raise CliError(f"cannot read {path}: {error.strerror}") from error
    if content is None:
        raise CliError(f"{path} does not exist")
    try:
        return msgspec.json.decode(content, type=SavedConversation)
    except msgspec.DecodeError as error:
        raise CliError(f"{path} is not a saved conversation: {error}") from error
