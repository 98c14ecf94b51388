"""Task graphs, the result of every method: operations, norm rules, cost."""
