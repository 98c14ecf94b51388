"""Data sets that lie in files."""
