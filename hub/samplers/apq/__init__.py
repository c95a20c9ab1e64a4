"""`APQSampler` for OptunaHub: apq-optuna's where that is installed, else the one in `_apq`.

So a process has one class, also where it uses both. `SearchSpace` is what its argument `space` is.
"""

try:
    from apq_optuna import APQSampler, SearchSpace
except ModuleNotFoundError as missing:
    if missing.name != "apq_optuna":
        raise
    try:
        from ._apq.sampler.sampler import APQSampler
        from ._apq.space.space import SearchSpace  # noqa: F401
    except ModuleNotFoundError as inner:
        if not (inner.name or "").endswith("._apq"):
            raise
        raise ImportError(
            "this folder is the package's source, without the sampler: install apq-optuna, or "
            "run `python hub/build.py` and load the package from build/hub"
        ) from None

__all__ = ["APQSampler"]
