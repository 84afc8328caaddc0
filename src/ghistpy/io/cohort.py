"""Many slides: read one after the other, one function over all, nothing computed twice."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghistpy.io._cache import Cache, key_of, stamp

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("ghistpy")

SAMPLE, PATH, PATIENT = "sample", "path", "patient"


class CohortResults(dict):
    """Results by sample, in the order of the cohort; ``failures`` has the traceback of each sample that failed.

    ``n_cached`` of the results were found on disk.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failures: dict[str, str] = {}
        self.n_cached = 0


class Cohort:
    """Slides of patients, opened one at a time.

    Parameters
    ----------
    manifest
        One row per sample: ``sample`` (unique), ``path`` (a SpatialData store ``.zarr``, a table ``.h5ad``,
        or a slide file as :func:`ghistpy.io.read_slide` takes them), ``patient`` (default: the sample), and
        clinical columns. A column ``mpp`` is handed to ``read_slide``. Relative paths start at ``root``.
    slides
        Sample -> SpatialData or AnnData in memory, instead of paths.
    root
        Folder of relative paths; default: the working directory.
    cache_dir
        Folder that results of :meth:`map` are kept in; None = they are not.

    Attributes
    ----------
    samples : list of str
    obs : pandas.DataFrame
        The manifest without paths, index = sample.
    failures : dict
        Sample -> traceback of the latest :meth:`map`.

    Raises
    ------
    ValueError
        Missing columns, repeated or empty samples, paths that do not exist (all of them named).

    Examples
    --------
    >>> import ghistpy as gp
    >>> slides = {f"S{i}": gp.datasets.simulate_slide(n_cells=50, n_genes=10, seed=i) for i in range(3)}
    >>> cohort = gp.Cohort(slides=slides)
    >>> results = cohort.map(lambda sdata: sdata["measured"].n_obs, progress=False)
    >>> dict(results)
    {'S0': 50, 'S1': 50, 'S2': 50}
    """

    def __init__(
        self,
        manifest: pd.DataFrame | None = None,
        *,
        slides: Mapping[str, SpatialData | AnnData] | None = None,
        root: str | Path | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        import pandas as pd

        if manifest is None:
            if not slides:
                raise ValueError("slides: a cohort needs a manifest or a mapping sample -> slide, got neither")
            manifest = pd.DataFrame({SAMPLE: list(slides)})
        frame = _checked(manifest, need_path=slides is None)
        self.samples: list[str] = frame.index.tolist()
        self._slides = slides  # as it is: a mapping may make its slides when they are asked for
        self._keys = {str(k): k for k in slides or ()}
        self._paths: dict[str, Path] = {}
        if self._slides is None:
            root = Path(root) if root is not None else Path.cwd()
            self._paths = {s: root / Path(str(p)).expanduser() for s, p in frame[PATH].items()}
            missing = [f"{s} ({p})" for s, p in self._paths.items() if not p.exists()]
            if missing:
                more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
                raise ValueError(f"manifest: {len(missing)} paths do not exist: {', '.join(missing[:5])}{more}")
        else:
            absent = sorted(set(self.samples) - set(self._keys))
            if absent:
                raise ValueError(f"slides: samples {absent[:5]} of the manifest are not among {list(self._keys)[:5]}")
            unlisted = [s for s in self._keys if s not in frame.index]
            if unlisted:
                logger.warning("Cohort: %d slides are not in the manifest: %s", len(unlisted), unlisted[:5])
        self.obs = frame.drop(columns=PATH, errors="ignore")
        self.cache_dir = Path(cache_dir) if cache_dir is not None else None
        self.failures: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def __repr__(self) -> str:
        return f"Cohort of {len(self)} samples of {self.obs[PATIENT].nunique()} patients"

    def __iter__(self) -> Iterator[SpatialData | AnnData]:
        """Slides in the order of the manifest, each opened when its turn comes."""
        return (self[sample] for sample in self.samples)

    def __getitem__(self, sample: str) -> SpatialData | AnnData:
        """Open one slide."""
        if sample not in self.obs.index:
            raise KeyError(f"sample {sample!r} is not in this cohort (there are {self.samples[:5]} …)")
        return _open(self._source(sample))

    def items(self) -> Iterator[tuple[str, SpatialData | AnnData]]:
        """Pairs of sample and slide, opened one at a time."""
        return ((sample, self[sample]) for sample in self.samples)

    def subset(self, samples: Any) -> Cohort:
        """The cohort of some samples, or of those where a boolean column is true.

        Raises
        ------
        ValueError
            Names that are not in the cohort.
        """
        import pandas as pd

        named = [samples] if isinstance(samples, str) else list(samples)
        if not pd.api.types.is_bool_dtype(pd.Series(named)):
            samples = named
            unknown = [s for s in named if s not in self.obs.index]
            if unknown:
                raise ValueError(
                    f"samples: {unknown[:5]} are not in this cohort; its {len(self)} samples are {self.samples[:5]}"
                    f"{' …' if len(self) > 5 else ''}. Columns are chosen by a condition: cohort.obs['stage'] == 'II'"
                )
        keep = self.obs.loc[samples].index
        out = object.__new__(Cohort)
        out.__dict__.update(self.__dict__)
        out.samples, out.obs, out.failures = keep.tolist(), self.obs.loc[keep], {}
        return out

    def _source(self, sample: str) -> Any:
        """What a worker needs to open the slide: the slide itself, or its path and µm/px."""
        if self._slides is not None:
            return self._slides[self._keys[sample]]
        return self._paths[sample], self._mpp(sample)

    def _mpp(self, sample: str) -> float | None:
        mpp = self.obs["mpp"].get(sample) if "mpp" in self.obs else None
        return None if mpp is None or mpp != mpp else float(mpp)

    def map(
        self,
        function: Callable[..., Any],
        *,
        params: Mapping[str, Any] | None = None,
        client: Any = None,
        progress: bool = True,
        name: str | None = None,
        on_error: str = "collect",
    ) -> CohortResults:
        """Call a function on every slide.

        Parameters
        ----------
        function
            Takes a slide and the keywords in ``params``. What it changes in the slide is lost unless it
            saves it (``tl.predict_expression`` on a store does); what it returns is the result.
        params
            Keywords; part of the name under which results are kept.
        client
            A ``dask.distributed.Client``: one task per slide. Slides are opened by the workers, which
            have to see the paths.
        progress
            Show a bar.
        name
            Shown in the bar and in the cache. Default: the name of the function.
        on_error
            ``"collect"``: a sample that fails is left out of the results; which and why is logged at the
            end and kept in ``failures``. ``"raise"``: the same, then an error, when all others are done.

        Returns
        -------
        CohortResults
            Sample -> result, with ``failures`` and ``n_cached``.

        Raises
        ------
        RuntimeError
            Every sample failed, or any did with ``on_error="raise"``.

        Notes
        -----
        With a cache folder the result of each sample is written there as soon as it is there, when it is made of
        None, numbers, text, lists, tuples, dicts, arrays, frames and AnnData: a second call, or one after an
        interruption, computes what is missing. A result is found again while the function
        and its code, ``params``, the version of ghistpy, the path and µm/px of the slide, and sizes and times
        of its file (of all files of a store) are the same; a function that writes into its slide is not run
        again until something else does. Functions and variables outside that it uses are not looked at: hand
        over in ``params`` what may change. Failures are not kept, and a result that cannot be written is
        returned with a warning. Several processes may share the folder; its files are HDF5, hold nothing that
        could run, and are as readable as your umask makes them. Slides in memory have no time of change, so
        nothing is kept of them.
        """
        if on_error not in ("collect", "raise"):
            raise ValueError(f"on_error={on_error!r}: expected 'collect' or 'raise'")
        params = dict(params or {})
        name = name or getattr(function, "__name__", None) or type(function).__name__
        computation = self._computation(function, params, name)
        found = {} if computation is None else self._cached(computation)
        todo = [s for s in self.samples if s not in found]
        failures: dict[str, str] = {}
        n_cached = len(found)
        for sample, result, error in _bar(self._run(todo, function, params, client), len(todo), name, progress):
            if error is not None:
                failures[sample] = error
                continue
            found[sample] = result
            if computation is not None:
                # its time is that after the call: a function that writes into its slide is done, too
                path = self._cache_file(computation, sample)
                if path is not None:
                    Cache(self.cache_dir).store(path, result)
        return self._report(found, failures, n_cached, name, on_error)

    def _computation(self, function: Callable, params: dict, name: str) -> str | None:
        """Name of the folder that results are kept in, None when they are not."""
        if self.cache_dir is None or self._slides is not None:
            return None
        return key_of(function, params, "".join(c if c.isalnum() else "_" for c in name))

    def _cache_file(self, computation: str, sample: str) -> Path | None:
        """None for a slide that is gone; opening it fails then, and is collected."""
        stamped = stamp(self._paths[sample])
        return None if stamped is None else Cache(self.cache_dir).path(computation, sample, stamped, self._mpp(sample))

    def _cached(self, computation: str) -> dict[str, Any]:
        cache = Cache(self.cache_dir)
        cache.sweep(computation)
        files = {s: self._cache_file(computation, s) for s in self.samples}
        loaded = {s: cache.load(file) for s, file in files.items() if file is not None}
        return {s: value for s, (there, value) in loaded.items() if there}

    def _run(self, samples: list[str], function: Callable, params: dict, client: Any) -> Iterator[tuple]:
        if client is None:
            for sample in samples:
                yield sample, *_call(self._source(sample), function, params)
            return
        from distributed import as_completed

        futures = {client.submit(_call, self._source(s), function, params, pure=False, retries=0): s for s in samples}
        for future in as_completed(list(futures)):
            sample = futures.pop(future)
            if future.status == "finished":
                yield sample, *future.result()
            else:  # the worker itself died
                yield sample, None, f"{future.status}: {future.exception()}"
            future.release()

    def _report(self, found: dict, failures: dict, n_cached: int, name: str, on_error: str) -> CohortResults:
        out = CohortResults()
        out.update({s: found[s] for s in self.samples if s in found})
        out.failures = self.failures = {s: failures[s] for s in self.samples if s in failures}
        out.n_cached = n_cached
        if failures:
            lines = "\n".join(f"  {s}: {text.strip().splitlines()[-1]}" for s, text in out.failures.items())
            message = f"{name}: {len(failures)} of {len(self)} samples failed:\n{lines}"
            if on_error == "raise" or not out:
                raise RuntimeError(message + "\n(whole tracebacks: cohort.failures)")
            logger.warning(message)
        return out


def read_cohort(manifest: str | Path | pd.DataFrame, *, cache_dir: str | Path | None = None) -> Cohort:
    """Read a cohort from its manifest.

    Parameters
    ----------
    manifest
        CSV file (or frame) with the columns ``sample``, ``path`` and, by choice, ``patient``, ``mpp`` and
        clinical ones; see :class:`ghistpy.Cohort`. Paths in a file are relative to the file.
    cache_dir
        Where results of :meth:`ghistpy.Cohort.map` are kept. Default: the folder
        ``<manifest>.ghistpy_cache`` beside the file; for a frame none.

    Returns
    -------
    Cohort

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        See :class:`ghistpy.Cohort`.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import pandas as pd
    >>> import ghistpy as gp
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> gp.datasets.simulate_slide(n_cells=50, n_genes=10)["measured"].write_h5ad(folder / "S1.h5ad")
    >>> pd.DataFrame({"sample": ["S1"], "path": ["S1.h5ad"], "age": [61]}).to_csv(folder / "all.csv", index=False)
    >>> gp.io.read_cohort(folder / "all.csv")
    Cohort of 1 samples of 1 patients
    """
    import pandas as pd

    if isinstance(manifest, pd.DataFrame):
        return Cohort(manifest, cache_dir=cache_dir)
    path = Path(manifest)
    if not path.is_file():
        raise FileNotFoundError(f"manifest={str(manifest)!r}: there is no such file")
    # names stay text: a patient 0012 is not 12
    frame = pd.read_csv(path, dtype={SAMPLE: str, PATH: str, PATIENT: str})
    folder = path.with_name(path.name + ".ghistpy_cache") if cache_dir is None else cache_dir
    return Cohort(frame, root=path.parent.resolve(), cache_dir=folder)


def _checked(manifest: pd.DataFrame, *, need_path: bool) -> pd.DataFrame:
    frame = manifest.reset_index() if manifest.index.name == SAMPLE and SAMPLE not in manifest else manifest.copy()
    needed = [SAMPLE, PATH] if need_path else [SAMPLE]
    missing = [c for c in needed if c not in frame]
    if missing:
        raise ValueError(f"manifest: columns {missing} are missing; there are {list(frame.columns)}")
    if not len(frame):
        raise ValueError("manifest: it has no row, so there is no sample")
    for column in [c for c in (*needed, PATIENT) if c in frame]:
        empty = frame[column].isna() | (frame[column].astype(str).str.strip() == "")
        if empty.any():
            raise ValueError(f"manifest: {column!r} is empty in rows {frame.index[empty][:5].tolist()}")
    frame[SAMPLE] = frame[SAMPLE].astype(str)
    repeated = frame[SAMPLE][frame[SAMPLE].duplicated()].unique()
    if len(repeated):
        raise ValueError(f"manifest: samples {repeated[:5].tolist()} occur more than once")
    frame[PATIENT] = frame[PATIENT].astype(str) if PATIENT in frame else frame[SAMPLE]
    return frame.set_index(SAMPLE)


def _open(source: Any) -> SpatialData | AnnData:
    """The slide of a path, or the slide that came in."""
    if not isinstance(source, tuple):
        return source
    path, mpp = source
    if path.suffix == ".h5ad":
        import anndata

        return anndata.read_h5ad(path)
    if path.suffix == ".zarr" and path.is_dir():
        import spatialdata

        return spatialdata.read_zarr(path)
    from ghistpy.io.slide import read_slide

    return read_slide(path, mpp=mpp)


def _call(source: Any, function: Callable, params: Mapping[str, Any]) -> tuple[Any, str | None]:
    """Result and traceback, one of them None, so that one broken slide stops no other."""
    try:
        return function(_open(source), **params), None
    except Exception:  # noqa: BLE001 whatever a slide or a user's function raises is collected
        return None, traceback.format_exc()


def _bar(iterable: Iterator, total: int, name: str, progress: bool) -> Any:
    if not progress or not total:
        return iterable
    from tqdm.auto import tqdm

    return tqdm(iterable, total=total, desc=name)
