"""What can be trained, and so planned."""

from bksdm_jax.tasks.distill.config import DistillConfig
from bksdm_jax.tasks.finetune.config import FinetuneConfig

TASKS = {"distill": DistillConfig, "finetune": FinetuneConfig}
"""The key `task` of a config file -> its settings."""
