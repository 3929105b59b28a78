"""Commands run in this process, and folders that none can write."""

import pytest

from pernodedrop.commands.cli import main


def exits(argv):
    """The exit code of a command that ends before it has begun."""
    with pytest.raises(SystemExit) as stop:
        main(argv)
    return stop.value.code


IMPOSSIBLE = ["taken", "taken/below", "/dev/null/below", "x" * 300]
"""Where no folder can be, in a folder that has a file called taken; what no root can write either."""
