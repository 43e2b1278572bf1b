"""Compiling the CPU's program for this machine, and loading it."""

import ctypes
import functools
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import shutil
import subprocess
import tempfile

import jax

FORWARD, BACKWARD = "l2ljax_lstm_forward", "l2ljax_lstm_backward"
SEQUENCE_BACKWARD, NOTES = "l2ljax_lstm_sequence_backward", "l2ljax_lstm_notes"
JOIN, SPLIT = "l2ljax_join", "l2ljax_split"

# The program, and what it includes.
_SOURCES = [
    pathlib.Path(__file__).with_name(name)
    for name in (
        "leaves.cc",
        "lstm.cc",
        "network.h",
        "sums.h",
        "threads.h",
        "vectors.h",
        "workspace.h",
    )
]
# Tuned for no processor: for Zen 4, GCC 12's tuning makes the derivative 5 % slower.
_OPTIONS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-w")
_FOLDER = pathlib.Path(__file__).with_name("built")
_COMPILERS = ("c++", "g++")
# What x86-64 processors have in common, from the newest on, and what a compiler says of them.
_LEVELS = {
    "x86-64-v4": {"__AVX512F__", "__AVX512BW__", "__AVX512CD__", "__AVX512DQ__", "__AVX512VL__"},
    "x86-64-v3": {"__AVX2__", "__FMA__", "__BMI2__"},
}


def build(compiler: str | None = None) -> pathlib.Path:
    """Compiles the CPU's program, for this machine and this version of jaxlib.

    Programs that are traced afterwards use it, in this process and in later ones; a process that
    has loaded one keeps that. It stays beside the package, so an environment keeps what was built
    for it; another version of jaxlib needs it to be built again.

    Args:
        compiler: GCC 12 or later; default: the first of `c++` and `g++` that is found. Clang is
            refused: what it makes was seen to crash.

    Returns:
        Where it is.

    Raises:
        FileNotFoundError: if there is no such compiler.
        OSError: if this processor has neither AVX2 nor AVX-512 (on others the program was never
            measured), if the compiler fails, if what it makes does not run here, or if the
            package's folder cannot be written.
    """
    found = next(filter(None, map(shutil.which, [compiler] if compiler else _COMPILERS)), None)
    if found is None:
        tried = f"no {compiler!r}" if compiler else "none of " + ", ".join(_COMPILERS)
        raise FileNotFoundError(f"compiler must be a C++ compiler that is installed; found {tried}")
    _FOLDER.mkdir(exist_ok=True)
    level = _level(found)
    descriptor, temporary = tempfile.mkstemp(suffix=".so", dir=_FOLDER)
    os.close(descriptor)
    try:
        command = [found, *_OPTIONS, f"-march={level}", "-isystem", jax.ffi.include_dir()]
        programs = [str(source) for source in _SOURCES if source.suffix == ".cc"]
        done = subprocess.run(
            [*command, *programs, "-o", temporary], capture_output=True, text=True
        )
        if done.returncode:
            raise OSError(f"{found} failed:\n{done.stderr.strip()}")
        if not ctypes.CDLL(temporary).l2ljax_runs_here():
            raise OSError(f"{found} made a program that does not run on this processor")
        os.chmod(temporary, 0o644)
        os.replace(temporary, _path(level))
    finally:
        pathlib.Path(temporary).unlink(missing_ok=True)
    if not load():
        load.cache_clear()
    return _path(level)


@functools.cache
def load() -> bool:
    """Whether a program that was built runs here, with this jaxlib; XLA then knows it."""
    return any(_register(_path(level)) for level in _LEVELS)


def _register(path: pathlib.Path) -> bool:
    """Hands the program of a file to XLA, if there is one that runs here."""
    if not path.exists():
        return False
    try:
        library = ctypes.CDLL(str(path))
    except OSError:
        # Cut short, or of a system library that is gone: XLA computes the same.
        return False
    if not library.l2ljax_runs_here():
        return False
    for name in (FORWARD, BACKWARD, SEQUENCE_BACKWARD, NOTES, JOIN, SPLIT):
        capsule = jax.ffi.pycapsule(getattr(library, name))
        jax.ffi.register_ffi_target(name, capsule, platform="cpu")
    return True


def _path(level: str) -> pathlib.Path:
    """A name for each source, version of jaxlib, system and level of instructions."""
    jaxlib = importlib.metadata.version("jaxlib")
    about = " ".join([jaxlib, platform.system(), platform.machine(), level, *_OPTIONS]) + "\n"
    parts = [about.encode(), *(file.read_bytes() for file in _SOURCES)]
    tag = hashlib.sha256(b"".join(parts)).hexdigest()[:12]
    return _FOLDER / f"lstm-{tag}.so"


def _level(compiler: str) -> str:
    """The newest level of instructions that this processor has."""
    command = [compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull]
    done = subprocess.run(command, capture_output=True, text=True)
    macros = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("#define")}
    levels = [level for level, needed in _LEVELS.items() if needed <= macros]
    if not levels:
        raise OSError(
            f"the program is for processors with AVX2 or AVX-512; {compiler} finds neither here "
            f"({platform.machine()}){': ' * bool(done.stderr)}{done.stderr.strip()}"
        )
    return levels[0]
