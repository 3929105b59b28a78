"""Images: handwritten digits, MNIST, CIFAR-10 and CIFAR-100."""

import collections.abc
import io
import pathlib
import pickle
import tarfile
import typing

import numpy as np

from pernodedrop.study.datasets.files import Archive, Arrays, Splits, check_sizes, choose, kept, locate

Sizes: typing.TypeAlias = collections.abc.Sequence[int]

MNIST = [
    Archive(
        "mnist.npz",
        "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1",
        "MNIST",
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz",
    ),
    # the same arrays in a container of its own
    Archive("mnist.npz", "88eaf78b3cf8a302b5c253212171853934f34bb083759fe893a3554a84c56f0a", "MNIST"),
]
CIFAR10 = [
    Archive(
        "cifar-10-python.tar.gz",
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        "CIFAR-10",
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "cifar-10-batches-py-target_archive",
    ),
    Archive(
        "cifar10_images_jpeg.tar.xz",
        "49b27def32dbc2508a58bd1b8de4ca50e9b5461a6f0e91ea25b163598ad7f7eb",
        "CIFAR-10 (JPEG)",
    ),
]
CIFAR100 = [
    Archive(
        "cifar-100-python.tar.gz",
        "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        "CIFAR-100",
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        "cifar-100-python-target_archive",
    )
]


def digits(folder: pathlib.Path | None, sizes: Sizes = (300, 700, 797), seed: int = 0) -> Splits:
    """The 1,797 digits of scikit-learn, which come with it."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    where = np.split(choose(len(images), sum(check_sizes(sizes)), np.random.default_rng(seed)), np.cumsum(sizes)[:2])
    x, y = (images.reshape(-1, 8, 8, 1) / 16).astype("float32"), labels.astype("int32")
    return Splits([(x[part], y[part]) for part in where], "Handwritten digits")


def mnist(folder: pathlib.Path | None, sizes: Sizes = (1024, 1000, 2000), seed: int = 0) -> Splits:
    """MNIST (LeCun et al. 1998): validation is of the training images."""
    path, archive = locate(MNIST, folder)
    with np.load(path, allow_pickle=False) as file:
        pools = dict(file)
    where = parts(len(pools["y_train"]), len(pools["y_test"]), sizes, seed)
    arrays = {f"{a}{n}": pools[f"{a}_{pool}"][i] for n, (pool, i) in enumerate(where) for a in "xy"}
    return splits(arrays, archive.title)


def cifar10(folder: pathlib.Path | None, sizes: Sizes = (3072, 2000, 2000), seed: int = 0) -> Splits:
    """CIFAR-10 (Krizhevsky 2009): validation is of the training images."""
    return cifar(CIFAR10, "cifar10", b"labels", folder, sizes, seed)


def cifar100(folder: pathlib.Path | None, sizes: Sizes = (3072, 2000, 2000), seed: int = 0) -> Splits:
    """CIFAR-100 with its fine labels (Krizhevsky 2009): validation is of the training images."""
    return cifar(CIFAR100, "cifar100", b"fine_labels", folder, sizes, seed)


def cifar(
    archives: list[Archive], name: str, label: bytes, folder: pathlib.Path | None, sizes: Sizes, seed: int
) -> Splits:
    """One of the two, from batches of arrays or from JPEG images."""
    path, archive = locate(archives, folder)
    where = parts(50_000, 10_000, sizes, seed)
    key = {"sha256": archive.sha256, "sizes": list(check_sizes(sizes)), "seed": seed}
    if not archive.title.endswith("(JPEG)"):
        return splits(kept(name, key, lambda: from_batches(path, label, where)), archive.title)
    import PIL  # told where it is missing, not after the archive was read

    return splits(kept(name, {**key, "pillow": PIL.__version__}, lambda: from_jpeg(path, where)), archive.title)


def parts(train: int, test: int, sizes: Sizes, seed: int) -> list[tuple[str, np.ndarray]]:
    """For each part, which pool it is of, and the indices there."""
    rng = np.random.default_rng(seed)
    training, validating, testing = check_sizes(sizes)
    chosen = choose(train, training + validating, rng)
    return [("train", chosen[:training]), ("train", chosen[training:]), ("test", choose(test, testing, rng))]


def splits(arrays: Arrays, title: str) -> Splits:
    """Arrays x0, y0, x1, ..., of images of bytes, as the three parts."""

    def images(x: np.ndarray) -> np.ndarray:
        return (x.reshape(*x.shape[:3], -1) / 255).astype("float32")

    return Splits([(images(arrays[f"x{n}"]), arrays[f"y{n}"].astype("int32")) for n in range(3)], title)


def from_batches(path: pathlib.Path, label: bytes, where: list[tuple[str, np.ndarray]]) -> Arrays:
    """The parts of the original archive, whose batches are pickled; its SHA-256 was checked."""
    found: dict[str, list[dict[bytes, typing.Any]]] = {"train": [], "test": []}
    with tarfile.open(path) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            name = pathlib.PurePosixPath(member.name).name
            pool = {"data": "train", "train": "train", "test": "test"}.get(name.partition("_")[0])
            if member.isfile() and pool and (file := archive.extractfile(member)):
                found[pool].append(pickle.load(file, encoding="bytes"))
    pools = {}
    for pool, batches in found.items():
        images = np.concatenate([batch[b"data"] for batch in batches]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        pools[pool] = images, np.concatenate([batch[label] for batch in batches])
    return {f"{a}{n}": pools[pool][which][i] for n, (pool, i) in enumerate(where) for which, a in enumerate("xy")}


def from_jpeg(path: pathlib.Path, where: list[tuple[str, np.ndarray]]) -> Arrays:
    """The parts of an archive of train/<class>/<number>.jpg and test/<class>/<number>.jpg."""
    from PIL import Image

    with tarfile.open(path) as archive:
        raw = {m.name: file.read() for m in archive if m.name.endswith(".jpg") and (file := archive.extractfile(m))}
    classes = sorted({name.split("/")[1] for name in raw})
    arrays: Arrays = {}
    for n, (pool, indices) in enumerate(where):
        names = sorted(name for name in raw if name.startswith(f"{pool}/"))
        chosen = [names[i] for i in indices]
        arrays[f"x{n}"] = np.stack([np.asarray(Image.open(io.BytesIO(raw[name])).convert("RGB")) for name in chosen])
        arrays[f"y{n}"] = np.array([classes.index(name.split("/")[1]) for name in chosen])
    return arrays
