"""The commonest reasons for which pairs can't be used, each with an example."""

from collections import Counter
from collections.abc import Iterable

from bksdm_jax.base.errors import in_one_line
from bksdm_jax.data.forms.pairs import Reject

_SHOWN = 3


def kind_of(reason: str) -> str:
    """A reason without the details of one image, so that similar ones are counted together."""
    return "".join("N" if letter.isdigit() else letter for letter in reason.split(":", maxsplit=1)[0])[:80]


def commonest(rejects: Iterable[Reject]) -> str:
    """The three commonest kinds of reasons in one line, each with their number and the first example."""
    counts: Counter[str] = Counter()
    examples: dict[str, Reject] = {}
    for reject in rejects:
        kind = kind_of(reject.reason)
        counts[kind] += 1
        examples.setdefault(kind, reject)
    shown = counts.most_common(_SHOWN)
    parts = [
        f"{count} like {in_one_line(examples[kind].name)}: {in_one_line(examples[kind].reason)}"
        for kind, count in shown
    ]
    rest = counts.total() - sum(count for _, count in shown)
    return "; ".join([*parts, *([f"{rest} for other reasons"] if rest else [])])
