"""Attribution maps of a teacher and its students for the same prompts and noise, and how alike they are."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bksdm_jax.analysis.attribution import make_attribute, traced_layers
from bksdm_jax.analysis.attribution_config import AttributionConfig, require_attribution
from bksdm_jax.analysis.likeness import by_word, likeness, mean_likeness
from bksdm_jax.analysis.words import Word, word_maps, words_of
from bksdm_jax.base.compiling import lower
from bksdm_jax.base.errors import InputError, in_short, shown
from bksdm_jax.base.files import atomic_file, make_folder, write_json
from bksdm_jax.base.images import save_png
from bksdm_jax.base.locks import one_run
from bksdm_jax.base.memory import explain_out_of_memory
from bksdm_jax.base.precision import cast_frozen, compute_dtype, exact_products
from bksdm_jax.base.progress import QUIET, Progress, waiting
from bksdm_jax.base.workdir import claim, require_same, require_same_parts
from bksdm_jax.data.tables import read_prompts
from bksdm_jax.diffusion.noise import image_keys
from bksdm_jax.pipelines.load import Model, find_model
from bksdm_jax.pipelines.pipeline import Architectures, Pipeline
from bksdm_jax.pipelines.source import ModelSource
from bksdm_jax.reports.attribution_page import FILE, write_attribution_page
from bksdm_jax.sampling.config import SamplerConfig
from bksdm_jax.sampling.text_to_image import not_finite, require_sampler, text_to_image, warn_of_clipping

TEACHER = "teacher"
MAY_CHANGE = ("prompts", "batch_size", "revision", "threshold")
"""Keys that may differ when a run continues: what they name is recorded too, or they don't change the maps."""
_ADVICE = "lower batch_size or the resolution"
_SHA256 = "_sha256"
"""The ending of keys with the identity of a model."""


@dataclasses.dataclass(frozen=True)
class _Run:
    """What all models share; `config.resolution` is known."""

    config: AttributionConfig
    texts: list[str]
    words: list[tuple[Word, ...]]
    left_out: list[tuple[str, ...]]
    workdir: Path

    def image(self, name: str, index: int) -> Path:
        """The file of a model's image."""
        return self.workdir / name / "images" / f"{index:06d}.png"

    def maps(self, name: str, index: int) -> Path:
        """The file of a model's maps of the words of a prompt, float32 [W, h, w]."""
        return self.workdir / name / "maps" / f"{index:06d}.npy"


@one_run()
def attribute(config: AttributionConfig, workdir: Path) -> Path:
    """Makes the images and maps that are missing, `attribution.json` and `attribution.html`; returns the page's path.

    Raises:
        InputError: a setting, file or model can't be used, the models' maps can't be compared, or an image isn't
            finite.
    """
    require_attribution(config)
    texts = [prompt.text for prompt in read_prompts(config.prompts)] if config.prompts else list(config.texts)
    texts = texts[: config.images]
    found = {TEACHER: find_model(config.source(config.teacher))}
    for number, name in enumerate(config.models, start=1):
        found[f"student_{number}"] = find_model(ModelSource(name, allow_non_finite=config.allow_non_finite))
    own = found[TEACHER].architectures
    config = dataclasses.replace(config, resolution=config.resolution or own.resolution)
    for name, model in found.items():
        _require_fit(config, _key(name, config), model.architectures, own)
    identities, words, left_out = _identities(config, found, texts)
    record = dataclasses.asdict(config) | {"texts": texts, "teacher": str(found[TEACHER].path)}
    record |= {"models": [str(model.path) for name, model in found.items() if name != TEACHER]}
    keys = {f"{name}{_SHA256}": identity for name, identity in identities.items()}
    require_same(workdir, record | keys, (*MAY_CHANGE, *keys))
    for key, identity in keys.items():
        require_same_parts(workdir, key, identity, key.removesuffix(_SHA256).replace("_", " "))
    claim(workdir, record | keys)
    run = _Run(config, texts, words, left_out, workdir)
    for text, missing in zip(texts, left_out, strict=True):
        if missing:
            logging.warning("no maps of %s: beyond the tokens that the models read of %.60r", shown(missing), text)
    for name, model in found.items():
        _make(run, name, model)
    write_json(workdir / FILE, _results(run, list(found)))
    return write_attribution_page(workdir)


