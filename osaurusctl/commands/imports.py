"""Commands that create models from files and from other models: import, quantize."""

from pathlib import Path

import click

from osaurusctl import completion, progress
from osaurusctl.client import connect
from osaurusctl.command import Command
from osaurusctl.errors import Interrupted
from osaurusctl.formatting import format_bytes
from osaurusctl.output import Output
from osaurusctl.sharing import shared_files
from osaurusd.wire import paths
from osaurusd.wire.admin import ImportDone, ImportRequest
from osaurusd.wire.imports import QuantizeDone
from osaurusd.wire.quantization import QuantizationMode, QuantizeRequest

_AFFINE_BITS = ("2", "3", "4", "5", "6", "8")
_OTHER_MODES = tuple(mode.value for mode in QuantizationMode if mode is not QuantizationMode.AFFINE)
_GROUP_SIZES = ("32", "64", "128")


@click.command(
    "import", cls=Command, examples=["osaurusctl import ./SmolLM2-135M-Instruct.Q4_1.gguf --name smollm2-135m-instruct"]
)
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--name", help="Name of the new model  [default: derived from PATH]")
@click.pass_obj
def import_model(output: Output, path: Path, name: str | None) -> None:
    """Import an MLX folder or a GGUF file

    PATH is a folder with an MLX model, or a .gguf file. The original is copied.
    """
    source = path.absolute()
    try:
        with shared_files(source, paths.resolve().run_dir) as files:
            request = ImportRequest(path=str(source), name=name, files=str(files))
            done = progress.follow(connect().import_model(request), output, ImportDone)
    except KeyboardInterrupt as error:
        raise Interrupted("import cancelled; partial files were removed") from error
    output.show(done, f"{done.model.name} imported ({format_bytes(done.model.bytes)})")


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
    request = QuantizeRequest(
        model=name,
        mode=QuantizationMode(bits) if bits in _OTHER_MODES else QuantizationMode.AFFINE,
        bits=None if bits in _OTHER_MODES else int(bits),
        group_size=None if group_size is None else int(group_size),
        name=new_name,
        requantize=requantize,
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
