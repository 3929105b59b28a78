"""`pernodedrop check`: the contract of a noise from the command line, with a picture."""

import importlib
import pathlib
import sys

from hypothesis import strategies as st

from pernodedrop import checks
from pernodedrop.noise import Noise
from pernodedrop.report.results import output_file
from pernodedrop.testing import picture
from pernodedrop.testing.report import Refused
from pernodedrop.testing.search import check_noise, representative

FOLDER = pathlib.Path("check-results")


def check(noise, **arguments):
    """Check a noise, a class or a strategy with a progress bar, and print the report.

    Args:
        noise, **arguments: those of `check_noise`.

    Returns:
        Whether it is refused.
    """
    try:
        print(check_noise(noise, progress=True, **arguments))
    except Refused as error:
        print(error.report)
        return True
    return False


def draw(noise, path, refused):
    """Draw a noise and say where; a noise that is refused may be one that cannot be drawn."""
    try:
        picture.draw(representative(noise), path)
    except Exception as error:
        if not refused:
            raise
        print(f"no picture: {error!r}")
    else:
        print(f"picture: {path}")


def picture_path(target, path=None):
    """Where the picture goes: `path`, or check-results/<name>.png, in a folder that is made.

    Raises:
        ValueError: a format that pictures cannot have, or a file that cannot be written.
    """
    path = pathlib.Path(path or FOLDER / f"{target.rpartition(':')[2]}.png")
    picture.check_format(path)
    return output_file(path, "picture")


def load(target):
    """The noise, class or strategy called "module:name", of a module that may lie in the working folder.

    Raises:
        TypeError, ValueError, ImportError: a target that is not there or is no noise.
    """
    module, colon, name = target.partition(":")
    if not (module and colon and name.isidentifier()) or module.endswith(".py"):
        raise ValueError(checks.invalid("target", "'module:name', such as 'my_noises:Triangular'", target))
    sys.path.insert(0, "")  # the working folder, as for `python -m`
    try:
        found = getattr(importlib.import_module(module), name, None)
    finally:
        sys.path.remove("")
    if found is None:
        raise ValueError(checks.invalid("target", f"a name in module {module!r}", target))
    if not isinstance(found, Noise | st.SearchStrategy | type):
        raise TypeError(checks.invalid("target", "a noise, a Noise class or a Hypothesis strategy of noises", found))
    return found
