"""Readers of data sets in their published files: idx (Fashion-MNIST) and both layouts of CIFAR."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from gossamer.errors import DataError
from gossamer.experiments import data
from gossamer.experiments.data import cifar, fashion, folders

# ---- idx files and Fashion-MNIST ------------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_fashion(folder: Path, packed: bool) -> dict[str, np.ndarray]:
    """The four files in the published format, holding digits with a border of 10 pixels."""
    digits = data.load("digits", valid_fraction=0, normalise=False)
    pixels, labels = (t[:60].numpy() for t in digits.train.whole())
    x = np.pad((pixels[:, 0] * 240).astype(np.uint8), ((0, 0), (10, 10), (10, 10)))
    y = labels.astype(np.uint8)
    content = dict(zip(fashion.FILES, (x[:50], y[:50], x[50:], y[50:]), strict=True))
    folder.mkdir(parents=True)
    for name, array in content.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))
    return content


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("folder", ["fashion-mnist", "FashionMNIST/raw", "."])
def test_fashion_mnist_is_read_from_its_four_files(tmp_path, folder, packed):
    root = tmp_path / "data"
    content = write_fashion(root / folder, packed)
    loaded = data.load("fashion-mnist", root=root, valid_fraction=0, normalise=False)
    assert data.available("fashion-mnist", root)
    assert (loaded.input_shape, len(loaded.train), len(loaded.test)) == ((1, 28, 28), 50, 10)
    np.testing.assert_array_equal((loaded.train.x[:, 0] * 255).round().numpy(), content[fashion.FILES[0]])
    np.testing.assert_array_equal(loaded.test.y.numpy(), content[fashion.FILES[3]])


def test_the_places_are_searched_in_order(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write_fashion(tmp_path / "home/.cache/gossamer/fashion-mnist", packed=True)
    monkeypatch.delenv("GOSSAMER_DATA", raising=False)
    assert "home" in data.load("fashion-mnist").source
    write_fashion(tmp_path / "mine/fashion-mnist", packed=False)
    monkeypatch.setenv("GOSSAMER_DATA", str(tmp_path / "mine"))
    assert "mine" in data.load("fashion-mnist").source
    assert folders.search_path()[-1] == Path("/usr/share/datasets")


def test_absent_fashion_mnist_names_the_commands(tmp_path):
    assert not data.available("fashion-mnist", tmp_path)
    with pytest.raises(DataError) as caught:
        data.load("fashion-mnist", root=tmp_path)
    message = str(caught.value)
    assert "apt-get update && apt-get install -y dataset-fashion-mnist" in message
    assert str(tmp_path / "fashion-mnist") in message
    assert all(name in message for name in fashion.FILES)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[:-1], r"has 799 bytes; its header \(49, 4, 4\) asks for 800"),
        (lambda b: b + b"x", r"has 801 bytes"),
        (lambda b: b"\x00\x00\x0d\x03" + b[4:], r"begins with 00000d03, not 00000803"),
        (lambda b: b"\x00\x00\x08\x01" + b[4:], r"begins with 00000801"),
        (lambda b: b[:10], r"no idx file with 3 axes"),
        (lambda b: b"", r"no idx file"),
    ],
)
def test_a_damaged_idx_file_is_refused(tmp_path, damage, message):
    good = idx(np.zeros((49, 4, 4), np.uint8))
    path = tmp_path / "images"
    path.write_bytes(good)
    assert fashion.read_idx(path, 3).shape == (49, 4, 4)
    path.write_bytes(damage(good))
    with pytest.raises(DataError, match=message):
        fashion.read_idx(path, 3)


def test_a_damaged_gz_file_is_refused(tmp_path):
    path = tmp_path / "images.gz"
    good = gzip.compress(idx(np.arange(200, dtype=np.uint8)))
    for content in (b"not gzip", good[:-20], good[:10] + b"\xff" * 20 + good[30:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"cannot read .*images\.gz"):
            fashion.read_idx(path, 1)


def test_labels_of_another_file_are_refused(tmp_path):
    write_fashion(tmp_path / "d", packed=False)
    (tmp_path / "d" / fashion.FILES[1]).write_bytes(idx(np.zeros(49, np.uint8)))
    with pytest.raises(DataError, match="49 labels for 50 images"):
        data.load("fashion-mnist", root=tmp_path / "d")


@pytest.mark.skipif(not data.available("fashion-mnist"), reason="Fashion-MNIST is not installed")
def test_installed_fashion_mnist():
    loaded = data.load("fashion-mnist", valid_fraction=0, train_subset=10_000, pool=2)
    assert loaded.digest == "ca3ab2a37f845e1b"
    assert (loaded.input_shape, len(loaded.train), len(loaded.test)) == ((1, 14, 14), 10_000, 10_000)
    assert torch.bincount(loaded.test.y).tolist() == [1000] * 10
    assert abs(float(loaded.train.x.mean())) < 0.01


# ---- CIFAR ----------------------------------------------------------------------------------------------------------


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote str, and names numpy's functions as it did: the format of the python version."""

    def save_bytes(self, value):
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)

    dispatch: ClassVar = {**pickle._Pickler.dispatch, bytes: save_bytes}

    def save_global(self, obj, name=None):
        module = obj.__module__.replace("numpy._core", "numpy.core")
        self.write(pickle.GLOBAL + f"{module}\n{name or obj.__qualname__}\n".encode())


def dump_python2(path: Path, batch: dict[bytes, object]) -> None:
    with path.open("wb") as stream:
        Python2Pickler(stream, protocol=2).dump(batch)


