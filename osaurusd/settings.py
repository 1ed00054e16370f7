"""The configuration in force, which a reload replaces while requests are served."""

from collections.abc import Callable

from osaurusd.config import NEEDS_RESTART, Config, as_far_as_possible, changed_keys

ConfigHook = Callable[[Config], None]


class Settings:
    """Holds the configuration. Code that needs a value reads it from `config` when it needs it.

    Args:
        config: the initial configuration.
        read: reads file, environment and flags again.
    """

    def __init__(self, config: Config, read: Callable[[], Config]) -> None:
        self.config = config
        self._read = read
        self._validators: list[ConfigHook] = []
        self._listeners: list[ConfigHook] = []

    def add_validator(self, validate: ConfigHook) -> None:
        """Call `validate` with each new configuration before it applies; an exception keeps the old one in force."""
        self._validators.append(validate)

    def add_listener(self, listener: ConfigHook) -> None:
        """Call `listener` with each configuration that comes into force."""
        self._listeners.append(listener)

    def reload(self) -> tuple[list[str], list[str]]:
        """Read the configuration again.

        Returns:
            The changed keys that are in force now, and those that need a restart.

        Raises:
            ConfigError: the new configuration is invalid; the old one stays in force.
        """
        config = self._read()
        changed = changed_keys(self.config, config)
        for validate in self._validators:
            validate(config)
        self.config = as_far_as_possible(self.config, config)
        for listener in self._listeners:
            listener(self.config)
        return [key for key in changed if key not in NEEDS_RESTART], [key for key in changed if key in NEEDS_RESTART]
