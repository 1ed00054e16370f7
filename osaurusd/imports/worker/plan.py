"""Planning the conversion of a GGUF file: the config, and where each parameter of mlx_lm's network comes from.

The network itself says which parameters it has and which shapes they have, so a file that it could not load is rejected
before anything is converted.
"""

import importlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import mlx.nn as nn
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from mlx.utils import tree_flatten

from osaurusd.imports.worker import families, quantization
from osaurusd.imports.worker.facts import Facts
from osaurusd.imports.worker.family import Family
from osaurusd.imports.worker.gguf import GgufHeader, TensorInfo
from osaurusd.imports.worker.ollama import ENCODER_TENSORS
from osaurusd.imports.worker.quantization import Scheme
from osaurusd.imports.worker.transforms import Transform
from osaurusd.wire.errors import as_json

# Tensors that become part of the config, or that mlx_lm computes itself.
_CONFIG_TENSORS = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}


@dataclass(frozen=True)
class Parameter:
    """A parameter of the network. `quantizable`: MLX has a quantized layer for it. `embedding`: it is an embedding."""

    name: str
    shape: tuple[int, ...]
    quantizable: bool
    embedding: bool


@dataclass(frozen=True)
class Placement:
    """Where one parameter comes from.

    Attributes:
        sources: empty writes zeros; several are stacked, unless `transform` combines them.
        scheme: the quantized format; None for floats.
    """

    parameter: Parameter
    sources: tuple[TensorInfo, ...]
    transform: Transform | None
    scheme: Scheme | None

    @property
    def held(self) -> bool:
        """Whether the blocks of all sources are stored as they are."""
        return (
            self.scheme is not None
            and not (self.transform and self.transform.values)
            and all(
                quantization.held_scheme(tensor.type, embedding=self.parameter.embedding) == self.scheme
                for tensor in self.sources
            )
        )


@dataclass(frozen=True)
class Plan:
    """Everything needed to write the model. `float_type` (F16, BF16 or F32) is that of tensors not quantized."""

    config: dict[str, Any]
    placements: list[Placement]
    float_type: str


@dataclass(frozen=True)
class Options:
    """How to store matrices: `bits` for all of them, 0 for floats, None to preserve each one's quality."""

    bits: int | None = None
    group_size: int = 32


