"""The network of a row, for others."""
