"""Data of the papers' experiments, as arrays to train, to validate and to test on.

files.py finds, checks and downloads archives, and keeps what was decoded; images.py, text.py and speech.py say what is
in them, mel.py makes spectrograms; plane.py needs no archive.
"""

import os
import typing

from pernodedrop import checks
from pernodedrop.study.datasets import files, images, plane, speech, text
from pernodedrop.study.datasets.files import Splits

__all__ = ["NAMES", "Splits", "load"]

DATASETS = {
    "digits": images.digits,
    "mnist": images.mnist,
    "cifar10": images.cifar10,
    "cifar100": images.cifar100,
    "rcv1": text.rcv1,
    "speech": speech.speech,
    "plane": plane.plane,
}

NAMES = tuple(DATASETS)


def load(name: str, folder: str | os.PathLike[str] | None = None, **options: typing.Any) -> Splits:
    """Data by name: ((x, y), (x, y), (x, y)) to train, to validate and to test on.

    If there is a folder, archives are looked for in it alone; otherwise they are downloaded, to where Keras and
    scikit-learn keep theirs. An archive is used only if its SHA-256 is the known one, and is never changed.

    ========  ==============================================  =======================  =======================
    name      x                                               y                        default sizes
    ========  ==============================================  =======================  =======================
    digits    (n, 8, 8, 1) float32 in [0, 1]                  (n,) int32, 10 classes   300, 700, 797
    mnist     (n, 28, 28, 1) float32 in [0, 1]                (n,) int32, 10 classes   1,024, 1,000, 2,000
    cifar10   (n, 32, 32, 3) float32 in [0, 1]                (n,) int32, 10 classes   3,072, 2,000, 2,000
    cifar100  (n, 32, 32, 3) float32 in [0, 1]                (n,) int32, 100 classes  3,072, 2,000, 2,000
    rcv1      (n, 4096) float32, `scipy.sparse.csr_array`     (n, 25) float32, 0 or 1  8,000, 3,000, 3,000
    speech    (n, 64, 64, 1) float32 in [0, 1], mel spectra   (n,) int32, 8 words      1,900, 600, 600
    plane     (n, 2) float32 in [-1, 1], made up              (n, 1) float32, height   100, 200, 2,000
    ========  ==============================================  =======================  =======================

    Args:
        name: one of `NAMES`.
        folder: where archives lie; None takes the variable PERNODEDROP_DATA, and without that downloads.
        **options: `sizes`, how many samples the three parts have; `seed`, that of the split, 0; for rcv1 `terms`, 4096,
            those in most training documents, and `topics`, 25, the most frequent; for speech `size`, 64, the side of
            a spectrogram; for plane `deviation`, 0.3, that of the noise on the heights, except those to test on.

    Returns:
        A tuple of three pairs, which also has a `title`, such as "CIFAR-10 (JPEG)": data under its own name.

    Raises:
        ValueError: an argument that is not as described, or an archive other than the known one.
        FileNotFoundError: a folder without a known archive.
        ConnectionError: an archive that could not be downloaded.

    >>> train, validation, test = load("digits")
    >>> train[0].shape, test[1].shape
    ((300, 8, 8, 1), (797,))
    """
    return DATASETS[checks.check_choice(name, "name", NAMES)](files.data_folder(folder), **options)
