"""The configuration: one frozen object from the file, the environment and the command line."""

from osaurusd.config.connections import SHUTDOWN_GRACE_SECONDS, Limits, Server
from osaurusd.config.distributed import Distributed
from osaurusd.config.keys import Section
from osaurusd.config.live import ConfigChange, LiveConfig
from osaurusd.config.loading import ENVIRONMENT, load
from osaurusd.config.schema import (
    BUDGET_FRACTION,
    Config,
    Defaults,
    Input,
    Log,
    Models,
    Pulls,
    Residency,
    Responses,
    Structured,
    Vision,
    Worker,
)
from osaurusd.config.settings import NEEDS_RESTART, Setting, known_keys, settings, value_of

__all__ = [
    "BUDGET_FRACTION",
    "ENVIRONMENT",
    "NEEDS_RESTART",
    "SHUTDOWN_GRACE_SECONDS",
    "Config",
    "ConfigChange",
    "Defaults",
    "Distributed",
    "Input",
    "Limits",
    "LiveConfig",
    "Log",
    "Models",
    "Pulls",
    "Residency",
    "Responses",
    "Section",
    "Server",
    "Setting",
    "Structured",
    "Vision",
    "Worker",
    "known_keys",
    "load",
    "settings",
    "value_of",
]
