"""Images as three splits: train, search-validation, test."""

from apq_optuna.data.images import AUGMENTATIONS, ImageData, Images, Split, usual_augment
from apq_optuna.data.loading import load_data

__all__ = ["AUGMENTATIONS", "ImageData", "Images", "Split", "load_data", "usual_augment"]
