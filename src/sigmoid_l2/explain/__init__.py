"""What explains a gradient to people: every intermediate by name, and what is wrong with one written by hand."""
