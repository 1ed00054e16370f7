"""What the metadata and tensors of a GGUF file say about its network, checked for consistency and plausibility."""

from typing import Any

import numpy as np
import numpy.typing as npt
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize

from osaurusd.imports.worker.gguf import GgufHeader, TensorInfo
from osaurusd.imports.worker.metadata import MAX_LAYERS, Metadata, shortest_float32
from osaurusd.wire.errors import as_json

EMBEDDING = "token_embd.weight"
OUTPUT = "output.weight"

# Far above any real network; larger sizes overflow MLX's 32-bit shapes.
MAX_SIZE = 1 << 24

# Keys that can change the computation, with the values that do not. A family that implements a key reads it; for the
# others, any other value is an error.
_NEUTRAL_VALUES = {
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "attention.scale": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.temperature_scale": (0.0,),
    "expert_count": (0.0,),
}


class Facts:
    """Sizes and settings by their key without the architecture, such as `attention.head_count`."""

    def __init__(self, header: GgufHeader) -> None:
        self.header = header
        self.metadata: Metadata = header.metadata
        self.architecture = header.metadata.text("general.architecture")
        self._read: set[str] = set()
        if (kind := self.metadata.find_text("general.type")) not in (None, "model"):
            raise self.metadata.failure(f"the file contains a {as_json(kind)}, not a model")

    def key(self, name: str) -> str:
        self._read.add(name)
        return f"{self.architecture}.{name}"

    def has(self, name: str) -> bool:
        """Whether the file has a tensor."""
        return name in self.header.tensors

    def size(self, name: str, default: int | None = None) -> int:
        """Return a positive integer, which is `default` if the key is missing."""
        key = self.key(name)
        value = self.metadata.find_integer(key)
        value = (self.metadata.integer(key) if default is None else default) if value is None else value
        if not 0 < value <= MAX_SIZE:
            raise self.metadata.failure(f"the metadata key {as_json(key)} is {value}, but must be 1 to {MAX_SIZE}")
        return value

    def find_size(self, name: str) -> int | None:
        """Return a positive integer, or None if the key is missing or 0."""
        return self.size(name) if self.metadata.find_integer(self.key(name)) else None

    def number(self, name: str, default: float | None = None) -> float:
        key = self.key(name)
        value = self.metadata.number(key) if default is None else self.metadata.find_number(key)
        return shortest_float32(value) if value is not None else float(default or 0.0)

    def find_number(self, name: str) -> float | None:
        value = self.metadata.find_number(self.key(name))
        return None if value is None else shortest_float32(value)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.metadata.find_flag(self.key(name))
        return default if value is None else value

    @property
    def layers(self) -> int:
        layers = self.size("block_count")
        # Checked before anything is allocated for each layer.
        if layers > MAX_LAYERS:
            raise self.metadata.failure(f"it declares {layers} layers, more than {MAX_LAYERS}")
        if layers > len(self.header.tensors):
            raise self.metadata.failure(f"it declares {layers} layers, but has only {len(self.header.tensors)} tensors")
        return layers

    @property
    def hidden(self) -> int:
        return self.size("embedding_length")

    @property
    def heads(self) -> int:
        return self.size("attention.head_count")

    @property
    def kv_heads(self) -> int:
        kv_heads = self.size("attention.head_count_kv", self.heads)
        if self.heads % kv_heads:
            raise self.metadata.failure(f"{self.heads} heads with {kv_heads} key/value heads are invalid")
        return kv_heads

    @property
    def head_dim(self) -> int:
        head_dim = self.size("attention.key_length", max(1, self.hidden // self.heads))
        if self.size("attention.value_length", head_dim) != head_dim:
            key = self.key("attention.value_length")
            raise self.metadata.failure(f"the metadata key {as_json(key)} is not {head_dim} like the length of keys")
        if head_dim % 2:
            raise self.metadata.failure(f"{self.heads} heads of size {head_dim} are invalid")
        return head_dim

    @property
    def rotary_dim(self) -> int:
        return self.find_size("rope.dimension_count") or self.head_dim

    @property
    def rotary_fraction(self) -> float:
        if self.rotary_dim > self.head_dim:
            raise self.metadata.failure(f"RoPE rotates {self.rotary_dim} of {self.head_dim} dimensions")
        return self.rotary_dim / self.head_dim

    @property
    def experts(self) -> int:
        return self.metadata.find_integer(self.key("expert_count")) or 0

    @property
    def vocabulary(self) -> int:
        return self.tensor(EMBEDDING).shape[0]

    @property
    def tied(self) -> bool:
        return not self.has(OUTPUT)

    def tensor(self, name: str) -> TensorInfo:
        if name not in self.header.tensors:
            raise self.metadata.failure(f"the tensor {as_json(name)} is missing")
        return self.header.tensors[name]

    def read_vector(self, name: str, length: int) -> npt.NDArray[np.float64] | None:
        """Read a tensor of floats of this length as float64. Return None if the file has no such tensor."""
        if not self.has(name):
            return None
        tensor = self.tensor(name)
        if tensor.type not in ("F32", "F16") or tensor.shape != (length,):
            raise self.metadata.failure(f"tensor {as_json(name)} is {tensor.type} of the shape {list(tensor.shape)}")
        data = np.frombuffer(self.header.read(tensor), dtype=np.uint8)
        values = dequantize(data, GGMLQuantizationType[tensor.type]).astype(np.float64)
        if not np.all(np.isfinite(values)) or values.min() <= 0:
            raise self.metadata.failure(f"tensor {as_json(name)} has a factor that is not a positive number")
        return values

    def check_all_settings_are_known(self) -> None:
        """Reject a file with a setting that has not been read, and changes the computation.

        Raises:
            ImportFailed: the message names the key.
        """
        for name, neutral in _NEUTRAL_VALUES.items():
            if name in self._read:
                continue
            key = f"{self.architecture}.{name}"
            if (value := self.metadata.find_number(key)) is not None and value not in neutral:
                raise self.metadata.failure(f"the metadata key {as_json(key)} has the unsupported value {value:g}")


def constant(value: Any) -> Any:
    """Return a setting that does not depend on the file."""
    return lambda _: value
