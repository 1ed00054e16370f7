"""Temporary home of what the OpenAI handlers still look up."""

from osaurusd.config import Config, LiveConfig


class Settings(LiveConfig):
    @property
    def config(self) -> Config:
        return self.current
