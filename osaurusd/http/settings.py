"""The configuration in force, which a reload replaces while requests are served."""

from collections.abc import Callable

from osaurusd.config import NEEDS_RESTART, Config, as_far_as_possible, changed_keys

Read = Callable[[], Config]
Apply = Callable[[Config], None]


class Settings:
    """Holds the configuration; whoever needs a value takes it from `config` at the moment of need.

    Args:
        config: in force now.
        read: reads the file, environment and flags anew.
    """

    def __init__(self, config: Config, read: Read) -> None:
        self.config = config
        self._read = read
        self._vet: list[Apply] = []
        self._apply: list[Apply] = []

    def before_change(self, vet: Apply) -> None:
        """Have `vet` called before, with all that is wanted; what it raises keeps the old configuration in force."""
        self._vet.append(vet)

    def on_change(self, apply: Apply) -> None:
        """Have `apply` called with every new configuration."""
        self._apply.append(apply)

    def reload(self) -> tuple[list[str], list[str]]:
        """Read the configuration again; returns the changed keys that are in force now, and those that need a restart.

        Raises:
            ConfigError: it cannot be used; the old one stays in force.
        """
        wanted = self._read()
        changed = changed_keys(self.config, wanted)
        for vet in self._vet:
            vet(wanted)
        self.config = as_far_as_possible(self.config, wanted)
        for apply in self._apply:
            apply(self.config)
        return [key for key in changed if key not in NEEDS_RESTART], [key for key in changed if key in NEEDS_RESTART]