def plan_conversion(header: GgufHeader, options: Options) -> Plan:
    """Plan how to write the model for mlx_lm.

    Raises:
        ImportFailed: mlx_lm cannot run the model, or a tensor is missing, unexpected, or of an unsupported type or
            shape. The message names it.
    """
    facts = Facts(header)
    _check_text_only(facts)
    family = families.find(facts)
    config = family.build_config(facts)
    placements = [
        _place(facts, family, parameter, options)
        for parameter in _parameters(facts, config)
        if not (parameter.name in family.optional and family.source_of(parameter.name) not in header.tensors)
    ]
    _check_no_unknown_tensors(header, family, placements)
    if options.bits and all(placement.scheme is None for placement in placements):
        raise header.metadata.failure(
            "no matrix can be quantized, because no row is a multiple of 32 weights; use --quantize none"
        )
    float_type = _float_type(family, placements)
    config |= {"torch_dtype": {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[float_type]}
    return Plan(config | _quantization_config(placements), placements, float_type)


def _parameters(facts: Facts, config: dict[str, Any]) -> list[Parameter]:
    """Return the parameters of mlx_lm's network. Its arrays are never computed."""
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    try:
        network = module.Model(module.ModelArgs.from_dict(config))
        modules = {f"{name}.weight": module for name, module in network.named_modules()}
        leaves: list[Any] = list(tree_flatten(network.parameters()))
        parameters = [(name, tuple(value.shape)) for name, value in leaves]
    except Exception as error:  # the constructors of mlx_lm raise whatever unusual sizes lead to
        raise facts.metadata.failure(f"mlx_lm cannot build the network: {error}") from error
    return [
        Parameter(name, shape, hasattr(modules.get(name), "to_quantized"), isinstance(modules.get(name), nn.Embedding))
        for name, shape in parameters
    ]


def _place(facts: Facts, family: Family, parameter: Parameter, options: Options) -> Placement:
    sources, transform = family.sources_of(facts, parameter.name)
    found = [_find(facts, name) for name in sources]
    tensors = tuple(tensor for group in found for tensor in group)
    if len(tensors) < len(sources):
        if parameter.name.endswith(".bias") and not tensors:
            # mlx_lm has biases for all projections of a block or for none.
            return Placement(parameter, (), None, None)
        missing = sources[[bool(group) for group in found].index(False)]
        raise facts.metadata.failure(f"the tensor {as_json(missing)} is missing")
    for tensor in tensors:
        _check_type(facts, tensor, floats=len(tensor.shape) == 1 and transform is not None)
    if transform is None or transform.keeps_shape:
        _check_shape(facts, parameter, tensors)
    return Placement(parameter, tensors, transform, _scheme(parameter, tensors, transform, options))


def _find(facts: Facts, name: str) -> list[TensorInfo]:
    """Return the tensor `name`, or those of the single experts, as older files store them."""
    tensors = facts.header.tensors
    if name in tensors:
        return [tensors[name]]
    experts: list[TensorInfo] = []
    if "_exps." in name:
        while (single := name.replace("_exps.", f".{len(experts)}.")) in tensors:
            experts.append(tensors[single])
    return experts


def _check_type(facts: Facts, tensor: TensorInfo, *, floats: bool) -> None:
    ggml_type = GGMLQuantizationType[tensor.type]
    try:
        with np.errstate(all="ignore"):
            dequantize(np.zeros((1, GGML_QUANT_SIZES[ggml_type][1]), np.uint8), ggml_type)
        supported = not floats or GGML_QUANT_SIZES[ggml_type][0] == 1
    except NotImplementedError:
        supported = False
    if not supported:
        raise facts.metadata.failure(
            f"tensor {as_json(tensor.name)} has the type {tensor.type}, which is not supported"
        )


def _check_shape(facts: Facts, parameter: Parameter, tensors: tuple[TensorInfo, ...]) -> None:
    shape = tensors[0].shape if len(tensors) == 1 else (len(tensors), *tensors[0].shape)
    uneven = any(tensor.shape != tensors[0].shape for tensor in tensors)
    # Dimensions of one are left out of files.
    if uneven or [size for size in shape if size > 1] != [size for size in parameter.shape if size > 1]:
        raise facts.metadata.failure(
            f"tensor {as_json(tensors[0].name)} has the shape {list(shape)}, "
            f"but the metadata implies {list(parameter.shape)}"
        )


def _scheme(
    parameter: Parameter, tensors: tuple[TensorInfo, ...], transform: Transform | None, options: Options
) -> Scheme | None:
    if not parameter.quantizable or options.bits == 0:
        return None
    types, embedding = {tensor.type for tensor in tensors}, parameter.embedding
    held = quantization.held_scheme(next(iter(types)), embedding=embedding) if len(types) == 1 else None
    if transform and transform.values:
        held = None
    if options.bits is None:
        automatic = [quantization.automatic_scheme(name, embedding=embedding) for name in types]
        schemes = [scheme for scheme in automatic if scheme]
        bits = max(scheme.bits for scheme in schemes) if len(schemes) == len(types) else 0
    else:
        # Routers are small and sensitive. llama.cpp's quantization leaves them out as well.
        bits = 0 if "ffn_gate_inp" in tensors[0].name else options.bits
    scheme = held if held and held.bits == bits else Scheme(bits, _group_size(parameter, options.group_size))
    return None if not bits or parameter.shape[-1] % scheme.group_size else scheme


def _group_size(parameter: Parameter, largest: int) -> int:
    """Return the largest group size that divides a row, up to `largest`; the smallest one if none does."""
    sizes = [size for size in quantization.GROUP_SIZES if size <= largest and parameter.shape[-1] % size == 0]
    return max(sizes, default=min(quantization.GROUP_SIZES))


def _float_type(family: Family, placements: list[Placement]) -> str:
    """Return the type of all floats. MLX computes in the widest one: a single F32 norm would make activations F32."""
    matrices = [tensor.type for placement in placements for tensor in placement.sources if len(tensor.shape) > 1]
    if all(tensor.type == "F32" for placement in placements for tensor in placement.sources):
        return "F32" if all(placement.scheme is None for placement in placements) else family.float_type
    if matrices.count("BF16") * 2 > len(matrices):
        return "BF16"
    return family.float_type


def _check_text_only(facts: Facts) -> None:
    """Reject files in which Ollama stores an image encoder beside a text model that this package does not know."""
    if any(name.startswith(ENCODER_TENSORS) for name in facts.header.tensors):
        raise facts.metadata.failure(
            f"it contains an image encoder, which Ollama's own format of the architecture "
            f"{as_json(facts.architecture)} stores beside the text model, and which is not supported; "
            "use a GGUF file for llama.cpp, such as those at hf.co"
        )


def _check_no_unknown_tensors(header: GgufHeader, family: Family, placements: Iterable[Placement]) -> None:
    known = {tensor.name for placement in placements for tensor in placement.sources}
    if unknown := sorted(header.tensors.keys() - known - _CONFIG_TENSORS):
        raise header.metadata.failure(
            f"unexpected tensor {as_json(unknown[0])} in a model of the family {family.title}"
        )


def _quantization_config(placements: Iterable[Placement]) -> dict[str, Any]:
    """Return the key `quantization` for mlx_lm's `load_model`: the most common format, and each module that differs."""
    schemes = {
        placement.parameter.name.removesuffix(".weight"): placement.scheme
        for placement in placements
        if placement.parameter.quantizable
    }
    used = Counter(scheme for scheme in schemes.values() if scheme)
    if not used:
        return {}
    default = used.most_common(1)[0][0]
    differing: Iterator[tuple[str, Any]] = (
        (module, scheme.as_config() if scheme else False) for module, scheme in schemes.items() if scheme != default
    )
    return {"quantization": {**default.as_config(), **dict(differing)}}
