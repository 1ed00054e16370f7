"""The pinned models, remembered across restarts."""

from pathlib import Path

import msgspec

from osaurusd.platform.state_file import StateFile

VERSION = 1


class _State(msgspec.Struct, kw_only=True):
    """The file's content: the repos of pinned models in the order of their pins."""

    version: int = VERSION
    pins: list[str] = []


class Pins:
    """The set of pinned models in one small file; reads and writes block.

    Args:
        file: an unreadable file is moved aside and reported in `fault`.
    """

    def __init__(self, file: Path) -> None:
        self._file = StateFile(file, _State())
        self._pins = self._file.read().pins
        self.fault = self._file.fault

    @property
    def all(self) -> list[str]:
        return list(self._pins)

    def add(self, repo: str) -> None:
        """Save a pin."""
        if repo not in self._pins:
            self._save([*self._pins, repo])

    def remove(self, repo: str) -> None:
        """Delete a pin."""
        if repo in self._pins:
            self._save([pin for pin in self._pins if pin != repo])

    def _save(self, pins: list[str]) -> None:
        self._file.write(_State(pins=pins))
        self._pins = pins
