"""How a user names a model."""

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """A model, and what its files don't say.

    Attributes:
        name: pipeline folder, single file, id on the hub, or `shapes_teacher`.
        revision: branch, tag or commit of a model on the hub; empty: its default branch.
        variant: of the weights in a folder, `fp16`, `non_ema`, ...; empty: the plain ones.
        tokenizer: of a single file: folder or id on the hub; empty: CLIP's, from the hub.
        prediction_type: of a single file: `epsilon` or `v_prediction`; SD 2.x needs it.
    """

    name: str
    revision: str = ""
    variant: str = ""
    tokenizer: str = ""
    prediction_type: str = ""


def whatever_it_predicts(source: ModelSource) -> ModelSource:
    """The same for those who don't care what a single file of SD 2.x predicts, which it doesn't say."""
    is_file = Path(source.name).expanduser().is_file()
    return dataclasses.replace(source, prediction_type="epsilon") if is_file else source


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The settings of every command that reads a model, as `ModelSource` has them; `prediction` is its type."""

    revision: str = ""
    variant: str = ""
    tokenizer: str = ""
    prediction: str = ""

    def source(self, name: str) -> ModelSource:
        """The model called `name` with these options."""
        return ModelSource(name, self.revision, self.variant, self.tokenizer, self.prediction)
