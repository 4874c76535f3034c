"""The architectures and prediction types of Stable Diffusion 1.x and 2.x."""

from bksdm_jax.diffusion.schedule import ScheduleConfig
from bksdm_jax.formats.unet_json import unet_from_diffusers
from bksdm_jax.models.clip import CLIPTextConfig
from bksdm_jax.models.vae import VAEConfig
from bksdm_jax.pipelines.generations import TEACHERS
from bksdm_jax.pipelines.pipeline import Architectures

# SD 2.x omits OpenCLIP's last layer.
TEXT_ENCODERS = {
    "v1": CLIPTextConfig(),
    "v2": CLIPTextConfig(width=1024, mlp_width=4096, layers=23, heads=16, activation="gelu"),
}


def stable_diffusion(generation: str) -> Architectures:
    """Stable Diffusion itself; `generation` is a key of `TEACHERS`."""
    unet, text = unet_from_diffusers(TEACHERS[generation]), TEXT_ENCODERS[generation]
    return Architectures({"unet": unet, "vae": VAEConfig(), "text_encoder": text}, ScheduleConfig())
