"""Compiling the CPU's program, and finding what was compiled."""

import pytest

from l2ljax import kernels
from l2ljax.kernels import _build


def test_what_cannot_be_built_says_why_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(_build, "_FOLDER", tmp_path / "built")
    with pytest.raises(FileNotFoundError, match="compiler must be .* found no 'no-such-compiler'"):
        kernels.build("no-such-compiler")
    with pytest.raises(OSError, match="false finds neither here"):
        kernels.build("false")
    monkeypatch.setattr(_build, "_level", lambda compiler: "x86-64-v3")
    with pytest.raises(OSError, match="false failed"):
        kernels.build("false")
    assert not list((tmp_path / "built").glob("*"))


@pytest.mark.parametrize("part", [path.name for path in _build._SOURCES])
def test_a_build_is_named_after_what_it_was_made_from(part, tmp_path, monkeypatch):
    path = _build._path("x86-64-v3")
    (old,) = (file for file in _build._SOURCES if file.name == part)
    changed = tmp_path / part
    changed.write_text(old.read_text() + "\n")
    sources = [changed if file == old else file for file in _build._SOURCES]
    monkeypatch.setattr(_build, "_SOURCES", sources)
    assert _build._path("x86-64-v3") != path and _build._path("x86-64-v3").parent == path.parent


def test_a_build_is_named_after_how_it_was_made(monkeypatch):
    names = {_build._path(level) for level in _build._LEVELS}
    monkeypatch.setattr(_build, "_OPTIONS", (*_build._OPTIONS, "-g"))
    names |= {_build._path(level) for level in _build._LEVELS}
    assert len(names) == 4


def test_a_program_that_cannot_be_loaded_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(_build, "_FOLDER", tmp_path)
    for level in _build._LEVELS:
        _build._path(level).write_bytes(b"\x7fELF")
    assert not _build.load.__wrapped__()


def test_every_source_is_a_part_of_the_program():
    folder = _build._SOURCES[0].parent
    assert {*folder.glob("*.cc"), *folder.glob("*.h")} == set(_build._SOURCES)
