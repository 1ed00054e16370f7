"""Finding models of other programs by name, and asking the daemon which of them can be imported."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from osaurusctl.client import Client
from osaurusctl.errors import CliError, ExitCode
from osaurusctl.programs import lm_studio, ollama
from osaurusctl.programs.model import Program, ProgramModel
from osaurusctl.sharing import shared_items
from osaurusd.wire.errors import ErrorCode
from osaurusd.wire.imports import CheckedModel, CheckItem, CheckRequest

_FINDERS: dict[Program, Callable[[], list[ProgramModel]]] = {
    Program.OLLAMA: ollama.find_models,
    Program.LM_STUDIO: lm_studio.find_models,
}


def find_models(program: Program) -> list[ProgramModel]:
    """Return the models of a program, without checking whether they can be imported.

    Raises:
        CliError: its folder cannot be read.
    """
    return _FINDERS[program]()


def choose(program: Program, models: Sequence[ProgramModel], name: str) -> ProgramModel:
    """Return the model that the user names.

    Raises:
        CliError: no model, or more than one, has this name, or it cannot be imported.
    """
    matches = _match(program, models, name)
    command = f"osaurusctl import --from {program}"
    if not matches:
        tags = ollama.find_tags(models, name) if program is Program.OLLAMA else []
        raise CliError(
            f'{program.label} has no model "{name}"' + (f", but {', '.join(tags)}" if tags else ""),
            hint=f'run "{command}" to list its models',
            exit_code=ExitCode.MODEL_NOT_FOUND,
            code=ErrorCode.MODEL_NOT_FOUND,
        )
    if len(matches) > 1:
        names = ", ".join(model.name for model in matches)
        raise CliError(f'"{name}" is ambiguous: {names}', hint="use one of these names")
    if matches[0].reason:
        raise CliError(f"{matches[0].name} cannot be imported: {matches[0].reason}")
    return matches[0]


def check(client: Client, models: Sequence[ProgramModel], run_dir: Path) -> list[ProgramModel]:
    """Return the models with what their headers reveal, and whether the daemon can import them.

    Raises:
        CliError: a file cannot be opened, or the daemon does not run.
    """
    offered = {f"{index}-{path.name}": path for index, model in enumerate(models) for path in model.offered_files()}
    by_model: dict[int, str] = {}
    for name in offered:
        # Of several parts, the first one stands for the model.
        by_model.setdefault(int(name.partition("-")[0]), name)
    items = [_item(models[index], name) for index, name in by_model.items()]
    with shared_items(offered, run_dir) as files:
        results = client.check_imports(CheckRequest(items=items, files=str(files)))
    checked = dict(zip(by_model, results, strict=True))
    return [_merge(model, checked[index]) if index in checked else model for index, model in enumerate(models)]


def _item(model: ProgramModel, name: str) -> CheckItem:
    if model.format == "mlx":
        return CheckItem(format="mlx", file=name, names=lm_studio.folder_names(model))
    return CheckItem(format="gguf", file=name)


def _merge(model: ProgramModel, checked: CheckedModel) -> ProgramModel:
    return msgspec.structs.replace(
        model,
        family=model.family or checked.architecture,
        quantization=model.quantization or checked.quantization,
        importable=checked.reason is None,
        reason=checked.reason,
    )


def _match(program: Program, models: Iterable[ProgramModel], name: str) -> list[ProgramModel]:
    """Return the models with this name; in LM Studio also those with a file or folder of this name."""
    wanted = name.casefold()
    if program is Program.OLLAMA:
        return [model for model in models if model.name.casefold() == ollama.full_name(wanted)]
    named = [model for model in models if model.name.casefold() == wanted]
    return named or [model for model in models if wanted in _short_names(model.name.casefold())]


def _short_names(name: str) -> set[str]:
    parts = name.removesuffix(".gguf").split("/")
    return {"/".join(parts[start:end]) for start in range(len(parts)) for end in range(start + 1, len(parts) + 1)} | {
        name.rpartition("/")[2]
    }
