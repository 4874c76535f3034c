"""The settings of `launch.report`."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """What the page shows.

    Attributes:
        scores: workdirs of `launch.score`, one per model, up to 16.
        labels: of the models, in the order of `scores`; empty: their names.
        images: columns of the image grid, up to 64; 0: none.
        published: show the paper's figures.
        curves: `.csv` or `.json` files of points: `curve,x_name,x,metric,value,low,high,published`.
        over: a setting of sampling, such as `guidance_scale` or `steps`: scores of models of one name become a curve
            over it.
    """

    scores: tuple[str, ...]
    labels: tuple[str, ...] = ()
    images: int = 16
    published: bool = True
    curves: tuple[str, ...] = ()
    over: str = ""
