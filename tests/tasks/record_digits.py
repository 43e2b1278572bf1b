"""Writes `l2ljax/tasks/data/digits.npz` from scikit-learn's copy: `python record_digits.py`."""

from pathlib import Path

import numpy as np

SOURCE = (
    "E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning "
    "Repository, 1998, https://doi.org/10.24432/C50P49, CC BY 4.0; its test part, 1,797 images"
)


def shuffled_digits() -> tuple[np.ndarray, np.ndarray]:
    """Images `u8[1797, 8, 8, 1]` of 0 to 16 and labels `u8[1797]`, in the order of the package."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    # `RandomState` and not `default_rng`: numpy promises never to change its stream.
    order = np.random.RandomState(0).permutation(len(labels))
    return images[order].reshape(-1, 8, 8, 1).astype(np.uint8), labels[order].astype(np.uint8)


if __name__ == "__main__":
    images, labels = shuffled_digits()
    target = Path(__file__).parents[2] / "l2ljax" / "tasks" / "data" / "digits.npz"
    np.savez_compressed(target, images=images, labels=labels, source=np.array(SOURCE))
    print(f"{target.name}: {target.stat().st_size:,} bytes")
