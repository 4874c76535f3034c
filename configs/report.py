"""Scores of several models beside each other and beside the paper's; takes seconds on a CPU.

  python -m launch.report --config=configs/report.py --config.scores="('runs/a_scores','runs/b_scores')" --workdir=DIR

More of it:

  --config.labels="('teacher','student')"    names in tables and figures
  --config.published=False                   without the paper's figures
  --config.over=guidance_scale               curves over a setting of sampling, one per model
  --config.curves="('points.csv',)"          more curves, from curve,x_name,x,metric,value,low,high,published

All settings: `python -m launch.report --help`.
"""

from ml_collections import config_dict

from bksdm_jax.reports.config import ReportConfig
from launch.defaults import defaults


def get_config() -> config_dict.ConfigDict:
    """The defaults of `launch.report`."""
    return defaults(ReportConfig)
