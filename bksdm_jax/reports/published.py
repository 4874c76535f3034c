"""The paper's figures as rows of a table and as curves."""

import dataclasses

from bksdm_jax.pruning.presets import (
    CHOSEN,
    PRESETS,
    PUBLISHED,
    SUBJECTS,
    UNTRAINED,
    UPDATES,
    Scores,
    SubjectScores,
)
from bksdm_jax.reports.curves import Point

PAPER = "arXiv 2305.15798"
METRICS = ("fid_pytorch_fid", "inception_score", "clip_score")
"""Names in `scores.json` of the three scores that the paper reports, as it takes them."""
IMAGES = 30_000
PROTOCOL = "bk_sdm"

_TEACHERS = {"v1": "SD v1.4", "v2_base": "SD v2.1-base"}
_STUDENTS = {"bk_base": "Base", "bk_small": "Small", "bk_tiny": "Tiny", "no_mid": "no mid block"}
_TRAININGS = {
    "no_kd": "without KD",
    "no_feature": "output KD only",
    "random_init": "random init",
    "pairs_2.3m": "2.3M pairs",
}
_OWN_PAIRS, _MORE_PAIRS = 212_776, 2_256_472
_OWN_RATE = 5e-5
_VARIED = {"learning_rate": "lr_", "pairs": "pairs_", "batch_size": "batch_"}


@dataclasses.dataclass(frozen=True)
class Published:
    """A published row.

    Attributes:
        family: the teacher's name, with what was unusual in training.
        student: short name within the family; empty: the teacher.
        parameters, macs: of the U-Net; None where neither published nor counted.
        scores: in the order of `METRICS`, None where not reported.
        usual: whether it is one of the paper's models rather than of its ablations.
    """

    family: str
    student: str
    parameters: int | None
    macs: int | None
    scores: tuple[float | None, ...]
    usual: bool

    @property
    def label(self) -> str:
        """Name in tables."""
        return f"{self.family}: {self.student}" if self.student else self.family


def published_rows() -> list[Published]:
    """All of the paper's figures on COCO-30K, its models before its ablations."""
    rows = [_row(*name.split(","), scores, "not retrained") for name, scores in UNTRAINED.items()]
    for variants, scores in PUBLISHED.items():
        generation, student, *training = variants.split(",")
        rows.append(_row(generation, student, scores, ", ".join(map(_training, training))))
    for one in CHOSEN:
        scores = (one.fid, one.inception_score, one.clip_score)
        family = f"SD v1.4, blocks by {one.criterion}, {one.trained}"
        rows.append(Published(family, "", one.parameters, one.macs, scores, False))
    return sorted(rows, key=lambda row: not row.usual)  # a stable order


def published_subjects() -> dict[str, SubjectScores]:
    """The paper's scores of personalised generation, by the model's name in tables."""
    found = {}
    for name, scores in SUBJECTS.items():
        generation, student = name.split(",")
        short = _STUDENTS.get(student)
        found[f"{_TEACHERS[generation]}: {short}" if short else _TEACHERS[generation]] = scores
    return found


def _row(generation: str, student: str, scores: Scores, training: str) -> Published:
    preset, teacher = PRESETS[student], _TEACHERS[generation]
    size = "v1" if generation == "v1" else "v2"
    is_teacher = not preset.removed
    family = teacher if is_teacher or not training else f"{teacher}, {training}"
    usual = is_teacher or training in ("", _TRAININGS["pairs_2.3m"])
    name = "" if is_teacher else _STUDENTS[student]
    return Published(family, name, preset.parameters[size], preset.macs.get(size), tuple(scores), usual)


def _training(variant: str) -> str:
    kind, _, value = variant.partition("_")
    named = {"batch": f"batch size {value}", "lr": f"learning rate {value}"}
    return _TRAININGS.get(variant) or named[kind]


def published_points() -> list[Point]:
    """The paper's curves over learning rate (Table 13), pairs (Fig. 11) and batch size (Tables 7, 12)."""
    points = []
    for variants, scores in PUBLISHED.items():
        generation, student, *training = variants.split(",")
        label = f"{_TEACHERS[generation]}: {_STUDENTS[student]}"
        for x_name, x in _places(generation, training).items():
            over = [name for name in PUBLISHED if name.startswith(f"{generation},{student},{_VARIED[x_name]}")]
            found = zip(METRICS, scores, strict=True)
            points += [
                Point(label, x_name, x, name, value, None, None, True) for name, value in found if over and value
            ]
    return points


def _places(generation: str, training: list[str]) -> dict[str, float]:
    """Where a run stands on each axis that the paper varied; nowhere if it is of another ablation."""
    own = {"learning_rate": _OWN_RATE, "pairs": _OWN_PAIRS, "batch_size": 256 if generation == "v1" else 128}
    if not training:
        return own
    kind, _, value = training[0].partition("_")
    if kind == "lr":
        return {"learning_rate": float(value)}
    if kind == "batch":
        return {"batch_size": float(value)}
    return {"pairs": _MORE_PAIRS} if training == ["pairs_2.3m"] else {}


def fairness() -> str:
    """When a measured figure may stand beside a published one."""
    return (
        f"A measured figure may stand beside a published one if it was taken in the same way: images by protocol "
        f"{PROTOCOL} from {IMAGES:,} captions of COCO val2014, fid_pytorch_fid against the 40,504 real images with the "
        "same resize, inception_score as torch-fidelity takes it, clip_score by OpenCLIP's ViT-g/14 "
        "(laion2b_s34b_b88k). Differences of FID below 0.2 mean nothing: Small sampled by the authors in four batch "
        f"sizes has 16.97 to 17.16. Published students had {UPDATES:,} updates."
    )
