"""The version of ShareBench: read by records, pages and the build."""

__version__ = "0.1.0"
