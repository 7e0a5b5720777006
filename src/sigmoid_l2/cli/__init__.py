"""The command line ``sigmoid-l2`` and the files that it reads and writes."""
