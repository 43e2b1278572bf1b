"""Families of functions to optimize, and the data sets behind them."""

from l2ljax.tasks._augment import augment
from l2ljax.tasks._catalogue import CATALOGUE, Entry, Family, load
from l2ljax.tasks._cifar10 import cifar10
from l2ljax.tasks._classifiers import convnet_classifier, mlp_classifier
from l2ljax.tasks._dataset import Dataset, Split
from l2ljax.tasks._digits import digits
from l2ljax.tasks._dixon_szego import DIXON_SZEGO, BoxFunction, dixon_szego
from l2ljax.tasks._features import FeatureMaps, random_features, vgg_features
from l2ljax.tasks._gp_samples import gp_samples
from l2ljax.tasks._images import crops, image, sample_images
from l2ljax.tasks._metaparameters import (
    learned_data,
    learned_init,
    learned_init_scale,
    learned_l2,
)
from l2ljax.tasks._mnist import mnist
from l2ljax.tasks._neural_art import neural_art, sample_art, sample_pictures
from l2ljax.tasks._quadratic import quadratic
from l2ljax.tasks._supervised import cross_entropy, squared_error, supervised
from l2ljax.tasks._warm_start import warm_start

__all__ = [
    "CATALOGUE",
    "DIXON_SZEGO",
    "BoxFunction",
    "Dataset",
    "Entry",
    "Family",
    "FeatureMaps",
    "Split",
    "augment",
    "cifar10",
    "convnet_classifier",
    "crops",
    "cross_entropy",
    "digits",
    "dixon_szego",
    "gp_samples",
    "image",
    "learned_data",
    "learned_init",
    "learned_init_scale",
    "learned_l2",
    "load",
    "mlp_classifier",
    "mnist",
    "neural_art",
    "quadratic",
    "random_features",
    "sample_art",
    "sample_images",
    "sample_pictures",
    "squared_error",
    "supervised",
    "vgg_features",
    "warm_start",
]
