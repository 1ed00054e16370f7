"""`python -m osaurusctl`, and the entry point of the installed script."""

import io
import sys

from osaurusctl.cli import root


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A character that the terminal's encoding lacks is no reason to lose the rest of an answer.
            stream.reconfigure(errors="replace")
    root.main()


if __name__ == "__main__":
    main()