def _key(name: str, config: AttributionConfig) -> str:
    """The setting that names a model, and its value."""
    if name == TEACHER:
        return f"teacher: {config.teacher}"
    return f"models: {config.models[int(name.removeprefix('student_')) - 1]}"


def _sampler(config: AttributionConfig) -> SamplerConfig:
    shared = {field.name for field in dataclasses.fields(SamplerConfig)} & vars(config).keys()
    return SamplerConfig(**{key: getattr(config, key) for key in shared})


def _require_fit(config: AttributionConfig, key: str, networks: Architectures, teacher: Architectures) -> None:
    """Raises `InputError`, with the model's `key`, unless it has maps, and its noise can be the teacher's."""
    if not traced_layers(networks.denoiser):
        raise InputError(f"{key}: its U-Net has no cross-attention in a down or up stage, so there are no maps")
    require_sampler(_sampler(config), networks)
    ours, theirs = networks.latent_shape(config.resolution), teacher.latent_shape(config.resolution)
    if ours != theirs:
        raise InputError(f"{key}: its latents are {ours}, the teacher's {theirs}; they must be equal")


def _identities(
    config: AttributionConfig, found: Mapping[str, Model], texts: Sequence[str]
) -> tuple[dict[str, dict[str, str]], list[tuple[Word, ...]], list[tuple[str, ...]]]:
    """Opens one model after the other: their hashes, and each prompt's words, with those that are left out.

    Raises `InputError` if the models' tokens differ, or no prompt has a word.
    """
    identities: dict[str, dict[str, str]] = {}
    tokens: dict[str, np.ndarray] = {}
    words: list[tuple[tuple[Word, ...], tuple[str, ...]]] = []
    for name, model in found.items():
        pipeline = model.read()
        ours = pipeline.caption_inputs(texts)
        if name == TEACHER:
            tokenizer = pipeline.tokenizers[next(iter(pipeline.architectures.kind.tokenizers))]
            tokens, words = ours, [words_of(tokenizer, text) for text in texts]
        if ours.keys() != tokens.keys() or any(not np.array_equal(ours[part], tokens[part]) for part in ours):
            lengths = [next(iter(one.values())).shape[1] for one in (ours, tokens)]
            what = "the same number of" if lengths[0] == lengths[1] else f"{lengths[0]} instead of {lengths[1]}"
            raise InputError(
                f"{_key(name, config)} makes other tokens of the prompts than the teacher ({what} tokens each); "
                "expected a student with the teacher's tokenizer"
            )
        identities[name] = pipeline.identity()
    if not any(read for read, _ in words):
        raise InputError(f"prompts: no words in {len(texts)} prompts; expected prompts with words")
    return identities, [read for read, _ in words], [missing for _, missing in words]


