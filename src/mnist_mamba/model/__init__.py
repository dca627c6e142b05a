"""The Mamba-1 classifier (Gu & Dao 2023, arXiv 2312.00752)."""

from mnist_mamba.config import ConfigError, ModelConfig
from mnist_mamba.model.classifier import Block, ConvStem, MambaClassifier
from mnist_mamba.model.ensemble import Classifier, MambaEnsemble, build_classifier
from mnist_mamba.model.mixer import MambaMixer

__all__ = [
    "Block",
    "Classifier",
    "ConfigError",
    "ConvStem",
    "MambaClassifier",
    "MambaEnsemble",
    "MambaMixer",
    "ModelConfig",
    "build_classifier",
]
