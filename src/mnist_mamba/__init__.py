"""Small Mamba classifiers: trained in PyTorch, shipped as C."""

__version__ = "0.1.0"
