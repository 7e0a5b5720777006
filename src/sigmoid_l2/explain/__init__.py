"""Explains gradients to people: every intermediate by name, and what is wrong with a gradient written by hand."""
