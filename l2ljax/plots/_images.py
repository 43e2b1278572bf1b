"""Pictures side by side."""

from collections.abc import Mapping

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from l2ljax import _checks


def images(pictures: Mapping[str, np.ndarray], *, columns: int = 4, ax: Axes | None = None) -> Axes:
    """Draws pictures side by side with their names: a content, a style, what optimizers painted.

    Args:
        pictures: f32[height, width, 3] of red, green and blue in [0, 1] by name, what is outside
            is clipped; or f32[height, width] of greys.
        columns: pictures of a row.
        ax: where to draw, all of them within it; default: a new figure.

    Returns:
        The axes; `ax.child_axes` are those of the pictures.

    Raises:
        ValueError: for no pictures, one of another shape, or `columns` below one.

    >>> ax = images({"grey": np.full((2, 2, 3), 0.5), "white": np.ones((4, 4, 3))})
    >>> [panel.get_title() for panel in ax.child_axes]
    ['grey', 'white']
    """
    _checks.count("columns", columns)
    if not pictures:
        raise ValueError("pictures must have at least one picture, got none")
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    for name, picture in pictures.items():
        if np.ndim(picture) != 2 and (np.ndim(picture) != 3 or np.shape(picture)[-1] != 3):
            raise ValueError(
                f"pictures[{name!r}] must have shape (height, width, 3) or (height, width), "
                f"got {np.shape(picture)}"
            )
    if ax is None:
        _, ax = plt.subplots(figsize=(2.2 * columns, 2.4 * rows), layout="constrained")
    ax.set_axis_off()
    for i, (name, picture) in enumerate(pictures.items()):
        row, column = divmod(i, columns)
        # The rest of a cell is for the title and a gap.
        corner = (column / columns, 1 - (row + 1) / rows)
        panel = ax.inset_axes((*corner, 0.96 / columns, 0.88 / rows))
        panel.imshow(np.clip(np.asarray(picture, np.float64), 0, 1), cmap="gray", vmin=0, vmax=1)
        panel.set_title(name, fontsize="medium")
        panel.set_axis_off()
    return ax
