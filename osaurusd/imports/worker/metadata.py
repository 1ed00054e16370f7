"""Typed access to the metadata of a GGUF file."""

import math
from collections.abc import Iterator, Mapping
from typing import TypeAlias, TypeVar, cast

import numpy as np

from osaurusd.errors import ImportFailed
from osaurusd.wire.errors import as_json

Value: TypeAlias = "int | float | bool | str | list[Value]"

# Far above any real network. mlx_lm's objects for a layer take about 0.1 MB.
MAX_LAYERS = 1024

T = TypeVar("T")


def shortest_float32(number: float) -> float:
    """Return the shortest decimal with the same float32 value: 1e-05 instead of 9.999999747378752e-06."""
    return float(str(np.float32(number)))


class Metadata:
    """Typed access to a GGUF file's metadata.

    The `find_` methods return None for a missing key; the others reject the file. All raise `ImportFailed` with the
    file and the key if the value has another type.
    """

    def __init__(self, file_name: str, values: Mapping[str, Value]) -> None:
        self.file_name = file_name
        self._values = values

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def items(self) -> Iterator[tuple[str, Value]]:
        return iter(self._values.items())

    def failure(self, reason: str) -> ImportFailed:
        """Build an error that names the file."""
        return ImportFailed(f"{self.file_name}: {reason}")

    def find_text(self, key: str) -> str | None:
        value = self._values.get(key)
        if value is None or isinstance(value, str):
            return value
        raise self._wrong(key, "text")

    def text(self, key: str) -> str:
        return self._present(key, self.find_text(key))

    def find_integer(self, key: str) -> int | None:
        """Return an integer. Some writers repeat it for each layer: a list of equal integers counts as one."""
        value = self._values.get(key)
        if isinstance(value, list) and 0 < len(value) <= MAX_LAYERS and all(item == value[0] for item in value):
            value = value[0]
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        raise self._wrong(key, "one integer")

    def integer(self, key: str) -> int:
        return self._present(key, self.find_integer(key))

    def find_number(self, key: str) -> float | None:
        value = self._values.get(key)
        if value is None:
            return None
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        raise self._wrong(key, "a finite number")

    def number(self, key: str) -> float:
        return self._present(key, self.find_number(key))

    def find_flag(self, key: str) -> bool | None:
        value = self._values.get(key)
        if value is None or isinstance(value, bool):
            return value
        raise self._wrong(key, "a boolean")

    def is_list(self, key: str) -> bool:
        return isinstance(self._values.get(key), list)

    def find_texts(self, key: str) -> list[str] | None:
        value = self._values.get(key)
        if value is None:
            return None
        if isinstance(value, list) and set(map(type, value)) <= {str}:
            return cast(list[str], value)
        raise self._wrong(key, "a list of texts")

    def texts(self, key: str) -> list[str]:
        return self._present(key, self.find_texts(key))

    def find_numbers(self, key: str) -> list[float] | None:
        value = self._values.get(key)
        if value is None:
            return None
        if isinstance(value, list) and set(map(type, value)) <= {int, float, bool}:
            numbers = [float(item) for item in cast(list[float], value)]
            if all(map(math.isfinite, numbers)):
                return numbers
        raise self._wrong(key, "a list of finite numbers")

    def _present(self, key: str, value: T | None) -> T:
        if value is None:
            raise self.failure(f"the metadata key {as_json(key)} is missing")
        return value

    def _wrong(self, key: str, expected: str) -> ImportFailed:
        return self.failure(f"the metadata key {as_json(key)} is not {expected}")
