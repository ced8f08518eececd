"""Sealed Results, their matching to experiments, statistics and verdicts. No torch in here."""
