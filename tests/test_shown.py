"""What a user sees of a record: one line of text, tables in notebooks, signatures in `help`."""

import inspect
import pydoc
import xml.etree.ElementTree as ET

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import l2ljax as l2l
from l2ljax import core, hyper, learned, meta, tasks
from l2ljax.evaluate import Comparison, RangeTest, Row, Tuning
from l2ljax.learned import Card
from tests.methods_table import METHODS

KEY = jax.random.key(0)
OPT = learned.lstm()
PHI = OPT.init(KEY)
DATASET = tasks.digits()
TASK = tasks.mlp_classifier(DATASET)
MANY = np.ones((64, 1001))
ROW = Row("", *7 * (1.0,), setting=None, on_edge=False, diverged=0)
COMPARISON = Comparison(
    tuple(ROW._replace(name=name) for name in ("a<b", "other")),
    {"a<b": MANY, "other": MANY},
    {},
    "a<b",
    0.95,
)
SEARCH = hyper.SearchResult(
    {"rate": np.geomspace(1e-3, 1, 30), "name": np.array(["<a>"] * 30)},
    np.append(np.nan, np.arange(29.0)),
    {"rate": 0.1, "name": "<a>"},
    0.0,
)
STATE = meta.TrainState(jnp.int32(7), PHI, (PHI, PHI), MANY, PHI, jnp.float32(0.5), jnp.int32(0))
RESULT = meta.TrainResult(PHI, PHI, {"loss": np.ones(7), "losses": np.ones((7, 20))}, STATE)
ESTIMATORS = {
    "truncated": meta.truncated(),
    "full": meta.full(horizon=3),
    "pes": meta.pes(),
    "weighted": meta.weighted({"a": (1.0, meta.truncated()), "b": (0.5, meta.full(horizon=2))}),
}
RECORDS = {
    "learned optimizer": OPT,
    "one of one's own": core.LearnedOptimizer(lambda key: PHI, lambda phi: optax.sgd(0.1)),
    "reversible optimizer": learned.reversible_momentum(horizon=100),
    "hyperparameters": learned.hyperparameters("adam", learning_rate=0.1, like=PHI),
    "fixed": learned.fixed(optax.adam(0.1)),
    "loaded": learned.load("general"),
    "loaded in a chain": core.as_pytree(learned.load("lstm-mnist")),
    "data set": DATASET,
    "split": DATASET.train,
    "task": TASK,
    "task of one's own": core.Task(lambda key: (), lambda key, problem: PHI, lambda *rest: 0.0),
    "learned task": tasks.learned_l2(TASK),
    "family": tasks.load("digits"),
    "function on a box": tasks.DIXON_SZEGO["branin"],
    **{name: factory(OPT, TASK) for name, factory in ESTIMATORS.items()},
    "mixture": meta.mixture()(OPT, [TASK, TASK]),
    "score": meta.validation(OPT, TASK, key=KEY),
    "estimate": core.Estimate(jnp.float32(1.5), PHI, {"losses": MANY}),
    "training": RESULT,
    "its state": STATE,
    "progress": meta.Progress(STATE, 10, RESULT.history, 0.5),
    "comparison": COMPARISON,
    "search": SEARCH,
    "tuning": Tuning({"learning_rate": 0.1}, 1.0, {"learning_rate": MANY[0]}, MANY[0], False),
    "range test": RangeTest(MANY[0], MANY, MANY[0], 0.1, 0.2, True, "log"),
    "method": hyper.random(),
    "card": learned.shipped()["general"],
    "card of one's own": Card(task="quadratic"),
    "cards": learned.shipped(),
    **{f"method {method}": method.make() for method in METHODS},
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_is_shown_in_one_line_without_its_numbers(name):
    shown = repr(RECORDS[name])
    assert "\n" not in shown and len(shown) <= 270
    assert "rray(" not in shown


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("learned optimizer", "LearnedOptimizer(lstm(hidden=[20, 20], preprocess='log_sign', "),
        ("loaded", "init=learned.adaptive.init(<4 arrays, 2,421 numbers>, "),
        ("split", "Split(inputs=uint8[898,8,8,1], labels=int32[898], maximum=16)"),
        ("card of one's own", "Card(task='quadratic')"),
        ("its state", "TrainState(step=7, phi=<6 arrays, 5,141 numbers>, "),
        ("comparison", "Comparison(a<b 1, other 1; 64 problems, 1000 steps)"),
        ("search", "SearchResult(0 at rate=0.1, name=<a>, the best of 30 trials, 1 of them not "),
    ],
)
def test_it_says_what_the_record_is(name, expected):
    assert expected in repr(RECORDS[name])


def test_a_traced_or_deleted_array_is_shown_by_its_shape():
    shown = []

    @jax.jit
    def program(rate):
        shown.append(repr(core.closure(jnp.add, rate)))
        return rate

    rate = jnp.float32(0.5)
    program(rate)
    assert shown[0].endswith("(float32[])")
    bound = core.closure(jnp.add, rate)
    assert repr(bound).endswith("(0.5)")
    rate.delete()
    assert repr(bound).endswith("(float32[])")


def test_what_is_shown_does_not_decide_what_is_equal():
    first, second = (jax.tree.structure(tasks.quadratic(2)) for _ in range(2))
    assert first == second and hash(first) == hash(second)
    assert first != jax.tree.structure(tasks.quadratic(3))


def cells(record):
    """The table of a notebook, row by row."""
    document = ET.fromstring(f"<div>{record._repr_html_()}</div>")
    return [["".join(cell.itertext()) for cell in row] for row in document.iter("tr")]


def test_a_comparison_is_a_table_in_a_notebook():
    header, first, second = cells(COMPARISON)
    assert header[:4] == ["", "final loss", "95% interval", "mean loss"]
    assert first == ["a<b", "1", "[1, 1]", "1", "", "", ""]
    assert second == ["other", "1", "[1, 1]", "1", "", "1.000", "[1.000, 1.000]"]


def test_a_search_is_a_table_of_its_best_trials_in_a_notebook():
    header, *rows = cells(SEARCH)
    assert header == ["trial", "rate", "name", "value"]
    # The first trial was not finite.
    assert [row[0] for row in rows] == [str(trial) for trial in range(1, 11)]
    assert rows[0][2:] == ["<a>", "0"]


def test_cards_are_tables_in_a_notebook_and_lines_in_print():
    cards = learned.shipped()
    header, *rows = cells(cards)
    assert header == ["", "trained_on", "scores", "limits"]
    assert [row[0] for row in rows] == [*cards]
    card = cards["lstm-mnist"]
    assert dict(cells(card))["limits"] == card["limits"]
    assert f"limits: {card['limits']}" in str(card).splitlines()
    assert learned.restore("lstm-mnist")[2] == card == learned.read_card("lstm-mnist")


ROOMS = (l2l.classic, l2l.evaluate, l2l.gaussian_process, hyper, learned, meta, l2l.suite, tasks)


def test_help_shows_types_by_their_names():
    shown = pydoc.plain(pydoc.render_doc(meta.train))
    assert (
        "key: Key, steps: int" in shown and "callbacks: collections.abc.Iterable[Callback]" in shown
    )
    assert "learning_rate: LearningRate, b1: Hyperparameter" in str(
        inspect.signature(l2l.classic.adam)
    )
    for room in ROOMS:
        for name in room.__all__:
            if inspect.isroutine(getattr(room, name)):
                signature = str(inspect.signature(getattr(room, name)))
                for written_out in ("jaxtyping.Key", "numpy.bool", "SupportsDType"):
                    assert written_out not in signature, f"{room.__name__}.{name}{signature}"
