"""Every method timed against vanilla: ratios within one run; and a machine looked at before it trains."""
