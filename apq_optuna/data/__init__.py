"""Images as three splits: train, search-validation, test."""

from apq_optuna.data.images import AUGMENTATIONS, ImageData, Images, Split, usual_augment
from apq_optuna.data.loading import load_data
from apq_optuna.data.mixing import mixed_images, mixed_labels

__all__ = [
    "AUGMENTATIONS",
    "ImageData",
    "Images",
    "Split",
    "load_data",
    "mixed_images",
    "mixed_labels",
    "usual_augment",
]
