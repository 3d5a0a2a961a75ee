"""Data: batch order as a pure function of the step, splits, and the sets that need no files of their own."""

from __future__ import annotations

import hashlib
import importlib.util
import sysconfig
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.errors import ConfigError, DataError
from gossamer.experiments import data

seeds = st.integers(0, 2**31)


def rows(x: torch.Tensor) -> list[bytes]:
    return sorted(row.numpy().tobytes() for row in x)


# ---- order ----------------------------------------------------------------------------------------------------------


@given(n=st.integers(1, 300), seed=seeds, epoch=st.integers(0, 1000))
def test_an_epoch_is_a_permutation(n, seed, epoch):
    order = data.epoch_order(n, seed, epoch)
    assert order.dtype == torch.int64
    assert order.sort().values.equal(torch.arange(n))


@given(n=st.integers(1, 200), batch_size=st.integers(1, 50), seed=seeds, epoch=st.integers(0, 20))
def test_the_batches_of_an_epoch_are_disjoint_and_drop_less_than_one_batch(n, batch_size, seed, epoch):
    batch_size = min(batch_size, n)
    per_epoch = n // batch_size
    steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
    seen = torch.cat([data.batch_indices(t, batch_size, n, seed) for t in steps])
    assert seen.equal(data.epoch_order(n, seed, epoch)[: per_epoch * batch_size])
    assert n - len(seen) < batch_size


@given(steps=st.permutations(range(12)), seed=seeds)
def test_a_batch_does_not_depend_on_what_was_asked_before(steps, seed):
    forward = {t: data.batch_indices(t, 7, 40, seed) for t in range(12)}
    for t in steps:
        assert data.batch_indices(t, 7, 40, seed).equal(forward[t])


def test_orders_differ_between_epochs_and_seeds():
    orders = [tuple(data.epoch_order(50, seed, epoch).tolist()) for seed in range(5) for epoch in range(5)]
    assert len(set(orders)) == 25


def test_changing_a_returned_order_changes_no_later_one():
    before = data.epoch_order(10, 0, 0)
    data.epoch_order(10, 0, 0).zero_()
    data.batch_indices(0, 5, 10, 0).zero_()
    assert data.epoch_order(10, 0, 0).equal(before)


def test_the_order_is_the_same_on_every_machine():
    assert data.epoch_order(8, seed=1, epoch=2).tolist() == [6, 1, 0, 5, 4, 3, 2, 7]


@pytest.mark.parametrize("batch_size", [0, -1, 11])
def test_a_batch_that_does_not_fit_is_refused(batch_size):
    with pytest.raises(ConfigError, match=rf"batch_size = {batch_size}: expected 1 to 10"):
        data.batch_indices(0, batch_size, 10, 0)


# ---- text and image batches -----------------------------------------------------------------------------------------


@given(step=st.integers(0, 10**6), seed=seeds, context=st.integers(1, 98))
def test_token_targets_are_the_next_tokens(step, seed, context):
    tokens = torch.arange(100, dtype=torch.uint8)
    x, y = data.token_batch(tokens, step, 4, context, seed)
    assert x.shape == y.shape == (4, context)
    assert x.dtype == y.dtype == torch.int64
    assert y.equal(x + 1)
    again, _ = data.token_batch(tokens, step, 4, context, seed)
    assert again.equal(x)


def test_token_windows_cover_the_text_and_differ_between_steps():
    tokens = torch.arange(20, dtype=torch.uint8)
    starts = [data.token_batch(tokens, t, 8, 4, 0)[0][:, 0] for t in range(40)]
    assert set(torch.cat(starts).tolist()) == set(range(16))
    assert not starts[0].equal(starts[1])


def test_text_shorter_than_a_window_is_refused():
    with pytest.raises(ConfigError, match="context = 10: the split has only 10 tokens"):
        data.token_batch(torch.zeros(10, dtype=torch.uint8), 0, 2, 10, 0)
    with pytest.raises(ConfigError, match="batch_size = 0"):
        data.token_batch(torch.zeros(10, dtype=torch.uint8), 0, 0, 2, 0)


def test_an_augmented_image_is_a_shifted_image_or_its_mirror():
    images = torch.arange(1.0, 65 * 3 * 5 * 6 + 1 - 3 * 5 * 6).view(64, 3, 5, 6)
    out = data.augment(images, step=3, seed=1, pad=2)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    mirrored = 0
    for image, source in zip(out, padded, strict=True):
        crops = [source[:, i : i + 5, j : j + 6] for i in range(5) for j in range(5)]
        plain, flipped = any(image.equal(c) for c in crops), any(image.equal(c.flip(2)) for c in crops)
        assert plain != flipped
        mirrored += flipped
    assert 16 <= mirrored <= 48
    assert out.equal(data.augment(images, step=3, seed=1, pad=2))
    assert not out.equal(data.augment(images, step=4, seed=1, pad=2))


