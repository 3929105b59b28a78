"""The demo: a small study of handwritten digits, after a look at whether every backend makes the same masks."""

import dataclasses
import os
import pathlib

import keras
import sklearn.datasets  # noqa: F401 - it has the digits: where it is not installed the command says so at once

from pernodedrop import checks
from pernodedrop.commands import doctor
from pernodedrop.commands.study import go_on
from pernodedrop.report.results import output_folder
from pernodedrop.study import named
from pernodedrop.study.study import Study

RATES = (0.2, 0.5)

VARIANTS = tuple(named.load("digits").variants)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to run.

    Args:
        seeds: how many fresh seeds confirm, an int from 1.
        epochs: epochs of each run, an int from 1.
        variants: names of `VARIANTS`; None takes all.
        output: the folder that results go to, which is made; None is demo-results/<backend>.

    Raises:
        TypeError, ValueError: an argument that is not one of these.
    """

    seeds: int = 5
    epochs: int = 25
    variants: tuple[str, ...] | list[str] | None = None
    output: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        checks.check_count(self.seeds, "seeds")
        checks.check_count(self.epochs, "epochs")
        for name in self.variants or ():
            checks.check_choice(name, "variants", VARIANTS)
        output_folder(self.folder)

    @property
    def folder(self) -> pathlib.Path:
        """Where results go."""
        return pathlib.Path(self.output or pathlib.Path("demo-results", keras.backend.backend()))

    def study(self) -> Study:
        """The study of digits at this size."""
        return named.load(
            "digits",
            name="demo",
            variants=[name for name in VARIANTS if name in (self.variants or VARIANTS)],
            rates=RATES,
            select_seeds=1,
            seeds=self.seeds,
            epochs=self.epochs,
            folder=self.folder,
        )


def run(settings: Settings) -> int:
    """Check the masks, run the study, say what it found, and write its report. What had finished before stays.

    Args:
        settings: a `Settings`.

    Returns:
        The exit code, 0.

    Raises:
        KeyboardInterrupt: after Ctrl-C, once what has finished is reported.
    """
    print(doctor.report(doctor.compare()), flush=True)
    go_on(settings.study(), again="pernodedrop demo, with the same settings")
    return 0
