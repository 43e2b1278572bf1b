"""Annotations enforced as type checkers read them: an `int` will do for a `float`."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
