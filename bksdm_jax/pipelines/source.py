"""A model as the user names it."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """A model's name and options.

    Attributes:
        name: pipeline folder, single file, hub id, or `shapes_teacher`.
        revision: branch, tag or commit of a hub model; empty: its default branch.
        variant: of a folder's weights, such as `fp16` or `non_ema`; empty: the default weights.
        tokenizer: for a single file: folder or hub id; empty: CLIP's, from the hub.
        prediction_type: for a single file: `epsilon` or `v_prediction`; required for SD 2.x files that don't say.
        any_prediction: the caller doesn't need the prediction type, so a missing one is no error.
        allow_non_finite: weights that hold NaN or infinities are used, with a warning, instead of being refused.
    """

    name: str
    revision: str = ""
    variant: str = ""
    tokenizer: str = ""
    prediction_type: str = ""
    any_prediction: bool = False
    allow_non_finite: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How all of a command's models are read.

    Attributes:
        allow_non_finite: weights that hold NaN or infinities are used, with a warning, instead of being refused.
    """

    allow_non_finite: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions(ReadOptions):
    """`ModelSource` as settings of a command.

    Attributes:
        revision: branch, tag or commit of a hub model; empty: its default branch.
        variant: of a folder's weights, such as `fp16` or `non_ema`; empty: the default weights.
        tokenizer: for a single file: folder or hub id; empty: CLIP's, from the hub.
        prediction: for a single file: `epsilon` or `v_prediction`; required for SD 2.x files that don't say.
    """

    revision: str = ""
    variant: str = ""
    tokenizer: str = ""
    prediction: str = ""

    def source(self, name: str) -> ModelSource:
        """The model `name` with these options."""
        return ModelSource(
            name,
            self.revision,
            self.variant,
            self.tokenizer,
            self.prediction,
            allow_non_finite=self.allow_non_finite,
        )
