"""Vanilla: no regularization of activations, the arm that every other one is compared with."""

from __future__ import annotations

from reproduce.method import Method


class Vanilla(Method):
    """Changes nothing and adds nothing: training with the recipe alone."""
