"""Speech: eight spoken words as mel spectrograms."""

import collections.abc
import hashlib
import io
import pathlib
import re
import tarfile
import typing
import wave
import zipfile

import numpy as np

from pernodedrop import checks
from pernodedrop.study.datasets import mel
from pernodedrop.study.datasets.files import Archive, Arrays, Splits, check_sizes, kept, locate

WORDS = ("down", "go", "left", "no", "right", "stop", "up", "yes")

SPEECH = [
    Archive(
        "mini_speech_commands.zip",
        "49650f2341b26d886b46b3f4fb8fed59e30300b17550f1ee4a768b3106cf93a0",
        "Mini Speech Commands",
        "https://storage.googleapis.com/download.tensorflow.org/data/mini_speech_commands.zip",
    ),
    Archive(
        "speech_commands_test_set_v0.02.tar.xz",
        "ee4527c00ebda4e54577dc5ced7313684e21b37c7843a7a57ab1e79277fe56ab",
        "Speech Commands v0.02 test set, 8 words",
    ),
]


class Clip(typing.NamedTuple):
    """A recording: its word, who speaks, and the WAV file."""

    word: str
    speaker: str
    content: bytes


def speech(
    folder: pathlib.Path | None,
    sizes: collections.abc.Sequence[int] = (1900, 600, 600),
    seed: int = 0,
    size: int = 64,
) -> Splits:
    """Speech Commands (Warden, arXiv 1804.03209, CC BY 4.0): each speaker is in one part alone, each recording once."""
    path, archive = locate(SPEECH, folder)
    sizes = check_sizes(sizes)
    if not 8 <= checks.check_count(size, "size") <= 128:  # beyond, a mel band is narrower than a frequency
        raise ValueError(checks.invalid("size", "an int from 8 to 128, the side of a spectrogram", size))
    key = {"sha256": archive.sha256, "sizes": list(sizes), "seed": seed, "size": size}
    arrays = kept("speech", key, lambda: decode(clips(path), sizes, seed, size))
    return Splits([(arrays[f"x{n}"], arrays[f"y{n}"]) for n in range(3)], archive.title)


def decode(found: list[Clip], sizes: tuple[int, int, int], seed: int, size: int) -> Arrays:
    """The arrays of the three parts."""
    arrays: Arrays = {}
    for n, part in enumerate(by_speaker(found, sizes, seed)):
        waves = np.stack([samples(clip.content) for clip in part])
        arrays[f"x{n}"] = mel.images(waves, size)[..., None]
        arrays[f"y{n}"] = np.array([WORDS.index(clip.word) for clip in part], "int32")
    return arrays


def clips(path: pathlib.Path) -> list[Clip]:
    """The recordings of the words in a ZIP or TAR file, by name; of equal ones the first."""
    found, seen = [], set()
    for name, content in sorted(members(path)):
        match = re.search(rf"(?:^|/)({'|'.join(WORDS)})/(\w+?)_nohash_\d+\.wav$", name)
        if match and (digest := hashlib.sha256(content).digest()) not in seen:
            seen.add(digest)
            found.append(Clip(match[1], match[2], content))
    return found


def members(path: pathlib.Path) -> collections.abc.Iterator[tuple[str, bytes]]:
    """The names and contents of the files in a ZIP or TAR file."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            yield from ((name, archive.read(name)) for name in archive.namelist() if name.endswith(".wav"))
    else:
        with tarfile.open(path) as tar:
            yield from ((m.name, file.read()) for m in tar if m.name.endswith(".wav") and (file := tar.extractfile(m)))


def by_speaker(found: list[Clip], sizes: tuple[int, int, int], seed: int) -> list[list[Clip]]:
    """Recordings for each part: speakers come in an order of chance, and a part takes them until it has enough."""
    rng = np.random.default_rng(seed)
    of_speaker: dict[str, list[Clip]] = {}
    for clip in found:
        of_speaker.setdefault(clip.speaker, []).append(clip)
    waiting = [of_speaker[name] for name in rng.permutation(sorted(of_speaker))]
    parts = []
    for size in sizes:
        part: list[Clip] = []
        while len(part) < size:
            if not waiting:
                expected = f"parts that {len(found)} recordings of {len(of_speaker)} speakers suffice for"
                raise ValueError(checks.invalid("sizes", expected, sizes))
            part += waiting.pop()
        parts.append([part[i] for i in rng.permutation(len(part))[:size]])
    return parts


def samples(content: bytes) -> np.ndarray:
    """One second of a WAV file, (16000,) float32 in [-1, 1); what is shorter ends in silence."""
    with wave.open(io.BytesIO(content)) as file:
        about = file.getframerate(), file.getnchannels(), file.getsampwidth()
        if about != (mel.SAMPLE_RATE, 1, 2):
            raise ValueError(f"a recording has (rate, channels, bytes) {about}, expected {(mel.SAMPLE_RATE, 1, 2)}")
        found = np.frombuffer(file.readframes(mel.SAMPLE_RATE), "<i2")
    return np.pad(found, (0, mel.SAMPLE_RATE - len(found))).astype("float32") / 2**15