def test_whole_windows_hold_every_target_once():
    split = data.Tokens(torch.arange(23, dtype=torch.uint8), context=5)
    x, y = split.whole()
    assert x.flatten().tolist() == list(range(20))
    assert y.flatten().tolist() == list(range(1, 21))
    assert data.Tokens(split.tokens[:3], 5).whole()[0].shape == (0, 5)


# ---- data sets in the package ---------------------------------------------------------------------------------------

EMBEDDED = {  # name: (input shape, train without validation, test, digest)
    "digits": ((1, 8, 8), 1437, 360, "646ba0792e7aa0f4"),
    "mnist1d": ((40,), 4000, 1000, "83d18f12a323e4af"),
    "mnist5k": ((1, 28, 28), 4000, 1000, "2c761dcde70e545f"),
}


def asset(name: str) -> dict[str, np.ndarray]:
    with (resources.files("gossamer.experiments.assets") / f"{name}.npz").open("rb") as stream:
        return dict(np.load(stream))


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_sizes_and_content(name):
    shape, train, test, digest = EMBEDDED[name]
    loaded = data.load(name, valid_fraction=0)
    assert (loaded.input_shape, len(loaded.train), len(loaded.valid), len(loaded.test)) == (shape, train, 0, test)
    assert (loaded.name, loaded.task, loaded.classes, loaded.digest) == (name, "classification", 10, digest)
    for split in (loaded.train, loaded.valid, loaded.test):
        x, y = split.whole()
        assert x.shape == (len(split), *shape)
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert set(loaded.train.y.tolist()) == set(loaded.test.y.tolist()) == set(range(10))


@pytest.mark.parametrize("name", EMBEDDED)
def test_stored_train_and_test_indices_partition_the_data(name):
    stored = asset(name)
    together = np.concatenate([stored["train"], stored["test"]])
    assert np.array_equal(np.sort(together), np.arange(len(stored["x"])))


