"""Federated adaptation of CLIP: pictures never leave their device."""

__version__ = "0.1.0"
