"""Text: documents of Reuters by their topics, as sparse rows of weighted terms."""

import collections.abc
import pathlib

import numpy as np
from scipy import sparse

from pernodedrop import checks
from pernodedrop.study.datasets.files import Archive, Splits, check_sizes, choose, locate, not_downloaded

RCV1 = [
    Archive(
        "rcv1v2_subsets.npz",
        "eea2e74b2e7e37d52bce47e4b44ffddaebdc88b85c533e366761cece42017b38",
        "RCV1-v2 subset",
    )
]


def rcv1(
    folder: pathlib.Path | None,
    sizes: collections.abc.Sequence[int] = (8000, 3000, 3000),
    seed: int = 0,
    terms: int = 4096,
    topics: int = 25,
) -> Splits:
    """RCV1-v2 (Lewis et al. 2004): the most frequent terms of the training part, and the most frequent topics.

    Rows are TF-IDF, of norm 1 before their rarer terms were left out.
    """
    x, y, title = published() if folder is None else subset(folder)
    sizes = check_sizes(sizes)
    for argument, count, most in (("terms", terms, x.shape[1]), ("topics", topics, y.shape[1])):
        if checks.check_count(count, argument) > most:
            raise ValueError(checks.invalid(argument, f"an int from 1 to {most}", count))
    chosen = choose(x.shape[0], sum(sizes), np.random.default_rng(seed))
    where = np.split(chosen, np.cumsum(sizes)[:2])
    columns = most_frequent(np.bincount(x[where[0]].indices, minlength=x.shape[1]), terms)
    labels = most_frequent(y.sum(0), topics)
    x, y = x[:, columns], y[:, labels].astype("float32")
    return Splits([(x[part], y[part]) for part in where], title)


def most_frequent(counts: np.ndarray, number: int) -> np.ndarray:
    """The places of the greatest counts, in ascending order; of equals, the first ones."""
    return np.sort(np.argsort(-counts.astype("int64"), kind="stable")[:number])


def published() -> tuple[sparse.csr_array, np.ndarray, str]:
    """The 23,149 training documents of LYRL2004, downloaded by scikit-learn, which checks their SHA-256."""
    from sklearn.datasets import fetch_rcv1

    try:
        found = fetch_rcv1(subset="train")
    except OSError as error:
        raise not_downloaded("RCV1-v2", RCV1[0].name, error) from error
    return sparse.csr_array(found.data, dtype="float32"), found.target.toarray(), "RCV1-v2"


def subset(folder: pathlib.Path) -> tuple[sparse.csr_array, np.ndarray, str]:
    """Other documents of the same collection, each once."""
    path, archive = locate(RCV1, folder)
    with np.load(path, allow_pickle=False) as file:
        rows = sparse.csr_array((file["data"], file["indices"], file["indptr"]), shape=tuple(file["shape"]))
        first = file["dup_of"] == -1
        return rows[np.flatnonzero(first)], file["target"][first], archive.title
