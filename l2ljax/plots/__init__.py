"""Figures of what `l2ljax.evaluate` and `l2ljax.meta` return; needs the extra `plots`."""

try:
    import matplotlib  # noqa: F401
except ImportError as error:
    raise ImportError("figures need matplotlib: pip install 'l2ljax[plots]'") from error

from l2ljax.plots._axes import save
from l2ljax.plots._benchmark import benchmark, page
from l2ljax.plots._curves import curves
from l2ljax.plots._history import history
from l2ljax.plots._images import images
from l2ljax.plots._range_test import range_test
from l2ljax.plots._ratios import ratios

__all__ = ["benchmark", "curves", "history", "images", "page", "range_test", "ratios", "save"]


def __dir__() -> list[str]:
    return __all__
