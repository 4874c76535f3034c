"""Makes the shapes teacher from nothing: autoencoder, CLIP, U-Net."""
