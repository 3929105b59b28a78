"""`python -m pernodedrop`: the command line."""

import sys

from pernodedrop.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
