"""How it is shared: backbones, task graphs and sharing methods. Imports `datasets`, never `benchmark`."""
