"""What every test has: checked annotations, a compilation cache, and the data folder."""

import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# In the environment, so that processes started by a test share the cache.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# For the tests of sharded params.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
# XLA's older code for loops on a CPU compiles in a third of the time, of which tests have most.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

import jax  # noqa: E402  (jax reads the environment when it is imported)
import jaxtyping  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

import tests.typechecker  # noqa: E402, F401  (the hook looks it up by name)

# Before anything imports l2ljax: every annotation of shape and type is checked at run time.
install_import_hook("l2ljax", "tests.typechecker.check")


@pytest.fixture
def strict_promotion() -> Iterator[None]:
    """Mixed dtypes and ranks are errors. Not for all tests: optax itself needs the loose kind."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Annotations are not enforced, as they are not for a user: arguments of any type come in."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def x64() -> Iterator[None]:
    """Float64 is the default."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def program() -> None:
    """The CPU's program, built if it was not; skips where it cannot be."""
    from l2ljax import kernels
    from l2ljax.kernels import _build

    if not any(map(shutil.which, _build._COMPILERS)):
        pytest.skip("there is no GCC")
    if platform.machine() != "x86_64":
        pytest.skip("the program is for x86-64")
    if not kernels.load():
        kernels.build()


@pytest.fixture(scope="module", autouse=True)
def quick_compilation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Most programs here run once, for microseconds: compiling them is all the time they take.

    A module whose programs run long sets `OPTIMIZED = True`.
    """
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, not getattr(request.module, "OPTIMIZED", False))
    yield
    jax.config.update(name, before)
    # Gigabytes of programs that no other module runs.
    jax.clear_caches()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder that holds `mnist/`: `L2LJAX_DATA`, or `shared/data` beside the repository."""
    folder = Path(os.environ.get("L2LJAX_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "mnist").is_dir():
        pytest.skip(f"no data: {folder} has no folder 'mnist'; set L2LJAX_DATA")
    return folder


@pytest.fixture(scope="session")
def rivals_dir() -> Path:
    """The folder of others' weights: `L2LJAX_RIVALS`, or `shared/rivals` beside the repository."""
    folder = Path(os.environ.get("L2LJAX_RIVALS", ROOT.parent / "shared" / "rivals"))
    if not (folder / "celo.safetensors").is_file():
        pytest.skip(f"no rivals: {folder} has no file celo.safetensors; set L2LJAX_RIVALS")
    return folder
