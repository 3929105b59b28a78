"""The data of studies: what is read, what is refused, and that nothing of the user's is changed."""

import hashlib
import io
import pickle
import tarfile
import wave
import zipfile

import keras
import numpy as np
import pytest
from PIL import Image
from scipy import sparse

from pernodedrop.study import datasets
from pernodedrop.study.datasets import images, mel, speech, text

pytestmark = pytest.mark.once


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """No test sees a developer's data."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("PERNODEDROP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PERNODEDROP_DATA", raising=False)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def accept(monkeypatch):
    """accept(module, name, path): that file is the archive of its name in a list of archives."""

    def accept(module, name, path):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        changed = [a._replace(sha256=digest) if a.name == path.name else a for a in getattr(module, name)]
        monkeypatch.setattr(module, name, changed)

    return accept


def tar(path, contents):
    with tarfile.open(path, f"w:{path.suffix[1:]}") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def rows(x):
    return {row.tobytes() for row in x}


def pairs(x, y):
    return {(image.tobytes(), int(label)) for image, label in zip(x, y, strict=True)}


def levels(x, y):
    """The grey level of each image, and its label."""
    return {(round(float(image.mean()) * 255), int(label)) for image, label in zip(x, y, strict=True)}


def test_digits_come_in_three_parts_that_share_no_sample():
    loaded = datasets.load("digits")
    assert loaded.title == "Handwritten digits"
    assert [len(y) for _, y in loaded] == [300, 700, 797]
    numbers = np.concatenate([x.reshape(len(x), -1) for x, _ in loaded])
    from sklearn.datasets import load_digits

    assert rows(np.sort(numbers, 0)) == rows(np.sort((load_digits().data / 16).astype("float32"), 0))
    assert all(x.dtype == "float32" and x.min() == 0 and x.max() == 1 for x, _ in loaded)


def test_the_split_is_the_same_in_every_run_and_another_with_another_seed():
    first, again, other = (datasets.load("digits", seed=seed)[0][1] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_the_plane_has_noise_on_all_but_the_test():
    loaded = datasets.load("plane", sizes=(4000, 3000, 50), deviation=0.25)
    assert loaded.title == "A surface over a plane"
    for (x, y), size, deviation in zip(loaded, (4000, 3000, 50), (0.25, 0.25, 0), strict=True):
        assert (x.shape, y.shape, x.dtype, y.dtype) == ((size, 2), (size, 1), "float32", "float32")
        assert abs(x).max() <= 1
        off = y[:, 0] - np.sin(np.pi * x[:, 0]) * np.cos(np.pi * x[:, 1])
        assert off.std() == pytest.approx(deviation, rel=0.1, abs=1e-6)  # five standard errors of 3,000
    with pytest.raises(ValueError, match="`deviation`"):
        datasets.load("plane", deviation=-1)


@pytest.mark.parametrize("sizes", [(1000, 700, 98), (0, 1, 1), (1, 1), 3])
def test_sizes_that_cannot_be_are_refused(sizes):
    with pytest.raises((TypeError, ValueError), match="`sizes`"):
        datasets.load("digits", sizes=sizes)


def test_a_name_that_is_none_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'cifar10'"):
        datasets.load("cifar-10")


def write_mnist(path):
    rng = np.random.default_rng(0)
    arrays = {}
    for pool, count in (("train", 30), ("test", 20)):
        arrays[f"x_{pool}"] = rng.integers(0, 256, (count, 28, 28), "uint8")
        arrays[f"y_{pool}"] = rng.integers(0, 10, count, "uint8")
    np.savez_compressed(path, **arrays)
    return arrays


def test_mnist_validates_on_training_images_and_tests_on_test_images(folder, accept, monkeypatch):
    arrays = write_mnist(folder / "mnist.npz")
    accept(images, "MNIST", folder / "mnist.npz")
    monkeypatch.setenv("PERNODEDROP_DATA", str(folder))
    loaded = datasets.load("mnist", sizes=(20, 10, 20))
    pools = [pairs(arrays[f"x_{pool}"], arrays[f"y_{pool}"]) for pool in ("train", "test")]
    seen = [pairs(np.rint(x[..., 0] * 255).astype("uint8"), y) for x, y in loaded]
    assert seen[0] | seen[1] == pools[0]
    assert seen[2] == pools[1]
    assert loaded[0][0].shape == (20, 28, 28, 1)


@pytest.mark.parametrize("harm", [lambda raw: raw[: len(raw) // 2], lambda raw: raw[:-1] + b"?", lambda raw: b""])
@pytest.mark.parametrize("where", ["folder", "keras"])
def test_a_corrupt_or_half_downloaded_file_is_an_error_and_stays(folder, tmp_path, monkeypatch, harm, where):
    write_mnist(folder / "mnist.npz")
    path = folder / "mnist.npz" if where == "folder" else tmp_path / "keras/datasets/mnist.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(harm((folder / "mnist.npz").read_bytes()))
    before = path.read_bytes(), path.stat().st_mtime_ns
    monkeypatch.setattr(keras.utils, "get_file", None)
    with pytest.raises(ValueError, match=r"mnist\.npz is corrupt.*expected SHA-256.*left as it is"):
        datasets.load("mnist", folder if where == "folder" else None)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_without_a_network_the_error_says_what_to_do(monkeypatch):
    def offline(name, origin, **options):
        raise Exception(f"URL fetch failure on {origin}")

    monkeypatch.setattr(keras.utils, "get_file", offline)
    with pytest.raises(ConnectionError, match=r"cifar-100-python.tar.gz could not be downloaded.*PERNODEDROP_DATA"):
        datasets.load("cifar100")


def test_a_download_is_checked_and_goes_to_where_keras_keeps_its_own(tmp_path, folder, accept, monkeypatch):
    write_mnist(folder / "mnist.npz")
    accept(images, "MNIST", folder / "mnist.npz")
    monkeypatch.setattr(images, "MNIST", [images.MNIST[0]._replace(url=(folder / "mnist.npz").as_uri())])
    loaded = datasets.load("mnist", sizes=(20, 10, 20))
    assert len(loaded[0][1]) == 20
    assert (tmp_path / "keras/datasets/mnist.npz").read_bytes() == (folder / "mnist.npz").read_bytes()


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_a_folder_that_is_none_is_refused(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="`folder`"):
        datasets.load("mnist", tmp_path / name)


def test_a_folder_without_the_archive_is_refused_and_nothing_is_downloaded(folder, monkeypatch):
    monkeypatch.setattr(keras.utils, "get_file", None)
    with pytest.raises(FileNotFoundError, match=r"cifar-10-python\.tar\.gz or cifar10_images_jpeg\.tar\.xz"):
        datasets.load("cifar10", folder)


def grey(level):
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (level, level, level)).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def few(monkeypatch):
    """The pools of CIFAR have 12 and 6 images."""
    parts = images.parts
    monkeypatch.setattr(images, "parts", lambda train, test, sizes, seed: parts(12, 6, sizes, seed))


def test_cifar10_from_jpeg_images_has_its_own_title_and_the_usual_classes(folder, accept, few):
    names = sorted(["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"])
    contents = {f"train/{names[n % 10]}/{n:04}.jpg": grey(10 * n) for n in range(12)}
    contents |= {f"test/{names[n]}/{n:04}.jpg": grey(200 + n) for n in range(6)}
    contents |= {f"test/{name}/notes.txt": b"" for name in names}
    path = tar(folder / "cifar10_images_jpeg.tar.xz", contents)
    accept(images, "CIFAR10", path)
    loaded = datasets.load("cifar10", folder, sizes=(8, 4, 6))
    assert loaded.title == "CIFAR-10 (JPEG)"
    assert levels(*loaded[0]) | levels(*loaded[1]) == {(10 * n, n % 10) for n in range(12)}
    assert levels(*loaded[2]) == {(200 + n, n) for n in range(6)}


@pytest.mark.parametrize(("name", "label"), [("cifar10", b"labels"), ("cifar100", b"fine_labels")])
def test_cifar_from_its_original_archive_has_rows_columns_and_channels_in_order(folder, accept, few, name, label):
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (18, 3 * 1024), "uint8"), list(range(18))
    inner = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[name]
    cuts = {"data_batch_1": (0, 6), "data_batch_2": (6, 12), "test_batch": (12, 18)}
    cuts = cuts if name == "cifar10" else {"train": (0, 12), "test": (12, 18)}
    batches = {batch: {b"data": pixels[a:b], label: labels[a:b]} for batch, (a, b) in cuts.items()}
    contents = {f"{inner}/{batch}": pickle.dumps(content) for batch, content in batches.items()}
    contents |= {f"{inner}/batches.meta": b"not a pickle", f"{inner}/meta": b""}
    path = tar(folder / f"cifar-{name[5:]}-python.tar.gz", contents)
    accept(images, name.upper(), path)
    loaded = datasets.load(name, folder, sizes=(8, 4, 6))
    assert loaded.title == {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}[name]
    assert [sorted(y) for _, y in loaded] != [list(range(8)), list(range(8, 12)), list(range(12, 18))]
    assert sorted(np.concatenate([y for _, y in loaded[:2]])) == list(range(12))
    for x, y in loaded:
        for image, n in zip(x, y, strict=True):
            assert image[3, 5, 1] == np.float32(pixels[n, 1024 + 3 * 32 + 5] / 255)


def test_what_was_decoded_is_kept_and_a_corrupt_copy_is_an_error_and_stays(tmp_path, folder, accept, few, monkeypatch):
    test_cifar10_from_jpeg_images_has_its_own_title_and_the_usual_classes(folder, accept, few)
    monkeypatch.setattr(images, "from_jpeg", None)
    first, again = (datasets.load("cifar10", folder, sizes=(8, 4, 6)) for _ in range(2))
    for (x, y), (x2, y2) in zip(first, again, strict=True):
        np.testing.assert_array_equal(x, x2)
        np.testing.assert_array_equal(y, y2)
    (copy,) = (tmp_path / "cache").iterdir()
    raw = copy.read_bytes()
    for harmed in (raw[:-200], raw[:300] + bytes([raw[300] ^ 1]) + raw[301:], b""):
        copy.write_bytes(harmed)
        with pytest.raises(ValueError, match=r"\.npz is corrupt.*left as it is"):
            datasets.load("cifar10", folder, sizes=(8, 4, 6))
        assert copy.read_bytes() == harmed


def test_what_was_decoded_for_other_sizes_is_not_taken(folder, accept, few):
    test_cifar10_from_jpeg_images_has_its_own_title_and_the_usual_classes(folder, accept, few)
    assert len(datasets.load("cifar10", folder, sizes=(2, 4, 6))[0][1]) == 2
    first, second = (datasets.load("cifar10", folder, sizes=(2, 4, 6), seed=seed)[2][1] for seed in (0, 1))
    assert list(first) != list(second)


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, folder, accept, few, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PERNODEDROP_CACHE", str(tmp_path / "file" / "cache"))
    test_cifar10_from_jpeg_images_has_its_own_title_and_the_usual_classes(folder, accept, few)


def write_documents(path, rng):
    """120 documents over 40 terms and 6 topics, of which every third is a copy."""
    x = sparse.random_array((120, 40), density=0.2, format="csr", dtype="float32", random_state=rng)
    y = (rng.random((120, 6)) < [0.1, 0.9, 0.3, 0.7, 0.2, 0.5]).astype("uint8")
    copies = np.where(np.arange(120) % 3 == 0, 1, -1).astype("int32")
    parts = {"data": x.data, "indices": x.indices, "indptr": x.indptr, "shape": np.array(x.shape)}
    np.savez(path, **parts, target=y, dup_of=copies)
    return x.toarray(), y, copies


def test_rcv1_keeps_the_most_frequent_terms_and_topics_in_sparse_rows_without_copies(folder, accept):
    x, y, copies = write_documents(folder / "rcv1v2_subsets.npz", np.random.default_rng(0))
    accept(text, "RCV1", folder / "rcv1v2_subsets.npz")
    loaded = datasets.load("rcv1", folder, sizes=(40, 20, 20), terms=10, topics=3)
    assert loaded.title == "RCV1-v2 subset"
    assert all(sparse.issparse(rows) and rows.format == "csr" and rows.dtype == "float32" for rows, _ in loaded)
    everything = np.concatenate([rows.toarray() for rows, _ in loaded])
    columns = [next(j for j in range(40) if set(x[copies == -1][:, j]) == set(column)) for column in everything.T]
    full = {row[columns].tobytes() for row in x[copies == -1]}
    assert rows(everything) == full
    in_training = dict.fromkeys(range(40), 0)
    for row in loaded[0][0].toarray():
        (where,) = (n for n in np.flatnonzero(copies == -1) if (x[n][columns] == row).all())
        for j in np.flatnonzero(x[where]):
            in_training[j] += 1
    assert min(in_training[j] for j in columns) >= max(n for j, n in in_training.items() if j not in columns)
    labels = np.concatenate([labels for _, labels in loaded])
    np.testing.assert_array_equal(labels.sum(0), y[copies == -1][:, [1, 3, 5]].sum(0))


@pytest.mark.parametrize("options", [{"terms": 41}, {"terms": 0}, {"topics": 7}, {"sizes": (60, 20, 1)}])
def test_more_than_there_is_of_documents_terms_or_topics_is_refused(folder, accept, options):
    write_documents(folder / "rcv1v2_subsets.npz", np.random.default_rng(0))
    accept(text, "RCV1", folder / "rcv1v2_subsets.npz")
    with pytest.raises(ValueError, match=f"`{next(iter(options))}`"):
        datasets.load("rcv1", folder, **{"sizes": (40, 20, 20), "terms": 4, "topics": 3, **options})


def test_rcv1_comes_from_scikit_learn_or_the_error_says_what_to_do(monkeypatch):
    import sklearn.datasets

    rng = np.random.default_rng(0)
    found = sklearn.utils.Bunch(
        data=sparse.random(50, 30, 0.3, "csr", random_state=rng),
        target=sparse.csr_array(rng.integers(0, 2, (50, 4), "uint8")),
    )
    monkeypatch.setattr(sklearn.datasets, "fetch_rcv1", lambda subset: found if subset == "train" else None)
    loaded = datasets.load("rcv1", sizes=(30, 10, 10), terms=5, topics=2)
    assert loaded.title == "RCV1-v2"
    assert loaded[0][0].shape == (30, 5)

    def offline(subset):
        raise OSError("no network")

    monkeypatch.setattr(sklearn.datasets, "fetch_rcv1", offline)
    with pytest.raises(ConnectionError, match=r"RCV1-v2 could not be downloaded: no network.*PERNODEDROP_DATA"):
        datasets.load("rcv1")


def recording(numbers, rate=16_000):
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(np.asarray(numbers, "<i2").tobytes())
    return file.getvalue()


def spoken(rng, speakers=12, takes=4):
    """Recordings by name; each speaker says `takes` words, and everything of the first one is there twice."""
    names = [f"top/{speech.WORDS[(s + t) % 8]}/{s:08x}_nohash_{t}.wav" for s in range(speakers) for t in range(takes)]
    found = {name: recording(rng.integers(-9999, 9999, 9000)) for name in names}
    copies = {name.replace("nohash_", "nohash_9"): raw for name, raw in found.items() if "/00000000_" in name}
    others = {"top/bird/00000000_nohash_0.wav": recording([1, 2]), "__MACOSX/up/._00000000_nohash_0.wav": b"?"}
    return found | copies | others


@pytest.mark.parametrize("name", ["mini_speech_commands.zip", "speech_commands_test_set_v0.02.tar.xz"])
def test_speakers_are_in_one_part_alone_and_recordings_are_there_once(folder, name):
    contents = spoken(np.random.default_rng(0))
    if name.endswith("zip"):
        with zipfile.ZipFile(folder / name, "w") as archive:
            for member, content in contents.items():
                archive.writestr(member, content)
    else:
        tar(folder / name, contents)
    clips = speech.clips(folder / name)
    assert len(clips) == 48
    words = [member for member in contents if member.startswith("top/") and "bird" not in member]
    assert {clip.content for clip in clips} == {contents[member] for member in words}
    parts = speech.by_speaker(clips, (20, 9, 10), seed=0)
    assert [len(part) for part in parts] == [20, 9, 10]
    heard = [{clip.speaker for clip in part} for part in parts]
    assert len(set.union(*heard)) == sum(map(len, heard))
    with pytest.raises(ValueError, match="48 recordings of 12 speakers"):
        speech.by_speaker(clips, (20, 20, 10), seed=0)


def test_spoken_words_become_pictures_of_the_size_asked_for(folder, accept):
    path = tar(folder / "speech_commands_test_set_v0.02.tar.xz", spoken(np.random.default_rng(0)))
    accept(speech, "SPEECH", path)
    loaded = datasets.load("speech", folder, sizes=(12, 8, 8), size=32)
    assert loaded.title == "Speech Commands v0.02 test set, 8 words"
    assert loaded[0][0].shape == (12, 32, 32, 1)
    assert loaded[0][0].dtype == "float32"
    assert {int(label) for _, y in loaded for label in y} <= {*range(8)}
    for x, _ in loaded:
        assert (x.max((1, 2, 3)) == 1).all()
        assert (x.min((1, 2, 3)) == 0).all()  # the silence after 9,000 samples
    with pytest.raises(ValueError, match="`size`"):
        datasets.load("speech", folder, size=200)


def test_a_recording_of_another_kind_is_refused_and_a_short_one_ends_in_silence():
    found = speech.samples(recording([2**14, -(2**15)]))
    assert found.shape == (16_000,)
    assert list(found[:3]) == [0.5, -1, 0]
    assert not found[2:].any()
    with pytest.raises(ValueError, match=r"\(8000, 1, 2\)"):
        speech.samples(recording([1], rate=8000))


def test_mel_spectrograms_are_those_of_librosa():
    """Figures of librosa 0.11: filters.mel and feature.melspectrogram of a chirp, sr=16000, n_fft=1024, n_mels=64."""
    matrix = mel.matrix(64)
    np.testing.assert_allclose(matrix.sum(), 4.09588, rtol=2e-6)
    assert (matrix > 0).sum() == 997
    known = {(0, 1): 0.0072556408, (0, 2): 0.0145112816, (10, 33): 0.0191523004, (31, 106): 0.0115269460}
    known |= {(32, 111): 0.0114248572, (63, 488): 0.0027300215}
    for place, value in known.items():
        np.testing.assert_allclose(matrix[place], value, rtol=1e-6)
    t = np.arange(16_000) / 16_000
    chirp = (0.5 * np.sin(2 * np.pi * (200 * t + 1500 * t**2))).astype("float32")
    power = mel.power(chirp, 64)  # hop_length=250
    assert power.shape == (64, 65)
    first = [2.9851096, 1.2525483e-2, 5.1417528e-4, 3.1306216e-5]
    np.testing.assert_allclose(power[::16, 0], first, rtol=1e-4)
    np.testing.assert_allclose(power[16, 13], 237.05759, rtol=1e-5)
    decibels = mel.decibels(power)[::16, ::13]  # power_to_db(ref=np.max)
    expected = np.full((4, 5), -80.0)
    expected[:, 0] = -19.378395, -43.150055, -57.016888, -69.17169
    expected[1, 1], expected[2, 2], expected[2, 3] = -0.37945747, -76.056915, -73.84886
    np.testing.assert_allclose(decibels, expected, atol=1e-3)
    np.testing.assert_allclose(mel.images(chirp[None], 64)[0, ::16, :64:13], 1 + expected / 80, atol=2e-5)


def test_silence_is_a_picture_too():
    assert (mel.images(np.zeros((1, 16_000)), 64) == 1).all()
