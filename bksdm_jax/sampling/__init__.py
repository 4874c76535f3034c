"""Text to image, and a folder of images."""
