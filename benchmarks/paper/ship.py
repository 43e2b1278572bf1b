"""Puts the weights of a finished run into the package, where `l2ljax.learned.load` finds them.

    python benchmarks/paper/ship.py runs/robust-mnist robust-mnist
    python benchmarks/paper/ship.py runs/mnist lstm-mnist \
        --trained-on "the paper's MLP on MNIST, episodes of 100 steps" \
        --limits "fails on ReLU networks; beyond 200 steps losses rise"

The card goes with them. It has to say what they were trained on and what they cannot do: cards of
`weights.py` do, others are told. Where the run has a comparison with tuned baselines, its final
losses join the card's scores. An optimizer that can wait for a coordinate's first gradient does so
from here on, though training had it without.
"""

import argparse
import json
import pathlib
import re
import tempfile
from collections.abc import Sequence
from typing import Any

from l2ljax import checkpoint, learned
from l2ljax.learned import _weights

WITHOUT_GRADIENT = "a coordinate stands still until its first gradient that is not zero"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=pathlib.Path, help="folder of a finished run")
    parser.add_argument("name", help="what `learned.load` will take: letters, digits and hyphens")
    parser.add_argument("--trained-on", default="", help="tasks and lengths of episodes")
    parser.add_argument("--limits", default="", help="where not to use them")
    parser.add_argument("--force", action="store_true", help="replace weights of the same name")
    arguments = parser.parse_args(argv)
    try:
        print(ship(**vars(arguments)))
    except (ValueError, OSError) as error:
        parser.error(str(error))


def ship(
    run: pathlib.Path, name: str, *, trained_on: str = "", limits: str = "", force: bool = False
) -> pathlib.Path:
    """Copies weights and card; returns their folder."""
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"name must be of small letters, digits and hyphens, got {name!r}")
    opt, phi, card = learned.restore(run)
    waiting = _waiting(opt.spec)
    if waiting != opt.spec:
        opt = _weights._rebuild(str(run / checkpoint.CARD), waiting)
        card["without_gradient"] = WITHOUT_GRADIENT
    said = {"trained_on": trained_on, "limits": limits}
    card.update({key: text for key, text in said.items() if text.strip()})
    for key in said:
        if not card.get(key):
            raise ValueError(f"{key} must say something, got {said[key]!r} and nothing in the card")
    if not card.get("command"):
        raise ValueError(f"{run / checkpoint.CARD} must have the command that made the weights")
    folder = _weights.SHIPPED / name
    scores = _scores(run, card.get("scores", {}))
    card["scores"] = scores
    if not force:
        learned.save(folder, opt, phi, card)
        return folder
    # Beside the old ones first, which stay if anything is refused.
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        learned.save(temporary, opt, phi, card)
        folder.mkdir(exist_ok=True)
        for name in (checkpoint.WEIGHTS, checkpoint.CARD):
            (pathlib.Path(temporary) / name).replace(folder / name)
    return folder


def _waiting(spec: Any) -> Any:
    """A spec with every optimizer in it that can wait for a coordinate's first gradient waiting."""
    if not isinstance(spec, dict):
        return spec
    return {key: key == "wait_for_gradient" or _waiting(value) for key, value in spec.items()}


def _scores(run: pathlib.Path, scores: dict[str, Any]) -> dict[str, Any]:
    """The scores of a card, a comparison shortened to what a reader asks for."""
    comparison = scores.get("comparison")
    if (run / "comparison.json").exists():
        comparison = json.loads((run / "comparison.json").read_text())
    if comparison is None:
        return scores
    kept = ("task", "command", "problems", "steps")
    return {
        **scores,
        "comparison": {
            **{key: comparison[key] for key in kept if key in comparison},
            "final": {row["name"]: row["final"] for row in comparison["rows"]},
        },
    }


if __name__ == "__main__":
    main()
