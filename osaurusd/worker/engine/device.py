"""The device that MLX computes on, as far as decisions depend on it."""

from dataclasses import dataclass
from typing import Literal

import mlx.core as mx

# MLX starts the message of every failed Metal command with this.
_METAL_ERROR = "[METAL]"


@dataclass(frozen=True)
class Device:
    """A device.

    Attributes:
        name: `cpu`, or the name of the GPU.
        working_set_bytes: the GPU's recommended limit for all processes together; None without a GPU.
    """

    kind: Literal["cpu", "metal", "cuda"]
    name: str = "cpu"
    working_set_bytes: int | None = None

    @classmethod
    def default(cls) -> "Device":
        """Return the device that MLX uses by default."""
        if mx.default_device() == mx.cpu:
            return CPU
        facts = mx.device_info()
        recommended = facts.get("max_recommended_working_set_size")
        return cls(
            kind="metal" if mx.metal.is_available() else "cuda",
            name=str(facts.get("device_name", "gpu")),
            working_set_bytes=int(recommended) if recommended else None,
        )

    @property
    def is_gpu(self) -> bool:
        return self.kind != "cpu"


CPU = Device("cpu")


def is_device_failure(error: BaseException) -> bool:
    """Whether `error` reports a failed Metal command, after which all later commands of the process fail."""
    return isinstance(error, RuntimeError) and _METAL_ERROR in str(error)
