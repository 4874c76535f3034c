"""What planning needs to know of a distillation."""

from bksdm_jax.base.precision import compute_dtype
from bksdm_jax.models.attend import require_attention
from bksdm_jax.models.norms import require_norms
from bksdm_jax.perf.planned import PlannedRun, empty_caption, name_of, networks_of
from bksdm_jax.pipelines.pipeline import Architectures
from bksdm_jax.pruning.block_scores import removed_from
from bksdm_jax.pruning.removal import RemovalPlan, plan_removal
from bksdm_jax.sampling.text_to_image import require_resolution
from bksdm_jax.tasks.distill.config import DistillConfig, require_generation, require_plan
from bksdm_jax.tasks.distill.features import weighted_pairs
from bksdm_jax.tasks.distill.task import make_problem, objective_of
from bksdm_jax.training.train_step import Objective


def open_distillation(config: DistillConfig) -> PlannedRun:
    """Checks the settings, and finds teacher and student; raises `InputError` for a setting that can't be used."""
    require_plan(config)
    require_attention(config.attention, compute_dtype(config.dtype))
    require_norms(config.norms)
    networks = networks_of(config, config.teacher, config.generation)
    if config.teacher:
        require_generation(config, networks)
    require_resolution(config.resolution, networks)
    plan = plan_removal(networks.denoiser, removed_from(networks.denoiser, config.student, config.block_scores))
    weighted_pairs(plan, config.loss.feature_source, config.loss.feature_scales)  # raises for unknown names
    return distillation(config, plan, networks)


def distillation(config: DistillConfig, plan: RemovalPlan, networks: Architectures) -> PlannedRun:
    """The necessary passes are the teacher's forward, and the student's forward and backward (twice the forward).

    With full recomputation the student goes forward once more.
    """
    empty, distils, twice = empty_caption(networks), config.loss.distils, config.remat == "full"

    def objective(sized: DistillConfig) -> Objective:
        return objective_of(sized, make_problem(sized, plan, networks, empty), sized.plan.cached)

    return PlannedRun(
        config,
        networks,
        objective,
        name=name_of(config.teacher, config.generation, config.student),
        cached=config.plan.cached,
        trained="student",
        frozen={"teacher": ("teacher",), "text encoder, VAE": networks.frozen},
        passes=f"{'teacher forward, ' if distils else ''}student {'twice ' if twice else ''}forward and backward",
        forwards=((plan.teacher, 1 if distils else 0), (plan.student, 4 if twice else 3)),
    )
