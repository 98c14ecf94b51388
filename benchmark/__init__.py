"""How it is judged: suites, the training loop, measures, records, tables and the commands."""

__version__ = "0.1.0"
