"""Studies by name: small TOML files, which anyone can copy and change."""

import pathlib
import tomllib
import typing

from pernodedrop import checks
from pernodedrop.study import datasets, networks, variants
from pernodedrop.study.study import Study

__all__ = ["load", "names", "read"]

FOLDER = pathlib.Path(__file__).parent / "studies"

OF_DATA = "options"
"""The table of a file that the loading of its data takes."""

LAYERS = "layers"
"""The table of a file that has variants of its own."""

TEXTS = ("title", "data", "network")


def names() -> tuple[str, ...]:
    """The names of the studies that come with the package.

    >>> from pernodedrop.study import named
    >>> "digits" in named.names()
    True
    """
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def read(name: str) -> dict[str, typing.Any]:
    """What the file of a study says.

    Args:
        name: of a study that comes with the package, or the path of a file that ends in .toml.

    Raises:
        TypeError, ValueError: a study or file that does not exist, or that is not TOML or lacks a title, data or
            network.
    """
    given = checks.check_path(name, "name")
    if given.suffix != ".toml":
        path = FOLDER / f"{checks.check_choice(name, 'name', names())}.toml"
    elif not given.is_file():
        raise ValueError(checks.invalid("name", f"one of {', '.join(names())}, or a .toml file", name))
    else:
        path = given
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(checks.invalid("name", f"a file of TOML ({error})", name)) from error
    for text in TEXTS:
        if not isinstance(found.get(text), str):
            raise ValueError(f"{path}: {checks.invalid(text, 'a str', found.get(text))}")
    return found


def load(name: str, /, data: str | None = None, **arguments: typing.Any) -> Study:
    """The study that a file describes.

    The file has a title, the names of `data` and `network` (those of `pernodedrop.study.datasets` and `networks`), and
    further arguments of `pernodedrop.study.Study`; its table `options` has those of loading the data. Each table inside
    `layers` is a variant more than those in `variants`, with the arguments of `variants.of_layer`.

    Args:
        name: of a study that comes with the package, or the path of a file that ends in .toml.
        data: the folder where the data lie; None: as for `pernodedrop.study.datasets.load`.
        **arguments: those of `Study`, which override those of the file.

    Returns:
        A `Study` whose data are loaded when they are needed.

    Raises:
        TypeError, ValueError: a file, or an argument in it, that is not as described.

    >>> from pernodedrop.study import named
    >>> named.load("digits").name
    'digits'
    """
    found = read(name)
    del found["title"]
    of_data, network, options = found.pop("data"), found.pop("network"), found.pop(OF_DATA, {})
    checks.check_choice(of_data, "data", datasets.NAMES)
    found.setdefault("loss", networks.LOSSES[checks.check_choice(network, "network", networks.NAMES)])
    if own := found.pop(LAYERS, {}):
        known = {variant: variants.get(variant) for variant in found.get("variants", ())}
        found["variants"] = known | {variant: _of_layer(name, variant, table) for variant, table in own.items()}
    found["settings"] = {**found.get("settings", {}), **({"data": options} if options else {})}
    make = networks.get(network)

    def model(slot: typing.Any, data: typing.Any = None, **settings: typing.Any) -> typing.Any:
        return make(slot, **settings)

    try:
        return Study(
            **{
                "name": pathlib.Path(name).stem,
                "data": lambda: datasets.load(of_data, data, **options),
                "model": model,
                **found,
                **arguments,
            }
        )
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from error


def _of_layer(file: str, variant: str, table: dict[str, typing.Any]) -> variants.Variant:
    try:
        return variants.of_layer(**table)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{file}, {LAYERS}.{variant}: {error}") from error