def cifar_content(layout: cifar.Layout) -> list[tuple[str, str, np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(0)
    names = zip(layout.binary[1], layout.python[1], strict=True)
    return [
        (b, p, generator.integers(0, 256, (4, 3072), np.uint8), generator.integers(0, layout.classes, 4, np.uint8))
        for b, p in names
    ]


def write_cifar(layout: cifar.Layout, binary: Path | None, python: Path | None) -> None:
    for folder in filter(None, (binary, python)):
        folder.mkdir(parents=True)
    for b, p, pixels, labels in cifar_content(layout):
        if binary:
            coarse = [labels // 5] if layout.label_bytes == 2 else []
            (binary / b).write_bytes(np.column_stack([*coarse, labels, pixels]).tobytes())
        if python:
            batch = {b"batch_label": b"a batch", layout.label_key.encode(): labels.tolist(), b"data": pixels}
            dump_python2(python / p, batch)


@pytest.mark.parametrize("layout", [cifar.CIFAR10, cifar.CIFAR100], ids=lambda layout: layout.name)
def test_both_published_layouts_hold_the_same_data(tmp_path, layout):
    write_cifar(layout, tmp_path / "b" / layout.binary[0], tmp_path / "p" / layout.python[0])
    binary, python = (data.load(layout.name, root=tmp_path / k, valid_fraction=0, normalise=False) for k in ("b", "p"))
    content = cifar_content(layout)
    expected = np.concatenate([pixels for *_, pixels, _ in content[:-1]]).reshape(-1, 3, 32, 32)
    for loaded in (binary, python):
        assert (loaded.input_shape, loaded.classes) == ((3, 32, 32), layout.classes)
        np.testing.assert_array_equal((loaded.train.x * 255).round().numpy(), expected)
        np.testing.assert_array_equal(loaded.test.y.numpy(), content[-1][3])
    assert binary.digest == python.digest


def test_cifar_channels_are_normalised_one_by_one(tmp_path):
    write_cifar(cifar.CIFAR10, tmp_path / cifar.CIFAR10.binary[0], None)
    plain = data.load("cifar10", root=tmp_path, normalise=False).test.x
    x = data.load("cifar10", root=tmp_path).test.x
    for channel, (mean, std) in enumerate(zip(cifar.CIFAR10.mean, cifar.CIFAR10.std, strict=True)):
        torch.testing.assert_close(x[:, channel] * std + mean, plain[:, channel])


def test_only_training_batches_are_augmented_and_only_when_asked(tmp_path):
    write_cifar(cifar.CIFAR10, tmp_path / cifar.CIFAR10.binary[0], None)
    plain = data.load("cifar10", root=tmp_path)
    changed = data.load("cifar10", root=tmp_path, augment="true")
    x, y = plain.train.batch(2, 8, seed=1)
    shifted, labels = changed.train.batch(2, 8, seed=1)
    assert shifted.equal(data.augment(x, 2, 1))
    assert labels.equal(y)
    assert changed.train.whole()[0].equal(plain.train.x)
    assert changed.test.batch(0, 2, seed=0)[0].equal(plain.test.batch(0, 2, seed=0)[0])


class Payload:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    path = tmp_path / "train"
    path.write_bytes(pickle.dumps({"data": Payload(tmp_path / "ran"), "fine_labels": [0]}))
    with pytest.raises(DataError, match=r"cannot read .*train.*it asks for pathlib"):
        cifar.read_pickled(path, "fine_labels")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({b"data": np.zeros((1, 3072), np.uint8)}, "no field 'labels'"),
        ({b"data": np.zeros((1, 3072), np.float32), b"labels": [0]}, "no uint8 array"),
        ({b"data": b"text", b"labels": [0]}, "no uint8 array"),
        ([1, 2], "cannot read"),
    ],
)
def test_a_pickle_of_something_else_is_refused(tmp_path, batch, message):
    dump_python2(tmp_path / "batch", batch)
    with pytest.raises(DataError, match=message):
        cifar.read_pickled(tmp_path / "batch", "labels")


def test_a_pickle_that_asks_for_all_memory_is_refused(tmp_path):
    (tmp_path / "batch").write_bytes(b"\x80\x05\x96" + (2**62).to_bytes(8, "little") + b".")
    with pytest.raises(DataError, match=r"cannot read .*batch as a batch"):
        cifar.read_pickled(tmp_path / "batch", "labels")


def test_damaged_cifar_files_are_refused(tmp_path):
    folder = tmp_path / cifar.CIFAR100.binary[0]
    write_cifar(cifar.CIFAR100, folder, None)
    good = (folder / "train.bin").read_bytes()
    (folder / "train.bin").write_bytes(good[:-1])
    with pytest.raises(DataError, match="12295 bytes, not a multiple of the 3074"):
        data.load("cifar100", root=tmp_path)
    (folder / "train.bin").write_bytes(bytes([0, 100]) + good[2:])
    with pytest.raises(DataError, match=r"labels .* to 100; expected 0 to 99"):
        data.load("cifar100", root=tmp_path)
    (folder / "train.bin").write_bytes(b"")
    with pytest.raises(DataError, match="0 labels"):
        data.load("cifar100", root=tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_absent_cifar_names_folders_and_files(tmp_path, name):
    layout = cifar.CIFAR10 if name == "cifar10" else cifar.CIFAR100
    with pytest.raises(DataError) as caught:
        data.load(name, root=tmp_path)
    message = str(caught.value)
    assert not data.available(name, tmp_path)
    assert str(tmp_path) in message
    for folder, files in (layout.binary, layout.python):
        assert folder in message
        assert files[0] in message
        assert files[-1] in message
