"""Engines hand Runs to the one loop: here and now (`local`), or over machines."""
