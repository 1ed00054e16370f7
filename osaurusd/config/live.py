"""The configuration in force, which a reload replaces while the daemon serves."""

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from osaurusd.config.schema import Config
from osaurusd.config.settings import NEEDS_RESTART, known_keys, value_of


class ConfigChange(NamedTuple):
    """A configuration that was read again.

    Attributes:
        wanted: the configuration in the sources.
        effective: `wanted`, but with the running values of keys that need a restart.
        applied: changed keys that can take effect now.
        needs_restart: changed keys that take effect after a restart.
    """

    wanted: Config
    effective: Config
    applied: list[str]
    needs_restart: list[str]


class LiveConfig:
    """Holds the configuration in force. Read `current` at each use; do not keep a copy.

    Args:
        current: the configuration in force.
        read: reads and checks the file, the environment and the command line again.
    """

    def __init__(self, current: Config, read: Callable[[], Config]) -> None:
        self.current = current
        self._read = read

    def read_again(self) -> ConfigChange:
        """Read the sources again, without putting anything into force.

        Raises:
            ConfigError: the configuration is invalid.
        """
        wanted = self._read()
        changed = changed_keys(self.current, wanted)
        return ConfigChange(
            wanted,
            keep_restart_keys(self.current, wanted),
            applied=[key for key in changed if key not in NEEDS_RESTART],
            needs_restart=[key for key in changed if key in NEEDS_RESTART],
        )


def changed_keys(old: Config, new: Config) -> list[str]:
    """The dotted keys whose values differ, in the order of the file."""
    return [key for key in known_keys() if value_of(old, key) != value_of(new, key)]


def keep_restart_keys(running: Config, wanted: Config) -> Config:
    """`wanted`, but with the running values of keys that need a restart."""
    for key in NEEDS_RESTART:
        section, _, name = key.partition(".")
        kept = msgspec.structs.replace(getattr(wanted, section), **{name: value_of(running, key)})
        wanted = msgspec.structs.replace(wanted, **{section: kept})
    return wanted
