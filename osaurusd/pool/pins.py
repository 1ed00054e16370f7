"""Which models are pinned, remembered over restarts."""

from pathlib import Path

import msgspec

from osaurusd.platform.state import StateFile

VERSION = 1


class _State(msgspec.Struct, kw_only=True):
    """The file's content: the repos of pinned models, in the order they were pinned."""

    version: int = VERSION
    pins: list[str] = []


class Pins:
    """The pinned models, kept in one file. Blocking, but small.

    Args:
        file: where they are kept; one that cannot be used is moved aside, which `fault` says.
    """

    def __init__(self, file: Path) -> None:
        self._file = StateFile(file, _State())
        self._pins = self._file.read().pins
        self.fault = self._file.fault

    @property
    def all(self) -> list[str]:
        return list(self._pins)

    def add(self, repo: str) -> None:
        """Remember that a model is pinned."""
        if repo not in self._pins:
            self._save([*self._pins, repo])

    def remove(self, repo: str) -> None:
        """Remember that it is not."""
        if repo in self._pins:
            self._save([pin for pin in self._pins if pin != repo])

    def _save(self, pins: list[str]) -> None:
        self._file.write(_State(pins=pins))
        self._pins = pins
