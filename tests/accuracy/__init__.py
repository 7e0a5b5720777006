"""The accuracy suite: how far every backend, JAX, torch and the textbook formula are from the truth, over all of q.

``python -m accuracy`` (with tests/ on PYTHONPATH) measures everything and writes docs/accuracy.md with its picture;
test_accuracy.py holds the backends to the contract on a part of the same values.

All pairs are 1x1 with x = 1: then q = W exactly, dW = g, dx = g W, and nothing but the library's own arithmetic errs.
"""
