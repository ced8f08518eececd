"""What a method is made of: the interface, the Sites it reads, what several methods draw alike, and `attach`."""

from reproduce.method.interface import Method, NonNegative, Positive, PositiveCount
from reproduce.method.projections import directions_for, sample_directions
from reproduce.method.sites import Features, Record, Role, Site, Trace, sites_of

__all__ = [
    "Features",
    "Method",
    "NonNegative",
    "Positive",
    "PositiveCount",
    "Record",
    "Role",
    "Site",
    "Trace",
    "directions_for",
    "sample_directions",
    "sites_of",
]
