"""Functional forms of the layers."""

from fused_dropout.functional.dropconnect import dropconnect_linear

__all__ = ["dropconnect_linear"]
