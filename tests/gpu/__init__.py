"""The GPU code proven without a GPU: its PTX executed, its machine code read, its host code on a driver of ours."""
