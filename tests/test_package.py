"""What `import ghistpy` costs and promises."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

import ghistpy

HEAVY = ("torch", "matplotlib", "spatialdata", "anndata", "scanpy", "squidpy", "lightning", "pandas", "skimage")
# the layers that must run on a bare GPU machine
CORE = ("ghistpy.nn", "ghistpy.geometry", "ghistpy.data", "ghistpy.engine")
OTHER_DEPENDENCIES = (
    *("anndata", "dask", "geopandas", "h5py", "lifelines", "lightning", "matplotlib", "pandas", "PIL", "pooch"),
    *("safetensors", "scanpy", "skimage", "sklearn", "sksurv", "spatialdata", "spatialdata_plot", "squidpy"),
    *("statsmodels", "tifffile", "tqdm", "typer", "xarray", "zarr"),
)


def run_python(code: str) -> str:
    """Run code in a fresh interpreter: what this one has imported already must not count."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light():
    out = run_python(
        f"""
        import json, sys, time
        start = time.perf_counter()
        import ghistpy
        seconds = time.perf_counter() - start
        print(json.dumps([seconds, [name for name in {HEAVY!r} if name in sys.modules]]))
        """
    )
    seconds, loaded = json.loads(out)
    assert loaded == []
    assert seconds < 0.5


@pytest.mark.parametrize("name", ["io", "pp", "tl", "get", "datasets"])
def test_touching_a_subpackage_stays_light(name):
    """`gp.tl` is touched by every tab completion: its heavy imports belong inside functions."""
    out = run_python(
        f"""
        import json, sys
        import ghistpy
        ghistpy.{name}
        print(json.dumps([heavy for heavy in {HEAVY!r} if heavy in sys.modules]))
        """
    )
    assert json.loads(out) == []


def test_the_core_needs_torch_numpy_scipy_only():
    """With every other dependency hidden, each module of the core layers imports all the same."""
    run_python(
        f"""
        import pkgutil, sys
        from importlib import import_module

        class Hide:
            def find_spec(self, fullname, path=None, target=None):
                if fullname.partition(".")[0] in {OTHER_DEPENDENCIES!r}:
                    raise ModuleNotFoundError(f"{{fullname}} is hidden by this test", name=fullname)

        sys.meta_path.insert(0, Hide())
        for package in {CORE!r}:
            for found in pkgutil.walk_packages(import_module(package).__path__, package + "."):
                import_module(found.name)
        """
    )


def test_lazy_subpackages_are_all_reachable():
    for name in ghistpy.__all__:
        assert name in dir(ghistpy)
        assert getattr(ghistpy, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'plots'.*it has"):
        _ = ghistpy.plots


def test_every_public_name_exists_and_is_documented():
    for package in ("io", "pp", "tl", "models", "pl", "get", "datasets"):
        module = getattr(ghistpy, package)
        for name in module.__all__:
            value = getattr(module, name)
            assert name in dir(module)
            assert (value.__doc__ or "").strip(), f"ghistpy.{package}.{name} has no docstring"
