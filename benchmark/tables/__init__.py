"""From records to the numbers of tables."""
