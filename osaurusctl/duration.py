"""Spans of time on the command line."""

import re

import click

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")


class Duration(click.ParamType[float]):
    """`90`, `90s`, `15m`, `1h`, `2d`, in seconds; `-1` is for ever."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value).strip()
        if text == "-1":
            return -1.0
        if (found := _SPAN.fullmatch(text)) is None:
            self.fail(f"{value!r} is no span of time; write `90s`, `15m`, `1h`, `2d`, or `-1` for ever", param, ctx)
        return float(found[1]) * _UNITS[found[2]]
