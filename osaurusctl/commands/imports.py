"""Commands that create models from files and from other models: import, quantize."""

from pathlib import Path
from typing import Any

import click
import msgspec

from osaurusctl import completion, progress
from osaurusctl.client import connect
from osaurusctl.command import Command
from osaurusctl.errors import Interrupted
from osaurusctl.formatting import format_table
from osaurusctl.output import Output
from osaurusctl.programs import catalog
from osaurusctl.programs.model import Program, ProgramModel
from osaurusctl.sharing import shared_files
from osaurusd.wire import paths
from osaurusd.wire.admin import ImportDone, ImportRequest
from osaurusd.wire.imports import QuantizeDone
from osaurusd.wire.lineage import QuantizationMode, QuantizeRequest
from osaurusd.wire.quantization import ImportQuantization
from osaurusd.wire.sizes import format_bytes

_MODELS_HEADER = ("NAME", "SIZE", "FAMILY", "QUANT", "IMPORT", "REASON")
_MODELS_DROP = ("REASON", "FAMILY", "QUANT", "SIZE")

_AFFINE_BITS = ("2", "3", "4", "5", "6", "8")
_OTHER_MODES = tuple(mode.value for mode in QuantizationMode if mode is not QuantizationMode.AFFINE)
_GROUP_SIZES = ("32", "64", "128")


@click.command(
    "import",
    cls=Command,
    examples=[
        "osaurusctl import ./SmolLM2-135M-Instruct.Q4_1.gguf --name smollm2-135m-instruct",
        "osaurusctl import --from ollama",
        "osaurusctl import --from ollama llama3.2:3b",
    ],
)
@click.argument("source", metavar="[PATH|NAME]", type=click.Path(), required=False)
@click.option(
    "--from",
    "program",
    type=click.Choice([program.value for program in Program]),
    help="Import a model of this program; without NAME, list its models",
)
@click.option("--name", help="Name of the new model  [default: derived from PATH or NAME]")
@click.option(
    "--quantize",
    "mode",
    type=click.Choice([mode.value for mode in ImportQuantization]),
    default=ImportQuantization.AUTO.value,
    show_default=True,
    help="Bits per weight of the matrices in a GGUF file",
)
@click.option(
    "--group-size",
    type=click.Choice(_GROUP_SIZES),
    default="32",
    show_default=True,
    help="Number of weights that share a scale, in matrices that are requantized",
)
@click.pass_obj
def import_model(
    output: Output, source: str | None, program: str | None, name: str | None, mode: str, group_size: str
) -> None:
    """Import an MLX folder or a GGUF file

    PATH is a folder with an MLX model, or a GGUF file; of a model in several GGUF files, the first one. With --from,
    NAME is a model of Ollama or LM Studio, by the name that this program lists. The original is not changed.

    --quantize auto preserves the quality of each matrix of a GGUF file; none stores floats.
    """
    storage = {"quantize": mode, "group_size": int(group_size)}
    if program is not None:
        _import_from(Program(program), source, name, storage, output)
        return
    if source is None:
        raise click.UsageError("missing argument PATH, the folder or file to import")
    path = Path(source).absolute()
    if not path.exists():
        raise click.UsageError(f'path "{source}" does not exist')
    _import(str(path), {"name": name, **storage}, output)


def _import_from(
    program: Program, model: str | None, name: str | None, storage: dict[str, Any], output: Output
) -> None:
    """Import a model of another program; without a model, list them."""
    models = catalog.find_models(program)
    if model is not None:
        chosen = catalog.choose(program, models, model)
        for note in chosen.notes:
            output.note(note)
        _import(chosen.path, {"name": name, "origin": chosen.origin, **storage}, output)
        return
    if name is not None:
        raise click.UsageError("--name requires the NAME of the model to import")
    if models:
        with progress.spinner(output, f"checking {len(models)} models"):
            models = catalog.check(connect(), models, paths.resolve().run_dir)
    output.show(models, _format_models(models, output.width) if models else "")
    if models:
        output.note(f'run "osaurusctl import --from {program} NAME" to import one')
    else:
        output.note(f"no models of {program.label} found on this machine")


