"""Vanilla: no regularization of activations, the arm that every other one is compared with."""

from __future__ import annotations

import reproduce.method


class Method(reproduce.method.Method):
    """Changes nothing and adds nothing: training with the recipe alone."""
