"""Archives of data, found, checked and downloaded, and what was decoded kept; nothing of the user's is changed."""

import collections.abc
import hashlib
import json
import os
import pathlib
import tempfile
import typing
import zipfile

import numpy as np

from pernodedrop import checks

Part: typing.TypeAlias = tuple[typing.Any, typing.Any]
Arrays: typing.TypeAlias = dict[str, np.ndarray]


class Splits(tuple[Part, Part, Part]):
    """((x, y), (x, y), (x, y)) to train, to validate and to test on, with the title of the data.

    Attributes:
        title: the name under which results are reported.
    """

    title: str

    def __new__(cls, parts: collections.abc.Iterable[Part], title: str) -> "Splits":
        splits = super().__new__(cls, parts)
        splits.title = title
        return splits


class Archive(typing.NamedTuple):
    """A file that data come in.

    Attributes:
        name: of the file in a folder.
        sha256: of the file.
        title: the name under which results on it are reported.
        url: where it is downloaded from, or None if it is not.
        kept_as: the name under which Keras keeps it; None is the same.
    """

    name: str
    sha256: str
    title: str
    url: str | None = None
    kept_as: str | None = None


def data_folder(folder: str | os.PathLike[str] | None) -> pathlib.Path | None:
    """The folder that archives lie in, by the argument or PERNODEDROP_DATA; None if neither says one."""
    argument = "folder" if folder is not None else "PERNODEDROP_DATA"
    folder = os.environ.get("PERNODEDROP_DATA") or None if folder is None else folder
    if folder is not None and not pathlib.Path(folder).is_dir():
        raise ValueError(checks.invalid(argument, "a folder that is there", str(folder)))
    return None if folder is None else pathlib.Path(folder)


def locate(archives: collections.abc.Sequence[Archive], folder: pathlib.Path | None) -> tuple[pathlib.Path, Archive]:
    """The path of the first archive that is in the folder, or without one of the first, downloaded; and which it is."""
    if folder is None:
        path = download(archives[0])
        return path, identify(path, archives)
    for archive in archives:
        if (path := folder / archive.name).exists():
            return path, identify(path, [other for other in archives if other.name == archive.name])
    expected = " or ".join(dict.fromkeys(archive.name for archive in archives))
    raise FileNotFoundError(checks.invalid("folder", f"a folder with {expected}", str(folder)))


def download(archive: Archive) -> pathlib.Path:
    """Download an archive to where Keras keeps its data sets, unless it is there, and return its path."""
    import keras

    home = pathlib.Path(os.environ.get("KERAS_HOME") or pathlib.Path.home() / ".keras")
    name = archive.kept_as or archive.name
    if (path := home / "datasets" / name).exists():
        return path  # to be identified: Keras would write over one that is corrupt
    home.mkdir(parents=True, exist_ok=True)
    try:
        path = keras.utils.get_file(name, origin=archive.url, file_hash=archive.sha256, cache_dir=str(home))
    except Exception as error:  # Keras raises this very class
        raise not_downloaded(archive.url or archive.name, archive.name, error) from error
    return pathlib.Path(path)


def not_downloaded(what: str, name: str, error: Exception) -> ConnectionError:
    """The error of a download that failed, which says what to do without one."""
    advice = f"Put {name} into a folder, and give that as `folder` or by the variable PERNODEDROP_DATA"
    return ConnectionError(f"{what} could not be downloaded: {error}. {advice}.")


def identify(path: pathlib.Path, archives: collections.abc.Sequence[Archive]) -> Archive:
    """Which of the archives a file is, or a ValueError if it is none."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    for archive in archives:
        if archive.sha256 == found:
            return archive
    expected = " or ".join(archive.sha256 for archive in archives)
    raise ValueError(
        f"{path} is corrupt, half downloaded or another file: expected SHA-256 {expected}, found {found}. "
        "It is left as it is; move it away and get it again."
    )


def kept(name: str, key: dict[str, typing.Any], make: collections.abc.Callable[[], Arrays]) -> Arrays:
    """Arrays that take long to decode, from the folder PERNODEDROP_CACHE, or made and put there.

    Args:
        name: of the data, for people.
        key: all that the arrays depend on, as JSON has it.
        make: makes them.

    Raises:
        ValueError: a file there that cannot be read.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder() / f"{name}-{digest}.npz"
    if path.exists():
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            message = f"{path} is corrupt: {error}. It is left as it is; delete it, and it is made again."
            raise ValueError(message) from error
    arrays = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.stem, suffix=".part", delete=False) as part:
            np.savez(part, **arrays)  # type: ignore[arg-type] # its own keyword is `allow_pickle`
        pathlib.Path(part.name).replace(path)  # at once, so that it is whole or not there
    except OSError:
        pass  # the next run decodes again
    return arrays


def cache_folder() -> pathlib.Path:
    """Where decoded arrays are kept: PERNODEDROP_CACHE, or a folder of the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(os.environ.get("PERNODEDROP_CACHE") or pathlib.Path(home) / "pernodedrop")


def check_sizes(sizes: collections.abc.Sequence[int]) -> tuple[int, int, int]:
    """Return the sizes of the three parts, or raise."""
    if not isinstance(sizes, list | tuple) or len(sizes) != 3:
        raise ValueError(checks.invalid("sizes", "three ints, to train, to validate and to test on", sizes))
    train, validation, test = (checks.check_count(size, "sizes") for size in sizes)
    return train, validation, test


def choose(available: int, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of so many of the samples available, in an order of chance, or a ValueError if there are too few."""
    if wanted > available:
        raise ValueError(checks.invalid("sizes", f"at most {available} samples there", wanted))
    return rng.permutation(available)[:wanted]
