"""The command `sigmoid-l2`."""
