"""Trains the shapes teacher from scratch: autoencoder, CLIP, U-Net."""
