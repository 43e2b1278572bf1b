"""Optimizers over the tasks of a benchmark: a figure, and a page."""

import base64
import html
import io

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator

from l2ljax._shown import html_table
from l2ljax.evaluate import Benchmark
from l2ljax.plots._axes import look, quiet

_WIDEST = 10.0
"""The last factor of a performance profile."""


def benchmark(result: Benchmark, *, ax: Axes | None = None) -> Axes:
    """Draws the performance profile of each optimizer, and beside it interquartile means.

    Args:
        result: what `evaluate.benchmark` returned.
        ax: where to draw the profile, alone; default: a new figure, with interquartile means over
            tasks of the reference's final loss over each one's and their intervals on the left.

    Returns:
        The axes of the profile: the share of tasks on which an optimizer's final loss is within a
        factor of the best one's.

    >>> import jax, l2ljax as l2l, optax
    >>> result = l2l.evaluate.benchmark({"sgd": optax.sgd(0.02)}, {"bowl": l2l.tasks.quadratic(2)},
    ...                                 rivals={}, steps=20, problems=8)
    >>> ax = benchmark(result)
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['Adam', 'sgd']
    """
    rows = sorted(result.summary, key=lambda row: row.median_ratio)
    looks = {row.optimizer: look(place) for place, row in enumerate(rows)}
    looks[result.reference] = {"color": "black", "linestyle": "-"}
    if ax is None:
        height = max(4.2, 1 + 0.28 * len(rows))
        _, (left, ax) = plt.subplots(1, 2, figsize=(11, height), layout="constrained")
        for place, row in enumerate(rows):
            color = looks[row.optimizer]["color"]
            low, middle, high = np.clip([row.iqm_low, row.iqm, row.iqm_high], 0, 1e6)
            left.plot([low, high], [place, place], color=color, linewidth=1.5)
            left.plot(middle, place, "o", color=color)
        left.axvline(1.0, color="black", linewidth=1)
        left.set_yticks(np.arange(len(rows)), [row.optimizer for row in rows])
        left.invert_yaxis()
        left.set_xlabel(f"interquartile mean over tasks of {result.reference} / this")
        quiet(left)
    factors = np.geomspace(1, _WIDEST, 200)
    profile = result.profile(factors)
    for row in rows:
        ax.step(
            factors,
            profile[row.optimizer],
            where="post",
            label=row.optimizer,
            **looks[row.optimizer],
        )
    ax.set(xscale="log", xlim=(1, _WIDEST), ylim=(0, 1.02))
    ax.xaxis.set_major_locator(FixedLocator([1, 1.5, 2, 3, 5, 10]))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("")
    ax.set_xlabel("factor of the best final loss")
    ax.set_ylabel(f"share of {len(result.tasks)} tasks")
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    quiet(ax)
    return ax


def page(result: Benchmark, title: str = "Benchmark", notes: str = "") -> str:
    """The tables and the figure of a benchmark as one HTML page, which needs no other file.

    Args:
        result: what `evaluate.benchmark` returned.
        title: of the page.
        notes: below the title, such as the command, the machine and versions.

    Returns:
        The page.

    >>> import jax, l2ljax as l2l, optax
    >>> result = l2l.evaluate.benchmark({"sgd": optax.sgd(0.02)}, {"bowl": l2l.tasks.quadratic(2)},
    ...                                 rivals={}, steps=20, problems=8)
    >>> text = page(result, "SGD & co")
    >>> text.count("<table>"), "SGD &amp; co" in text, 'src="data:image/png;base64,' in text
    (3, True, True)
    """
    figure = benchmark(result).get_figure(root=True)
    assert figure is not None
    picture = io.BytesIO()
    figure.savefig(picture, dpi=130, format="png")
    plt.close(figure)
    image = base64.b64encode(picture.getvalue()).decode()
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p><code>{html.escape(notes)}</code></p>" if notes else "",
        f"<p>{html.escape(_explained(result))}</p>",
        _table(result.table()),
        f'<p><img alt="performance profile" src="data:image/png;base64,{image}"></p>',
        f"<h2>Final losses over {html.escape(result.reference)}'s</h2>",
        _table(result.task_table()),
        "<h2>Each task</h2>",
        _table(_details(result)),
    ]
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    return f"<!DOCTYPE html><html><head>{head}</head><body>{''.join(parts)}</body></html>\n"


_STYLE = (
    "body{font:15px/1.5 sans-serif;margin:2em;max-width:75em}"
    "table{border-collapse:collapse;font-size:13px;display:block;overflow-x:auto}"
    "td,th{padding:.2em .7em;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}"
    "th:first-child{text-align:left}img{max-width:100%}code{white-space:pre-wrap}"
)


def _table(lines: list[list[str]]) -> str:
    return html_table(lines[0], lines[1:])


def _explained(result: Benchmark) -> str:
    sizes = sorted({found.task.problems for found in result.results.values()})
    problems = " to ".join(str(size) for size in sorted({sizes[0], sizes[-1]}))
    return (
        f"{len(result.tasks)} tasks, {problems} problems each; rates were tuned on other problems. "
        "The final loss is the mean of the last 5 % of losses. IQM is the interquartile mean over "
        f"tasks, its {100 * result.confidence:g} % interval a bootstrap over tasks and problems. "
        "The speedup is the steps until Adam, with the best of its constant rates at each step, is "
        "as low, over the steps that were run; 2 is the largest that is counted. "
        f"{result.reference} is the reference of ratios: below 1 is better than it."
    )


def _details(result: Benchmark) -> list[list[str]]:
    header = ["task", "optimizer", "final loss", "interval", "median", "ratio", "interval"]
    lines = [[*header, "speedup", "diverged", "tuned"]]
    for row in result.rows:
        setting = " ".join(f"{value:.3g}" for value in (row.setting or {}).values())
        lines.append(
            [
                row.task,
                row.optimizer,
                f"{row.final:.4g}",
                f"[{row.final_low:.4g}, {row.final_high:.4g}]",
                f"{row.median:.4g}",
                f"{row.ratio:.3g}",
                f"[{row.ratio_low:.3g}, {row.ratio_high:.3g}]",
                f"{row.speedup:.2f}",
                str(row.diverged),
                setting + " (edge)" * row.on_edge,
            ]
        )
    return lines
