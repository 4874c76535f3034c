"""Sampling as one call: pipeline folder and prompts in, a folder of images out."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from absl import logging

from bksdm_jax.base.distributed import barrier, is_first
from bksdm_jax.base.errors import InputError
from bksdm_jax.base.exits import RESTART
from bksdm_jax.base.files import file_sha256, make_folder, write_json
from bksdm_jax.base.locks import one_run
from bksdm_jax.base.paths import local_path
from bksdm_jax.base.progress import Progress
from bksdm_jax.base.signals import Interrupted, Interrupts
from bksdm_jax.base.workdir import claim, require_same, require_same_parts, require_shared
from bksdm_jax.data.tables import Prompt, write_table
from bksdm_jax.pipelines.autoencoder import load_autoencoder
from bksdm_jax.pipelines.load import find_model, load_pipeline
from bksdm_jax.pipelines.lora import Lora, open_loras, with_loras
from bksdm_jax.pipelines.parts import with_parts
from bksdm_jax.pipelines.pipeline import Architectures, Network, Pipeline
from bksdm_jax.pipelines.source import ModelSource
from bksdm_jax.sampling.config import MAY_CHANGE, SampleConfig, require_settings
from bksdm_jax.sampling.engine import Batch, Engine, Previews, require_exchangeable
from bksdm_jax.sampling.given_latents import read_latents
from bksdm_jax.sampling.jobs import Job, calls, images_per_call, list_jobs, read_texts
from bksdm_jax.sampling.protocols import resized_to, with_protocol
from bksdm_jax.sampling.sheets import write_sheets
from bksdm_jax.sampling.text_to_image import require_sampler
from bksdm_jax.sampling.webui import model_facts, parameters, sampler_name
from bksdm_jax.sampling.writer import Output, Writers, as_stored

_SHA256 = "_sha256"
"""The ending of keys with the identity of a model."""
_MOST_TIMED = 1000  # calls


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What all models of a run share; `config.resolution` is known."""

    config: SampleConfig
    jobs: list[Job]
    calls: list[tuple[Job, ...]]
    noise: np.ndarray | None
    teacher: Pipeline | None
    preview: Network | None

    def texts(self) -> dict[int, str]:
        """Each prompt's text by the number of its first image."""
        return {job.index: job.prompt.text for job in self.jobs[:: self.config.images_per_prompt]}


class _Maker(NamedTuple):
    """A model on the devices, the sampler's name, and what its PNG files say of it."""

    engine: Engine
    sampler: str
    facts: dict[str, str]


class Consumer(Protocol):
    """Takes a run's images instead of files.

    Attributes:
        done: images from the beginning that it needn't be given again.
    """

    done: int

    def add(self, first: int, images: list[np.ndarray], captions: list[str], last: bool) -> None:
        """Takes the images from number `first` on, uint8 [H, W, 3] as their files would hold them."""


@one_run(is_first)
def sample(config: SampleConfig, workdir: Path, consumer: Callable[[], Consumer] | None = None) -> int:
    """Writes `images/000000.png`, ... and, once all exist, `metadata.csv` (`file_name,text`).

    Images that exist are kept; a call of which one is missing is made again as a whole, so that an interrupted run ends
    with the files of an undisturbed one. Where prompts come from a `.csv`, or images begin from others, their names are
    the table's third column, `source`. `timing.json` has `first_call_seconds`, for compiling and the first call of each
    size, and `seconds_per_image`, the median over the other calls of this process (null: there was none). Images of the
    models of `config.beside` go to `beside_1/`, ..., with a table and timing each, and then `sheet_000.png`, ... show
    the models' images below each other, a row per model.

    Every process of a distributed run must make this call, with the same settings; each makes a share of the images.

    With a `consumer`, called once the settings are known to be usable, its result gets the images, all of one size, and
    none are written.

    Returns the number of images of a model; raises `InputError` for a setting, file or folder that can't be used, and
    then writes nothing, or for an image that isn't finite, which isn't written.
    """
    config = with_protocol(config)
    require_settings(config)
    prompts = read_texts(config)
    teacher = load_pipeline(_other(config, config.teacher)) if config.teacher else None
    model, loras = _load_model(config)
    plan = _plan(config, prompts, model.architectures, teacher)
    record = _record(plan, model, loras)
    models = [key for key in record if key.endswith(_SHA256)]
    require_same(workdir, record, (*MAY_CHANGE, *models), is_first())
    for key in models:
        require_same_parts(workdir, key, record[key], key.removesuffix(_SHA256).replace("_", " "))
    _log_cut_prompts(plan, model)
    maker = _maker(plan, config.model, model, record["model_sha256"])
    del model  # its copy of the weights
    barrier("checked")  # a process that looks later would find a workdir that another one has begun
    if is_first():
        claim(workdir, record)
    barrier("claimed")
    require_shared(workdir)
    if consumer is not None:
        _make_for(plan, maker, consumer())
        return len(plan.jobs)
    outputs = [_output(plan, maker, workdir)]
    _make(plan, maker, outputs[0])
    del maker  # its weights on the devices
    for number, name in enumerate(config.beside, start=1):
        folder = workdir / f"beside_{number}"
        outputs.append(_make_beside(plan, name, record[f"beside_{number}{_SHA256}"], folder))
    barrier("made")
    if is_first():
        for output in outputs:
            _write_table(output, plan.jobs)
        if config.beside:
            write_sheets(workdir, outputs, len(plan.jobs))
    barrier("listed")
    return len(plan.jobs)


