"""What does regularizing activations buy? Published methods, one folder each, under one protocol."""

__version__ = "0.1.0"
