"""Task graphs: what every method ends in."""
