"""Handwritten digits of 8x8 pixels, embedded in the package."""

import importlib.resources

import jax.numpy as jnp
import numpy as np

from l2ljax.tasks._dataset import Dataset, Split


def digits() -> Dataset:
    """The 1,797 handwritten digits of 8x8 pixels that need no download.

    They lie in a fixed, shuffled order. Half of them are for meta-training; it never sees the rest:

    | split | examples | for |
    |---|---|---|
    | train | 898 | meta-training |
    | validation | 180 | early stopping and choices |
    | test | 719 | evaluation on examples that nothing was chosen by |

    Returns:
        A data set; `inputs` are `u8[n, 8, 8, 1]` of 0 to 16, which `examples` makes `float32` in
        [0, 1]; `labels` are `i32[n]` of 0 to 9.

    Reference:
        E. Alpaydin and C. Kaynak, 'Optical Recognition of Handwritten Digits', UCI Machine Learning
        Repository, 1998, https://doi.org/10.24432/C50P49, CC BY 4.0: its test part, which
        scikit-learn ships as `load_digits`.

    >>> for row in digits().train.inputs[0, ::2, :, 0]:
    ...     print("".join(".-+*#"[level // 4] for level in row))
    ..+#*...
    ..*.-*..
    ....#-..
    ..*##+..
    """
    file = importlib.resources.files("l2ljax.tasks") / "data" / "digits.npz"
    with file.open("rb") as stream, np.load(stream) as arrays:
        images, labels = jnp.asarray(arrays["images"]), jnp.asarray(arrays["labels"], jnp.int32)
    examples = Split(images, labels, maximum=16)
    return Dataset(examples[:898], examples[898:1078], examples[1078:], name="digits", classes=10)
