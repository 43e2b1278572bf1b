"""What `lstm-art` paints, beside the content, the style, and the best tuned method.

    python benchmarks/paper/art_picture.py    # writes art-picture.jpg

Two contents of the evaluation half: one in the style of training at 64x64, one in a new style at
128x128; 128 steps from noise. Nesterov's method has the rates of `run.py art` and `art-new-style`.
"""

import json
import pathlib
import sys

import jax
import numpy as np

from l2ljax import classic, learned, meta, plots, tasks

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import _report

RESULTS = _report.RESULTS / "paper"
STEPS = 128
PANELS = {"art": ("flower", 64), "art-new-style": ("waves", 128)}


def tuned_rate(panel: str) -> float:
    """Of Nesterov's method, as the panel found it."""
    rows = json.loads((RESULTS / f"{panel}.json").read_text())["rows"]
    return next(row["setting"]["learning_rate"] for row in rows if row["name"] == "NAG")


def pictures(panel: str) -> dict[str, np.ndarray]:
    style, size = PANELS[panel]
    contents, style_picture = tasks.sample_pictures("evaluation", style, size)
    task = tasks.neural_art(contents, style_picture, crop=size)
    key = jax.random.key(0)
    problem, start, _ = meta.begin_episode(task, key)
    found = {
        "content": contents[problem["index"]] / 255,
        f"style: {style}": style_picture[:, :size] / 255,
        "start": start,
    }
    for name, tx in {
        "lstm-art": learned.load("lstm-art"),
        "Nesterov, tuned": classic.nesterov(tuned_rate(panel)),
    }.items():
        losses, found[name] = meta.unroll(tx, task, problem, key, horizon=STEPS)
        print(f"{panel}: {name} {losses[-1]:.4f}")
    return {f"{title}, {size}x{size}": np.asarray(image) for title, image in found.items()}


def main() -> None:
    both = {title: image for panel in PANELS for title, image in pictures(panel).items()}
    plots.save(plots.images(both, columns=5), RESULTS / "art-picture.jpg")
    print(RESULTS / "art-picture.jpg")


if __name__ == "__main__":
    main()