def _import(path: str, fields: dict[str, Any], output: Output) -> None:
    try:
        with shared_files(Path(path), paths.resolve().run_dir) as files:
            request = msgspec.convert({"path": path, "files": str(files), **fields}, type=ImportRequest)
            done = progress.follow(connect().import_model(request), output, ImportDone)
    except KeyboardInterrupt as error:
        raise Interrupted("import cancelled; partial files were removed") from error
    output.show(done, "\n".join([f"{done.model.name} imported ({format_bytes(done.model.bytes)})", *_changes(done)]))


def _changes(done: ImportDone) -> list[str]:
    """Describe what quantization changed."""
    report = done.quantization
    if report is None or not report.converted:
        return []
    return [
        f"{report.exact} quantized matrices are exact, {report.converted} were converted: relative error "
        f"{report.mean_error:.2%} on average, {report.worst_error:.2%} at most ({report.worst_tensor})"
    ]


def _format_models(models: list[ProgramModel], width: int | None) -> str:
    """Format the list; the reasons follow below the table if they do not fit into it."""
    rows = [_MODELS_HEADER, *map(_model_row, models)]
    table = format_table(rows, width=width, drop=_MODELS_DROP)
    reasons = [f"{model.name}: {model.reason}" for model in models if model.reason]
    if not reasons or _MODELS_HEADER[-1] in table.splitlines()[0]:
        return table
    return "\n".join([table, "", *reasons])


def _model_row(model: ProgramModel) -> tuple[str, ...]:
    return (
        model.name,
        format_bytes(model.bytes),
        model.family or "-",
        model.quantization or "-",
        "yes" if model.importable else "no",
        model.reason or "",
    )


@click.command(
    "quantize",
    cls=Command,
    examples=["osaurusctl quantize qwen3-4b-bf16 --bits 4", "osaurusctl quantize my-model --bits mxfp4 --name small"],
)
@click.argument("name", shell_complete=completion.all_models)
@click.option(
    "--bits",
    type=click.Choice([*_AFFINE_BITS, *_OTHER_MODES]),
    required=True,
    help="Bits per weight, or a floating-point format",
)
@click.option(
    "--group-size",
    type=click.Choice(_GROUP_SIZES),
    help="Number of weights that share a scale  [default: 64; fixed for the floating-point formats]",
)
@click.option("--name", "new_name", help="Name of the new model  [default: NAME with the bits appended]")
@click.option("--requantize", is_flag=True, help="Also quantize a model that is quantized already, which loses quality")
@click.pass_obj
def quantize(
    output: Output, name: str, bits: str, group_size: str | None, new_name: str | None, requantize: bool
) -> None:
    """Make a smaller copy of a model

    Quantizes the weights of a model on this machine, as mlx_lm.convert does. The original is kept.
    """
    if bits in _OTHER_MODES and group_size is not None:
        raise click.UsageError(f"--group-size cannot be combined with --bits {bits}, which fixes it")
    options: dict[str, str | int] = {"mode": bits} if bits in _OTHER_MODES else {"bits": int(bits)}
    if group_size is not None:
        options["group_size"] = int(group_size)
    request = msgspec.convert(
        {"model": name, "name": new_name, "requantize": requantize, **options}, type=QuantizeRequest
    )
    try:
        done = progress.follow(connect().quantize(request), output, QuantizeDone)
    except KeyboardInterrupt as error:
        raise Interrupted("quantization cancelled; partial files were removed") from error
    output.show(done, _describe_quantization(done))


def _describe_quantization(done: QuantizeDone) -> str:
    lineage = done.lineage
    sizes = f"{format_bytes(done.base_bytes)} to {format_bytes(done.model.bytes)}"
    error = f"mean relative error {lineage.mean_error:.2%}, largest {lineage.worst_error:.2%} ({lineage.worst_tensor})"
    return f"{done.model.name} created: {sizes}, {lineage.bits_per_weight:.2f} bits per weight\n{error}"
