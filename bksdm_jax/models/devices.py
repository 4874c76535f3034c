"""What the device can do."""

import jax


def has_ampere() -> bool:
    """Whether the device is an NVIDIA GPU of the Ampere generation or later."""
    device = jax.devices()[0]
    on_nvidia = device.platform == "gpu" and "cuda" in device.client.platform_version.lower()
    return on_nvidia and float(device.compute_capability) >= 8.0
