"""CUDA arrays and the libraries that run GPU code."""
