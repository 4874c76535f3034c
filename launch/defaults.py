"""The defaults of a settings dataclass as a ConfigDict, for config files."""

import dataclasses
import typing
from typing import Any

from ml_collections import config_dict


def defaults(cls: type) -> config_dict.ConfigDict:
    """Every field of the dataclass `cls` with its default, nested dataclasses as nested ConfigDicts.

    A field without a default becomes the empty value of its type, so that `--config.KEY=VALUE` can set it; if it stays
    empty, `launch.values.to_dataclass` refuses it.
    """
    types = typing.get_type_hints(cls)
    fields = (field for field in dataclasses.fields(cls) if field.init)
    return config_dict.ConfigDict({field.name: _default(field, types[field.name]) for field in fields})


def _default(field: dataclasses.Field[Any], wanted: Any) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    elif field.default is not dataclasses.MISSING:
        value = field.default
    elif dataclasses.is_dataclass(wanted):
        return defaults(wanted)
    else:
        value = (typing.get_origin(wanted) or wanted)()
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
