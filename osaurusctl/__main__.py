"""The entry point of `osaurusctl` and `python -m osaurusctl`."""

import io
import sys

from osaurusctl.cli import root


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Replace characters that the terminal's encoding lacks instead of failing halfway through the output.
            stream.reconfigure(errors="replace")
    root.main()


if __name__ == "__main__":
    main()