@pytest.mark.parametrize("name", ["digits", "mnist5k"])
def test_the_committed_script_gives_the_stored_split(name):
    path = Path(__file__).parents[2] / "tools" / "make_assets.py"
    spec = importlib.util.spec_from_file_location("make_assets", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    stored = asset(name)
    train, test = script.stratified_split(stored["y"])
    assert np.array_equal(train, stored["train"])
    assert np.array_equal(test, stored["test"])
    share = np.bincount(stored["y"][test]) / np.bincount(stored["y"])
    assert np.all(np.abs(share - 0.2) < 0.005)


@pytest.mark.parametrize("name", EMBEDDED)
def test_normalised_training_inputs_have_mean_0_and_deviation_1(name):
    x = data.load(name, valid_fraction=0).train.x
    assert abs(float(x.mean())) < 0.005
    assert abs(float(x.std()) - 1) < 0.005


def test_without_normalisation_pixels_are_fractions_of_the_stored_bytes():
    stored = asset("mnist5k")
    loaded = data.load("mnist5k", valid_fraction=0, normalise=False)
    expected = torch.from_numpy(stored["x"][stored["test"]]).float().div(255).unsqueeze(1)
    assert loaded.test.x.equal(expected)
    assert (float(loaded.train.x.min()), float(loaded.train.x.max())) == (0.0, 1.0)


def test_pooling_averages_squares():
    whole = data.load("mnist5k", valid_fraction=0)
    pooled = data.load("mnist5k", valid_fraction=0, pool="2")
    assert pooled.input_shape == (1, 14, 14)
    by_hand = whole.test.x.view(-1, 1, 14, 2, 14, 2).mean((3, 5))
    torch.testing.assert_close(pooled.test.x, by_hand, rtol=1e-5, atol=1e-5)


@settings(max_examples=15)
@given(seed=seeds, fraction=st.floats(0, 0.9))
def test_validation_is_cut_from_train_and_leaves_test_alone(seed, fraction):
    full = data.load("digits", valid_fraction=0)
    cut = data.load("digits", seed=seed, valid_fraction=fraction)
    assert len(cut.valid) == round(1437 * fraction)
    assert rows(torch.cat([cut.train.x, cut.valid.x])) == rows(full.train.x)
    assert cut.test.x.equal(full.test.x)
    assert cut.digest == full.digest


def test_the_validation_split_depends_on_its_seed_alone():
    first, again, other = (data.load("digits", seed=seed).valid.x for seed in (0, 0, 1))
    assert first.equal(again)
    assert not first.equal(other)


def test_a_subset_is_drawn_before_validation_is_cut():
    full = data.load("mnist1d", valid_fraction=0)
    part = data.load("mnist1d", valid_fraction=0.25, train_subset=1000)
    assert (len(part.train), len(part.valid), len(part.test)) == (750, 250, 1000)
    assert set(rows(torch.cat([part.train.x, part.valid.x]))) < set(rows(full.train.x))
    whole = data.load("mnist1d", valid_fraction=0, train_subset=1000)
    assert rows(whole.train.x) == rows(torch.cat([part.train.x, part.valid.x]))


def test_batches_carry_the_labels_of_their_inputs():
    loaded = data.load("mnist1d")
    x, y = loaded.train.batch(5, 100, seed=3)
    chosen = data.batch_indices(5, 100, len(loaded.train), 3)
    assert x.equal(loaded.train.x[chosen])
    assert y.equal(loaded.train.y[chosen])


def test_moving_a_data_set_moves_every_split():
    for name in ("digits", "stdlib"):
        moved = data.load(name).to("meta")
        assert {s.whole()[0].device.type for s in (moved.train, moved.valid, moved.test)} == {"meta"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: data.load("mnist-1d"), r"unknown data set 'mnist-1d'; did you mean 'mnist1d'"),
        (lambda: data.available("fashion"), r"unknown data set 'fashion'; did you mean 'fashion-mnist'"),
        (lambda: data.load("mnist5k", pol=2), r"unknown option 'pol' of data set mnist5k; did you mean 'pool'"),
        (lambda: data.load("mnist5k", pool="two"), r"pool = 'two': expected a whole number"),
        (lambda: data.load("mnist5k", pool=29), r"pool = 29: expected 1 to the side of an image"),
        (lambda: data.load("mnist5k", pool=0), r"pool = 0: expected 1"),
        (lambda: data.load("digits", valid_fraction=1.0), r"valid_fraction = 1.0: expected .* \[0, 1\)"),
        (lambda: data.load("digits", valid_fraction=float("nan")), r"valid_fraction = nan"),
        (lambda: data.load("digits", train_subset=1438), r"train_subset = 1438: digits has 1 to 1437"),
        (lambda: data.load("stdlib", context=0), r"context = 0: expected at least 1"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(call, message):
    with pytest.raises(ConfigError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", data.DATASETS)
def test_every_row_of_the_table_says_what_it_is(name):
    info = data.DATASETS[name]
    assert info.summary
    assert info.licence
    assert "valid_fraction" not in data.data_options(name)


# ---- standard library -----------------------------------------------------------------------------------------------


def test_stdlib_splits_by_chunks_of_4_kb():
    folder = Path(sysconfig.get_paths()["stdlib"])
    content = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py"), key=lambda p: p.name))
    chunks = [content[i : i + 4096] for i in range(0, len(content), 4096)]
    loaded = data.load("stdlib", valid_fraction=0.05, context=32)
    assert (loaded.task, loaded.classes, loaded.input_shape) == ("language", 256, (32,))
    assert loaded.digest == hashlib.sha256(content).hexdigest()[:16]
    assert bytes(loaded.test.tokens.numpy()) == b"".join(chunks[19::20])
    offsets = [k for k in range(19) if bytes(loaded.valid.tokens.numpy()) == b"".join(chunks[k::20])]
    assert len(offsets) == 1
    rest = [chunk for i, chunk in enumerate(chunks) if i % 20 not in (offsets[0], 19)]
    assert bytes(loaded.train.tokens.numpy()) == b"".join(rest)


@pytest.mark.parametrize(("fraction", "share"), [(0.0, 0), (0.001, 1), (0.1, 2), (0.5, 10), (0.999, 18)])
def test_stdlib_validation_is_counted_in_twentieths(fraction, share):
    loaded = data.load("stdlib", valid_fraction=fraction)
    total = len(loaded.train) + len(loaded.valid) + len(loaded.test)
    assert abs(len(loaded.valid) - share * total / 20) <= 4096 * share
    assert len(loaded.train) > 0


def test_a_folder_without_sources_is_no_corpus(tmp_path):
    (tmp_path / "a.py").write_text("pass\n")
    with pytest.raises(DataError, match=r"has 5 bytes of \*\.py files, too few"):
        data.load("stdlib", root=tmp_path)
    assert not data.available("stdlib", tmp_path / "absent")
