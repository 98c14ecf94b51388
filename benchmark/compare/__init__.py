"""Beside something else: runs, baselines, published boards."""
