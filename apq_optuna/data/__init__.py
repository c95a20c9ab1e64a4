"""Images as three splits: train, search-validation, test."""

from apq_optuna.data.images import ImageData, Images, Split
from apq_optuna.data.loading import load_data

__all__ = ["ImageData", "Images", "Split", "load_data"]
