"""Tests of the host side and of the CPU kernels."""
