"""Sphinx configuration. Builds offline; GHISTPY_DOCS_ONLINE=1 turns the links into other projects' pages on."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path

# Executed pages run the package; one thread is enough for their small slides and keeps timings steady.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ.pop("MPLBACKEND", None)  # inherited by the kernels, Agg would leave the pages without pictures

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "src"))

import ghistpy

project = "ghistpy"
author = "The ghistpy developers"
project_copyright = "2026, the ghistpy developers"
version = release = ghistpy.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_autodoc_typehints",
]
source_suffix = {".md": "myst-nb", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "jupyter_execute", "**.ipynb_checkpoints"]
nitpicky = False

# ---- pages that run -------------------------------------------------------------------------------------------------
myst_enable_extensions = ["colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True

# ---- docstrings -----------------------------------------------------------------------------------------------------
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_use_rtype = False
napoleon_use_param = True
napoleon_custom_sections = ["Writes"]
autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # sphinx_autodoc_typehints writes them into the parameters
typehints_defaults = "braces"
always_use_bars_union = True
suppress_warnings = [
    # a References section is a list, not a set of footnotes that the text must cite
    "ref.footnote",
    # names that exist for type checkers only
    "sphinx_autodoc_typehints.forward_reference",
    "sphinx_autodoc_typehints.guarded_import",
    "sphinx_autodoc_typehints.local_function",
    # the order in which extensions write their parts is not ours
    "config.cache",
]

# ---- links into other projects --------------------------------------------------------------------------------------
if os.environ.get("GHISTPY_DOCS_ONLINE") or os.environ.get("READTHEDOCS"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
        "matplotlib": ("https://matplotlib.org/stable/", None),
        "numpy": ("https://numpy.org/doc/stable/", None),
        "pandas": ("https://pandas.pydata.org/docs/", None),
        "python": ("https://docs.python.org/3/", None),
        "scipy": ("https://docs.scipy.org/doc/scipy/", None),
        "spatialdata": ("https://spatialdata.scverse.org/en/stable/", None),
    }

# ---- look -----------------------------------------------------------------------------------------------------------
html_theme = "sphinx_book_theme"
html_title = "ghistpy"
html_theme_options = {"show_toc_level": 2, "use_download_button": False, "use_fullscreen_button": False}

# ---- one page per namespace, from its __all__, so that no public name can be missing --------------------------------
NAMESPACES = {
    "io": "Read slides and spot assays, write tables",
    "pp": "From pixels to nuclei",
    "tl": "Train, predict, aggregate, evaluate",
    "models": "The model and its configuration",
    "pl": "Draw what is stored",
    "get": "What was written, as tidy frames",
    "datasets": "Simulated slides and public data",
}


def write_api_pages(folder: Path) -> None:
    """Write one page per namespace with an autosummary of its public names."""
    folder.mkdir(exist_ok=True)
    pages = {}
    for name, title in NAMESPACES.items():
        names = sorted(import_module(f"ghistpy.{name}").__all__, key=str.lower)
        lines = [f"# gp.{name}: {title.lower()}", "", f"```{{eval-rst}}\n.. currentmodule:: ghistpy.{name}", ""]
        lines += [".. autosummary::", "   :toctree: generated", "   :nosignatures:", "", *(f"   {n}" for n in names)]
        pages[f"{name}.md"] = "\n".join([*lines, "```", ""])
    toctree = "\n".join(NAMESPACES)
    pages["index.md"] = (
        "# API\n\n```python\nimport ghistpy as gp\n```\n\n"
        "Every function documents shapes, units, the keys it writes and what it raises. "
        "[The keys in one table](../keys.md).\n\n"
        f"```{{toctree}}\n:maxdepth: 2\n\n{toctree}\n```\n"
    )
    for file_name, text in pages.items():
        path = folder / file_name
        if not path.exists() or path.read_text(encoding="utf-8") != text:  # untouched pages are not built again
            path.write_text(text, encoding="utf-8")


write_api_pages(HERE / "api")
