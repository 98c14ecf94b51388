"""What is kept on disk: keys, records, networks, measurements. Imports no sibling but `benchmark.version`."""
