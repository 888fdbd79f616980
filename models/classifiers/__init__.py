"""Classifiers: small ones from papers on pruning and quantisation, those of libraries, and their files."""

from models.classifiers.densenet import DenseLayer, DenseNetCifar
from models.classifiers.load import LoadedClassifier, load_classifier
from models.classifiers.plain import LeNet5, VanillaCnn
from models.classifiers.registry import CLASSIFIERS, build_classifier, empty_classifier
from models.classifiers.resnet import PreResNetCifar, ResNetCifar
from models.classifiers.spec import ClassifierSpec
from models.classifiers.start import StartReport, start_weights_
from models.classifiers.vgg import VggCifar

__all__ = [
    "CLASSIFIERS",
    "ClassifierSpec",
    "DenseLayer",
    "DenseNetCifar",
    "LeNet5",
    "LoadedClassifier",
    "PreResNetCifar",
    "ResNetCifar",
    "StartReport",
    "VanillaCnn",
    "VggCifar",
    "build_classifier",
    "empty_classifier",
    "load_classifier",
    "start_weights_",
]
