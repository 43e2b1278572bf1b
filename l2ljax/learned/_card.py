"""What is known of saved weights, as something to read."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from l2ljax._shown import brief, html_table

_SUMMARY = ("trained_on", "scores", "limits")


class Card(dict[str, Any]):
    """The card of saved weights: a dictionary of plain JSON values.

    `print` shows it a line a value, a notebook as a table.

    >>> print(Card(trained_on="digits", scores={"validation": 0.25}))
    trained_on: digits
    scores:
      validation: 0.25
    """

    def __str__(self) -> str:
        return "\n".join(_outline(self))

    def __repr__(self) -> str:
        fields = (f"{name}={brief(value, 48)}" for name, value in (self.summary() or self).items())
        return f"Card({', '.join(fields)})"

    def _repr_html_(self) -> str:
        return html_table([], [[name, _cell(value)] for name, value in self.items()])

    def summary(self) -> "Card":
        """What the weights were trained on, what they reached, and where their limits are."""
        return Card({name: self[name] for name in _SUMMARY if name in self})


class Cards(dict[str, Card]):
    """Cards by the names of their weights; `print` and a notebook show the summary of each.

    >>> print(Cards(mine=Card(trained_on="digits", seed=0)))
    mine:
      trained_on: digits
    """

    def __str__(self) -> str:
        return "\n".join(_outline({name: card.summary() for name, card in self.items()}))

    def __repr__(self) -> str:
        return f"Cards({', '.join(self)})"

    def _repr_html_(self) -> str:
        rows = [
            [name, *(_cell(card.get(key, "")) for key in _SUMMARY)] for name, card in self.items()
        ]
        return html_table(["", *_SUMMARY], rows)


def _outline(values: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Plain JSON values, a line each, indented as they are nested."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield f"{indent}{key}:"
            yield from _outline(value, indent + "  ")
        else:
            yield f"{indent}{key}: {_plain(value)}"


def _cell(value: Any) -> str:
    return "\n".join(_outline(value)) if isinstance(value, Mapping) else _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)
