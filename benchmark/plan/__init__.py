"""From a suite's YAML to the cells that will run."""
