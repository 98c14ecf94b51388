"""Numbers to text and pictures."""
