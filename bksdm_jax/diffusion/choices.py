"""The samplers' names and the options that these stand for; nothing here imports JAX."""

from typing import Any

_2M = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}
_SDE = _2M | {"algorithm_type": "sde-dpmsolver++"}
_KARRAS = {"sigma_spacing": "karras"}
SCHEDULER = "scheduler"
"""The sampler that the model's scheduler file names."""
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("ddpm", {}),
    "ddim": ("ddim", {}),
    "pndm": ("pndm", {}),
    "dpmpp_2m": ("dpmpp", _2M),
    "dpmpp_2m_karras": ("dpmpp", _2M | _KARRAS),
    "dpmpp_2m_sde": ("dpmpp", _SDE),
    "dpmpp_2m_sde_karras": ("dpmpp", _SDE | _KARRAS),
    "euler": ("euler", {}),
    "euler_karras": ("euler", _KARRAS),
    "euler_ancestral": ("euler_ancestral", {}),
    "heun": ("heun", {}),
    "heun_karras": ("heun", _KARRAS),
    "unipc": ("unipc", {}),
    "unipc_karras": ("unipc", _KARRAS),
    "lcm": ("lcm", {}),
}
"""Name -> kind of sampler, and the options that it sets whatever the model's scheduler file says."""
