"""Every method timed against vanilla: ratios within one run."""