def _load_model(config: SampleConfig) -> tuple[Pipeline, tuple[Lora, ...]]:
    """The model with its LoRAs, which are of all its text layers, and other parts."""
    found = find_model(config.source(config.model))
    loras = open_loras(config, found.architectures, config.allow_non_finite)
    return with_parts(with_loras(found.read(), loras), config), loras


def _load(config: SampleConfig, name: str) -> Pipeline:
    source = config.source(name) if name == config.model else _other(config, name)
    return with_parts(load_pipeline(source), config)


def _other(config: SampleConfig, name: str) -> ModelSource:
    return ModelSource(name, allow_non_finite=config.allow_non_finite)


def _plan(config: SampleConfig, prompts: list[Prompt], networks: Architectures, teacher: Pipeline | None) -> _Plan:
    """Everything to make, from settings; raises `InputError`."""
    jobs = list_jobs(config, prompts, networks)
    own = dataclasses.replace(config, resolution=config.resolution or networks.resolution)
    noise = None
    if config.latents:
        require_sampler(own, networks, config.strength_used)
        sizes = {job.size for job in jobs}
        if len(sizes) > 1:
            raise InputError(f"latents: {config.latents} has one size, the images have {len(sizes)}; give resolution")
        height, width = sizes.pop()
        noise = read_latents(local_path("latents", config.latents), len(jobs), networks.latent_shape(height, width))
    devices, processes = jax.local_device_count(), jax.process_count()
    if devices * processes != jax.device_count():
        raise InputError(f"--distributed: {jax.device_count()} devices in {processes} processes; expected as many each")
    per_call = images_per_call(jobs, config.batch_size, devices, processes)
    own = dataclasses.replace(own, batch_size=per_call // devices)
    preview = load_autoencoder(config.preview_vae, config.allow_non_finite) if config.preview_vae else None
    return _Plan(own, jobs, calls(jobs, per_call), noise, teacher, preview)


def _record(plan: _Plan, model: Pipeline, loras: Sequence[Lora]) -> dict[str, Any]:
    """All that decides the images, for `config.json`; opens the models of `config.beside`, one after the other."""
    config = plan.config
    record = dataclasses.asdict(config) | {
        "model": str(model.path.resolve()),
        "model_sha256": model.identity(),
        "texts": [job.prompt.text for job in plan.jobs[:: config.images_per_prompt]],
        "sources": [job.source for job in plan.jobs[:: config.images_per_prompt]],
        "noise": file_sha256(local_path("latents", config.latents)) if config.latents else "",
        "begins_from": {job.init.path.name: job.init.sha256 for job in plan.jobs if job.init},
    }
    if loras:
        record["loras"] = [lora.facts() for lora in loras]
    if plan.teacher is not None:
        record["teacher_sha256"] = plan.teacher.identity()
    if plan.preview is not None:
        record["preview_vae_sha256"] = {"preview_vae": plan.preview.weights_sha256()}
    for number, name in enumerate(config.beside, start=1):
        other = _load(config, name)
        _require_beside(config, name, model.architectures, other.architectures)
        if plan.teacher is not None:
            require_exchangeable(other.architectures, plan.teacher.architectures, name, config.teacher)
        record[f"beside_{number}_sha256"] = other.identity()
    return record


def _require_beside(config: SampleConfig, name: str, ours: Architectures, theirs: Architectures) -> None:
    """Raises `InputError` unless a model can have the same noise and settings."""
    for what, own, other in (
        ("latents of an image of 64 x 64 pixels", ours.latent_shape(64), theirs.latent_shape(64)),
        ("pixels per latent position", ours.factor, theirs.factor),
    ):
        if own != other:
            raise InputError(f"beside: {name} has {what} {other}, the model {own}; they must be equal")
    require_sampler(config, theirs, config.strength_used)


def _maker(plan: _Plan, name: str, model: Pipeline, identity: dict[str, str]) -> _Maker:
    """Raises `InputError` if the settings don't fit the model."""
    config = plan.config
    engine = Engine(
        model,
        config,
        config.dtype,
        config.batch_size,
        strength=config.strength_used,
        teacher=plan.teacher,
        previews=Previews(config.previews, plan.preview) if config.previews else None,
    )
    facts = model_facts(name, model, identity) if config.format == "png" else {}
    return _Maker(engine, sampler_name(config.sampler, model.schedule), facts)


def _make_beside(plan: _Plan, name: str, identity: dict[str, str], folder: Path) -> Output:
    """Makes the images of a model beside the first."""
    logging.info("%s: images of %s", folder, name)
    maker = _maker(plan, name, _load(plan.config, name), identity)
    output = _output(plan, maker, make_folder(folder))
    _make(plan, maker, output)
    return output


def _output(plan: _Plan, maker: _Maker, folder: Path) -> Output:
    return Output(folder, plan.config.format, resized_to(plan.config), maker.engine.preview_calls)


def _make(plan: _Plan, maker: _Maker, output: Output) -> None:
    """Makes this process's share of a model's images, as far as files are missing."""
    config, there = plan.config, output.begin()
    own = plan.calls[jax.process_index() :: jax.process_count()]
    missing = {job.index: set(output.names(job.index)) - there for jobs in own for job in jobs}
    todo = [jobs for jobs in own if any(missing[job.index] for job in jobs)]
    by_index = {job.index: job for jobs in todo for job in jobs}
    done = sum(len(jobs) for jobs in own) - len(by_index)
    with Progress("images", len(missing), done) as progress, Writers(config.workers) as writers:
        for made in maker.engine.make(_batches(todo, plan.noise)):
            if is_first():
                _write_timing(output.folder, config, maker.engine)
            for i, index in enumerate(made.batch.indices):
                job = by_index[index]
                text = parameters(config, maker.sampler, maker.facts, job.prompt.text, index, job.size)
                previews = {call: images[i] for call, images in made.previews.items()}
                writers.add(progress.advance, output.write, index, made.images[i], missing[index], text, previews)


def _make_for(plan: _Plan, maker: _Maker, consumer: Consumer) -> None:
    """Makes the images of the calls that the consumer hasn't had whole."""
    config, done = plan.config, consumer.done
    todo = [jobs for jobs in plan.calls if jobs[-1].index >= done]
    texts = {job.index: job.prompt.text for jobs in todo for job in jobs}
    with Progress("images", len(plan.jobs), len(plan.jobs) - len(texts)) as progress, Interrupts() as interrupts:
        for made in maker.engine.make(_batches(todo, plan.noise)):
            images = [as_stored(image, config.format, resized_to(config)) for image in made.images]
            first, last = made.batch.indices[0], made.batch.indices[-1] == len(plan.jobs) - 1
            consumer.add(first, images, [texts[i] for i in made.batch.indices], last or interrupts.wanted)
            progress.advance(len(images))
            if interrupts.wanted:
                raise Interrupted(RESTART, "interrupted; the same command continues")


def _batches(todo: Sequence[tuple[Job, ...]], noise: np.ndarray | None) -> Iterator[Batch]:
    for jobs in todo:
        indices = tuple(job.index for job in jobs)
        init = np.stack([job.init.pixels() for job in jobs if job.init]) if jobs[0].init else None
        # A single one is shared by all images.
        own = None if noise is None else noise[[index if len(noise) > 1 else 0 for index in indices]]
        yield Batch(indices, tuple(job.prompt.text for job in jobs), init, own)


def _write_timing(folder: Path, config: SampleConfig, engine: Engine) -> None:
    path = folder / "timing.json"
    if not engine.seconds and path.exists():
        return  # of a call that made more
    each = [seconds / engine.per_call for seconds in engine.seconds[-_MOST_TIMED:]]
    timing = {
        "batch_size": config.batch_size,
        "devices": jax.local_device_count(),
        "first_call_seconds": engine.first_seconds,
        "seconds_per_image": float(np.median(each)) if each else None,
        "seconds_per_image_by_call": each,
    }
    write_json(path, timing)


def _log_cut_prompts(plan: _Plan, model: Pipeline) -> None:
    """Logs which prompts are longer than the model reads."""
    texts = plan.texts()
    cut = np.zeros(len(texts), bool)
    for tokenizer in model.tokenizers.values():
        cut |= tokenizer.cuts(list(texts.values()))
    for index, text in (entry for entry, is_cut in zip(texts.items(), cut, strict=True) if is_cut):
        logging.warning("image %d: its prompt is cut, it has more tokens than the model reads: %.60r...", index, text)


def _write_table(output: Output, jobs: Sequence[Job]) -> None:
    columns = 3 if any(job.source for job in jobs) else 2
    rows = [(output.name(job.index), job.prompt.text, job.source)[:columns] for job in jobs]
    write_table(output.folder / "metadata.csv", ("file_name", "text", "source")[:columns], rows)
