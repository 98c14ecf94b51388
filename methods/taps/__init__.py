"""TAPS: one frozen backbone of which every task replaces the layers that it needs to (Wallingford et al. 2022)."""

from methods.taps.method import Taps

__all__ = ["Taps"]
