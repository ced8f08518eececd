"""A page computed from Results and Claims and from nothing else. No torch in here."""
