"""What planning needs to know of a fine-tuning."""

from bksdm_jax.base.precision import compute_dtype
from bksdm_jax.models.attend import require_attention
from bksdm_jax.models.norms import require_norms
from bksdm_jax.perf.planned import PlannedRun, empty_caption, name_of, networks_of
from bksdm_jax.pruning.removal import plan_removal, removed_blocks
from bksdm_jax.sampling.text_to_image import require_resolution
from bksdm_jax.tasks.finetune.config import FinetuneConfig, require_finetune_plan
from bksdm_jax.tasks.finetune.task import make_problem, objective_of, unet_passes
from bksdm_jax.tasks.finetune.trained import Trained, what_is_trained
from bksdm_jax.training.train_step import Objective

_PAIRS = "prior preservation: batch_size counts instance images, and each makes a pair with a class image"


def open_finetuning(config: FinetuneConfig) -> PlannedRun:
    """Checks the settings, and finds the model; raises `InputError` for a setting that can't be used."""
    require_finetune_plan(config)
    require_attention(config.attention, compute_dtype(config.dtype))
    require_norms(config.norms)
    networks = networks_of(config, config.model, config.plan.generation)
    if config.plan.student:
        plan = plan_removal(networks.denoiser, removed_blocks(config.plan.student))
        networks = networks.with_denoiser(plan.student)
    require_resolution(config.resolution, networks)
    return finetuning(config, what_is_trained(config, networks))


def finetuning(config: FinetuneConfig, trained: Trained) -> PlannedRun:
    """The necessary passes are the U-Net's, see `unet_passes`; the text encoder's aren't among them.

    With full recomputation the U-Net goes forward once more. A class image is counted with its instance image.
    """
    networks, in_pairs, twice = trained.networks, config.prior.weight > 0, config.remat == "full"
    empty = empty_caption(networks)

    def objective(sized: FinetuneConfig) -> Objective:
        return objective_of(sized, make_problem(sized, trained, empty), sized.cache_latents)

    some = config.adapter.rank or config.only
    passes = f"U-Net {'twice ' if twice else ''}forward and backward{' without gradients of weights' if some else ''}"
    return PlannedRun(
        config,
        networks,
        objective,
        name=name_of(config.model, config.plan.generation, config.plan.student),
        cached=config.cache_latents,
        trained="adapters" if trained.scales else "trained weights",
        frozen={"frozen networks": tuple(networks.kind.networks)},
        passes=passes,
        forwards=((networks.denoiser, (unet_passes(config) + twice) * (2 if in_pairs else 1)),),
        notes=(trained.summary(), *([_PAIRS] if in_pairs else [])),
        unit="pair" if in_pairs else "image",
        memory="MiB",  # adapters take a few
        period="minutes",
    )
