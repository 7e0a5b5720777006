"""Attacks: hostile files, memory limits, kills, signals, mutants, old versions; docs/reliability.md describes them."""
