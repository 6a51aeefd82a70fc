"""`python -m vswin_extract` is `vswin-extract`, or `vswin` if the first word is one of its commands."""

import sys

from vswin_extract.cli import ALIASES, COMMANDS, vswin
from vswin_extract.cli.extract import extract

if __name__ == "__main__":
    command = vswin if sys.argv[1:2] and sys.argv[1] in (*COMMANDS, *ALIASES) else extract
    command(prog_name="python -m vswin_extract")
