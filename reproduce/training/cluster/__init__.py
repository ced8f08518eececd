"""Runs on the machines of a Ray cluster, or on this one under Ray: the engine, and what happens on a node."""