def _make(run: _Run, name: str, model: Model) -> None:
    """Makes a model's images and maps, as far as files are missing, whole calls at a time."""
    count, devices = len(run.texts), jax.local_devices()
    per_call = len(devices) * min(run.config.batch_size, -(-count // len(devices)))
    calls = [range(first, min(first + per_call, count)) for first in range(0, count, per_call)]
    todo = [
        some for some in calls if not all(run.image(name, i).is_file() and run.maps(name, i).is_file() for i in some)
    ]
    if not todo:
        return
    for folder in (run.image(name, 0).parent, run.maps(name, 0).parent):
        make_folder(folder)
    maker = _Maker(run, model.read(), per_call)
    with Progress(f"images of {name.replace('_', ' ')}", count, count - sum(map(len, todo))) as progress:
        for some in todo:
            for i, image, maps in zip(some, *maker(some), strict=True):
                save_png(run.image(name, i), image)
                with atomic_file(run.maps(name, i)) as temporary, temporary.open("wb") as file:
                    np.save(file, word_maps(maps, run.words[i]), allow_pickle=False)
            progress.advance(len(some))


class _Maker:
    """A model on this process's devices; the devices share the images of a call."""

    def __init__(self, run: _Run, pipeline: Pipeline, per_call: int) -> None:
        config, networks = run.config, pipeline.architectures
        self._run, self._per_call, self._captions = run, per_call, pipeline.caption_inputs
        mesh = Mesh(np.array(jax.local_devices()), ("data",))
        whole, self._split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
        dtype = compute_dtype(config.dtype)
        warn_of_clipping(_sampler(config), networks)
        parts = text_to_image(networks, _sampler(config), dtype)
        with waiting("moving the weights to the devices", QUIET):
            self._params = jax.block_until_ready(jax.device_put(cast_frozen(pipeline.params, dtype), whole))
        self._empty = jax.device_put(self._captions([""]), whole)
        specs = (whole.spec, self._split.spec, whole.spec, self._split.spec)
        on_each = jax.shard_map(
            make_attribute(parts), mesh=mesh, in_specs=specs, out_specs=self._split.spec, check_vma=False
        )
        with exact_products(config.dtype), waiting("compiling", QUIET), explain_out_of_memory(_ADVICE):
            inputs = self._inputs(range(1))
            self._program = lower(jax.jit(on_each), *inputs).compile()

    def __call__(self, indices: range) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 [B, H, W, 3] and maps of tokens [B, h, w, T]; raises `InputError` if one isn't finite."""
        with explain_out_of_memory(_ADVICE):
            images, finite, maps = jax.tree.map(
                lambda array: np.asarray(array)[: len(indices)], self._program(*self._inputs(indices))
            )
        for i in np.flatnonzero(~finite):
            raise not_finite(indices[i], self._run.texts[indices[i]], self._run.config.dtype)
        return images, maps

    def _inputs(self, indices: range) -> tuple[Any, ...]:
        """Padded by the last image."""
        numbers = np.array([*indices, *[indices[-1]] * (self._per_call - len(indices))], np.uint32)
        captions = self._captions([self._run.texts[i] for i in numbers])
        keys = image_keys(self._run.config.seed, jnp.asarray(numbers))
        captions, keys = jax.device_put((captions, keys), self._split)
        return self._params, captions, self._empty, keys


def _results(run: _Run, names: Sequence[str]) -> dict[str, Any]:
    """What `attribution.json` holds."""
    students = [name for name in names if name != TEACHER]
    pairs: dict[str, list[list[tuple[str, Any]]]] = {name: [] for name in students}
    prompts = []
    for index, (text, words) in enumerate(zip(run.texts, run.words, strict=True)):
        maps = {name: _read_maps(run, name, index) for name in names}
        rows: list[dict[str, Any]] = [{"word": word.text, "tokens": [word.first, word.last]} for word in words]
        for name in students:
            each = [likeness(*both, run.config.threshold) for both in zip(maps[TEACHER], maps[name], strict=True)]
            pairs[name].append([(word.text, one) for word, one in zip(words, each, strict=True)])
            for row, one in zip(rows, each, strict=True):
                row.setdefault("likeness", {})[name] = one._asdict()
        prompts.append({"text": text, "words": rows, "left_out": list(run.left_out[index])})
    given = dict(zip(names, (run.config.teacher, *run.config.models), strict=True))
    return {
        "settings": dataclasses.asdict(run.config) | {"texts": run.texts},
        "models": [{"folder": name, "name": given[name]} for name in names],
        "mean": {name: mean_likeness(own) for name, own in pairs.items()},
        "by_word": {name: by_word(own) for name, own in pairs.items()},
        "prompts": prompts,
    }


def _read_maps(run: _Run, name: str, index: int) -> np.ndarray:
    path = run.maps(name, index)
    try:
        maps = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: not readable ({in_short(error)}); delete it, it is made again") from error
    if maps.dtype != np.float32 or maps.ndim != 3 or len(maps) != len(run.words[index]):
        raise InputError(f"{path}: no maps of {len(run.words[index])} words; delete it, it is made again")
    return maps
