"""How long episodes are: one horizon, or several from which each draws its own."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from l2ljax import _checks
from l2ljax.core import Key
from l2ljax.meta._episodes import HORIZON_DRAW


@dataclasses.dataclass(frozen=True)
class Horizons:
    """The horizons of an estimator's episodes.

    Attributes:
        lengths: inner steps, ascending.
        curriculum: episodes after which the next longer one becomes available; None: all are.
    """

    lengths: tuple[int, ...]
    curriculum: int | None

    @property
    def vary(self) -> bool:
        """Whether there is more than one."""
        return len(self.lengths) > 1

    def draw(self, key: Key, begun: Int[Array, ""] | None) -> Int[Array, ""] | None:
        """Draws the horizon of an episode, uniformly from those that are available.

        Args:
            key: the key that begins the episode.
            begun: episodes begun before it; None without a curriculum.

        Returns:
            i32[], or None where there is only one horizon.
        """
        if not self.vary:
            return None
        available: int | Array = len(self.lengths)
        if begun is not None and self.curriculum is not None:
            available = jnp.minimum(1 + begun // self.curriculum, available)
        draw_key = jax.random.fold_in(key, HORIZON_DRAW)
        index = jax.random.randint(draw_key, (), 0, available, jnp.int32)
        return jnp.asarray(self.lengths, jnp.int32)[index]


def horizons(horizon: int | Sequence[int], truncation: int, curriculum: int | None) -> Horizons:
    """Checks the arguments of an estimator.

    Args:
        horizon: inner steps, one number or several.
        truncation: inner steps of a segment; it must divide each.
        curriculum: episodes between one horizon and the next, or None.

    Returns:
        The horizons, ascending.

    Raises:
        ValueError: for sizes below 1, no horizon, a truncation that does not divide one of them,
            or a curriculum of a single one.
    """
    lengths = tuple(horizon) if isinstance(horizon, Sequence) else (horizon,)
    if not lengths:
        raise ValueError("horizon must have at least one number of steps, got ()")
    for length in lengths:
        _checks.count("horizon", length)
    _checks.count("truncation", truncation)
    for length in lengths:
        if length % truncation:
            raise ValueError(
                f"truncation must divide horizon, got truncation={truncation} and horizon={length}"
            )
    if curriculum is not None:
        _checks.count("curriculum", curriculum)
        if len(lengths) == 1:
            raise ValueError(
                f"horizon must have several numbers of steps for curriculum={curriculum} to order, "
                f"got {horizon!r}"
            )
    return Horizons(tuple(sorted(int(length) for length in lengths)), curriculum)
