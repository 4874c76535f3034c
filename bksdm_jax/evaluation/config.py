"""The settings of `launch.score`."""

import dataclasses

from bksdm_jax.metrics.config import MetricsConfig

MAY_CHANGE = ("scoring_batch_size", "cache", "images", "reference", "captions", "most_unreadable")
"""Keys that may differ when a run continues: what they name is recorded too, or they change scores by rounding only."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreConfig(MetricsConfig):
    """What to score; see `MetricsConfig` for metrics, reference and networks.

    Attributes:
        images: a folder of images, or the workdir of `launch.sample`, of which the images of its protocol are scored.
        captions: a table `file_name,text` (and `subject`); empty: `metadata.csv` in the folder or the one above.
        protocol: a key of `SCORING`: the scores say where they depart from it. Empty: that of `launch.sample`, if any.
        most_unreadable: so many images that can't be read are left out; more are an error.
    """

    images: str
    captions: str = ""
    protocol: str = ""
    most_unreadable: int = 0
