"""Diffusers folders in and out: names, file formats, total loads."""
