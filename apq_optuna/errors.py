"""The errors this package raises on bad input; every one of them is an `ApqError`.

Each message names the argument, the value it had, and what is allowed. Errors that Python users
would expect to be a `ValueError` are one as well, so `except ValueError` keeps working. What is
done all the same, but should be known, is a warning.
"""


class ApqError(Exception):
    """Base of every error raised on purpose by apq_optuna."""


class InvalidArgumentError(ApqError, ValueError):
    """An argument has a value that is not allowed."""


class DataError(ApqError, ValueError):
    """Images that cannot be used as a data set."""


class DataWarning(UserWarning):
    """Images were taken otherwise than their folder may have meant, or not all of them."""


class SpaceError(ApqError, ValueError):
    """A search space, a genotype or a set of parameters that do not fit together."""


class CheckpointError(ApqError, ValueError):
    """A checkpoint that is damaged, unsafe, or of another search space."""


class CostTableError(ApqError, ValueError):
    """A cost table, or an entry of one, that cannot be used."""


class MissingCostError(CostTableError, LookupError):
    """A layer at given bit-widths that a device or a table has no cost for."""


class UnsupportedLayerError(ApqError, ValueError):
    """An operator that computes but cannot be expressed as a layer with a cost."""


class PairError(ApqError, ValueError):
    """Accuracy pairs that belong to another supernet, space or data split."""


class StudyMismatchError(ApqError, ValueError):
    """A study whose directions, metrics or parameters disagree with sampler or objective."""


class InfeasibleBudgetError(ApqError, ValueError):
    """A budget that no configuration of the search space meets."""


class StorageError(ApqError):
    """The study's storage cannot be reached."""


class ExportError(ApqError):
    """A network that cannot be written for a runtime, or a file that does not compute the same."""
