"""Experiments, dataset cards, method folders, and what identifies a Run. No torch in here."""
