"""Pages from templates: one file each, with nothing to fetch."""

import base64
import hashlib
from pathlib import Path
from typing import Any

import jinja2

from bksdm_jax.base.files import atomic_file
from bksdm_jax.reports.score_tables import formatted

_SCRIPT = "enlarge.js.j2"


def write_template(path: Path, template: str, **values: Any) -> Path:
    """Writes a page and returns its path.

    Templates also get `script`, which enlarges images, and `script_sha256`, for the page's policy; the filter
    `formatted` prints a score with its metric's digits.

    Raises `InputError` if the page can't be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bksdm_jax.reports", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {
        "formatted": lambda value, metric: formatted(metric, value),
        "count": lambda number: f"{number / 1e6:,.2f} M",
    }
    script = environment.get_template(_SCRIPT).render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template(template).render(script=script, script_sha256=digest, **values)
    with atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="")
    return path
