"""A pipeline on this process's devices, which makes images in batches."""

import collections
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bksdm_jax.base.compiling import lower
from bksdm_jax.base.errors import InputError, whole_number
from bksdm_jax.base.memory import explain_out_of_memory
from bksdm_jax.base.precision import cast_frozen, exact_products
from bksdm_jax.base.progress import QUIET, waiting
from bksdm_jax.diffusion.noise import image_keys
from bksdm_jax.pipelines.pipeline import Architectures, Network, Pipeline
from bksdm_jax.sampling.config import SamplerConfig
from bksdm_jax.sampling.text_to_image import TEACHER, TextToImage, not_finite, text_to_image, warn_of_clipping

_REMEMBERED = 256  # text states
_ADVICE = "lower batch_size or the resolution, or set decode to slices or tiles"
_ENCODING = 2**32 - 1  # folded into an image's key for the noise of the autoencoder; steps fold in their numbers


class Batch(NamedTuple):
    """Images of one call.

    Attributes:
        indices: numbers of the images, which fix their noise; at most the engine's `per_call` of them.
        prompts: one each.
        init: uint8 [B, H, W, 3], to begin from.
        noise: the starting noise, float32 [B, h, w, C]; None: drawn.
        seed, negative_prompt: instead of those of the engine's settings; nothing is compiled for them.
        masks: the entries `kept` and `skips` of the U-Net's `Conditioning`, arrays [B, ...]; in all batches or in none.
    """

    indices: tuple[int, ...]
    prompts: tuple[str, ...]
    init: np.ndarray | None = None
    noise: np.ndarray | None = None
    seed: int | None = None
    negative_prompt: str | None = None
    masks: Mapping[str, np.ndarray] | None = None


class Made(NamedTuple):
    """The images of a batch, uint8 [B, H, W, 3], and its previews by number of the call, of the same shape."""

    batch: Batch
    images: np.ndarray
    previews: dict[int, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Previews:
    """Images of the estimates of z_0 on the way.

    Attributes:
        every: 5 decodes the estimate of every fifth call.
        autoencoder: that decodes them; None: the pipeline's.
    """

    every: int
    autoencoder: Network | None = None


class _Programs(NamedTuple):
    """Compiled for one size of images."""

    denoise: Callable[..., tuple[jax.Array, jax.Array | None]]
    decode: Callable[..., tuple[jax.Array, jax.Array]]
    preview: Callable[..., jax.Array] | None


class Engine:
    """Makes images of a pipeline on all devices of this process.

    A call makes `batch_size` images on each device; the devices don't exchange anything, so an image depends on the
    others of its batch by rounding at most. Text states are computed once for each prompt, as long as they are
    remembered. Each size of images is compiled when it first comes.

    Attributes:
        per_call: images of a call.
        preview_calls: numbers of the calls that have a preview.
        first_seconds: for compiling, and the first call of each size.
        seconds: of each other call.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        config: SamplerConfig,
        dtype: str = "float32",
        batch_size: int = 1,
        *,
        strength: float | None = None,
        teacher: Pipeline | None = None,
        previews: Previews | None = None,
    ) -> None:
        """Puts the weights on the devices.

        Args:
            pipeline: the model.
            config: how images are made.
            dtype: of the networks' computations, `float32` or `bfloat16`.
            batch_size: images of a call on each device.
            strength: of image to image; None: text to image.
            teacher: whose denoiser makes the first `config.switch_at` steps.
            previews: which to make.

        Raises:
            InputError: settings that are out of range or don't fit the model; a teacher that doesn't.
        """
        devices = jax.local_devices()
        self.per_call = batch_size * len(devices)
        self.first_seconds, self.seconds = 0.0, []
        self._mesh = Mesh(np.array(devices), ("data",))
        self._config, self._dtype, self._strength, self._previews = config, dtype, strength, previews
        self._networks = pipeline.architectures
        self._teacher = None if teacher is None else teacher.architectures
        if self._teacher is not None:
            require_exchangeable(self._networks, self._teacher, str(pipeline.path), str(teacher.path))
        compute = jnp.dtype(dtype)
        self._parts: Callable[[SamplerConfig], TextToImage] = lambda config: text_to_image(
            self._networks, config, compute, strength, self._teacher
        )
        calls = len(self._parts(config).calls)
        warn_of_clipping(config, self._networks)
        self.preview_calls = ()
        if previews is not None:
            whole_number("config", "previews", previews.every, 1, calls)
            self.preview_calls = tuple(range(previews.every - 1, calls, previews.every))
            if previews.autoencoder is not None:
                _require_preview(self._networks, previews.autoencoder)
        params = dict(pipeline.params)
        if teacher is not None:
            params[TEACHER] = teacher.denoiser.params
        if previews and previews.autoencoder:
            params["preview"] = previews.autoencoder.params
        self._whole = NamedSharding(self._mesh, PartitionSpec())
        with waiting("moving the weights to the devices", QUIET):
            self._params = jax.block_until_ready(jax.device_put(cast_frozen(params, compute), self._whole))
        self._captions = pipeline.caption_inputs
        self._encode_text = self._compiled_encoder(self._captions([config.negative_prompt]))  # refused if too long
        self._states: collections.OrderedDict[str, Any] = collections.OrderedDict()
        self._programs: dict[tuple[int, int], _Programs] = {}

    def make(self, batches: Iterable[Batch]) -> Iterator[Made]:
        """The images of each batch, in order; the next batch is begun before one is waited for.

        Raises `InputError` for an image that isn't finite.
        """
        running: tuple[Batch, Any, bool, float] | None = None
        last = time.perf_counter()
        for batch in batches:
            size = self._size(batch)
            first = size not in self._programs
            if first and running is not None:  # else its time would include compiling
                made, last = self._finish(*running, last)
                yield made
                running = None
            began = time.perf_counter()
            with explain_out_of_memory(_ADVICE):
                following = (batch, self._begin(batch, size), first, began)
            if running is not None:
                made, last = self._finish(*running, last)
                yield made
            running = following
        if running is not None:
            yield self._finish(*running, last)[0]

    def _finish(self, batch: Batch, running: Any, first: bool, began: float, last: float) -> tuple[Made, float]:
        with explain_out_of_memory(_ADVICE):
            (images, finite), previews = jax.tree.map(lambda array: np.asarray(array)[: len(batch.indices)], running)
        for i in np.flatnonzero(~finite):
            raise not_finite(batch.indices[i], batch.prompts[i], self._dtype)
        now = time.perf_counter()
        if first:
            self.first_seconds += now - began
        else:
            self.seconds.append(now - max(last, began))
        return Made(batch, images, previews), now

    def _size(self, batch: Batch) -> tuple[int, int]:
        return self._config.size if batch.init is None else batch.init.shape[1:3]

    def _compiled_encoder(self, captions: Any) -> Callable[..., Any]:
        """Compiled for one prompt; `captions` are any prompt's inputs."""
        with exact_products(self._dtype), waiting("compiling the text encoder", QUIET):
            return lower(jax.jit(self._parts(self._config).condition), self._params, captions).compile()

    def _text(self, prompt: str) -> Any:
        """The conditioning of one prompt, arrays [1, ...] on the host."""
        if prompt in self._states:
            self._states.move_to_end(prompt)
            return self._states[prompt]
        with exact_products(self._dtype):
            states = jax.tree.map(np.asarray, self._encode_text(self._params, self._captions([prompt])))
        self._states[prompt] = states
        if len(self._states) > _REMEMBERED:
            self._states.popitem(last=False)
        return states

    def _begin(self, batch: Batch, size: tuple[int, int]) -> tuple[tuple[jax.Array, jax.Array], dict[int, jax.Array]]:
        """Dispatches a batch, padded by its last image: images, whether each is finite, and previews."""
        if len(batch.indices) > self.per_call:
            raise ValueError(f"{len(batch.indices)} images; a call makes {self.per_call}")
        missing = self.per_call - len(batch.indices)

        def filled(array: np.ndarray) -> np.ndarray:
            return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])

        split = NamedSharding(self._mesh, PartitionSpec("data"))
        states = [self._text(prompt) for prompt in batch.prompts]
        conditioning = jax.tree.map(lambda *rows: filled(np.concatenate(rows)), *states)
        conditioning |= {name: filled(mask) for name, mask in (batch.masks or {}).items()}
        numbers = jnp.asarray(filled(np.array(batch.indices, np.uint32)))
        keys = image_keys(self._config.seed if batch.seed is None else batch.seed, numbers)
        noise = keys if batch.noise is None else filled(batch.noise.astype(np.float32))
        init = None if batch.init is None else filled(batch.init)
        split_arrays = jax.device_put((conditioning, keys, noise, init), split)
        without = self._config.negative_prompt if batch.negative_prompt is None else batch.negative_prompt
        inputs = (self._params, jax.device_put(self._text(without), self._whole), *split_arrays)
        programs = self._compiled(size, inputs)
        latents, estimates = programs.denoise(*inputs)
        images = programs.decode(self._params, latents)
        previews = {}
        if programs.preview is not None:
            assert estimates is not None
            previews = {call: programs.preview(self._params, estimates[call]) for call in self.preview_calls}
        return images, previews

    def _compiled(self, size: tuple[int, int], inputs: tuple[Any, ...]) -> _Programs:
        if size in self._programs:
            return self._programs[size]
        height, width = size
        parts = self._parts(dataclasses.replace(self._config, height=height, width=width))
        previews = self._previews

        def denoise(params: Any, negative: Any, conditioning: Any, keys: Any, noise: Any, init: Any) -> Any:
            latents = None
            if init is not None:
                own = jax.vmap(lambda key: jax.random.fold_in(key, _ENCODING))(keys)
                latents = parts.encode(params, init, own)
            return parts.denoise(params, conditioning, negative, noise, latents, keys, previews is not None)

        decoder = parts
        if previews and previews.autoencoder:
            decoder = dataclasses.replace(parts, networks=_with_autoencoder(self._networks, previews.autoencoder))

        def preview(params: Mapping[str, Any], latents: jax.Array) -> jax.Array:
            own = {self._networks.kind.autoencoder: params["preview"]} if "preview" in params else {}
            return decoder.decode(dict(params) | own, latents)

        whole, split = PartitionSpec(), PartitionSpec("data")
        along = PartitionSpec(None, "data") if previews is not None else whole
        compiled = []
        with exact_products(self._dtype), waiting(f"compiling for images of {width} x {height}"):
            program = self._on_each_device(denoise, (whole, whole, split, split, split, split), (split, along))
            compiled.append(lower(program, *inputs).compile())
            latents, _ = jax.eval_shape(program, *inputs)
            latents = jax.ShapeDtypeStruct(latents.shape, latents.dtype, sharding=NamedSharding(self._mesh, split))
            for decode in (parts.decode_checked, preview if previews else None):
                if decode is not None:
                    program = self._on_each_device(decode, (whole, split), split)
                    compiled.append(lower(program, self._params, latents).compile())
        self._programs[size] = _Programs(*compiled, *([None] * (3 - len(compiled))))
        return self._programs[size]

    def _on_each_device(self, function: Callable[..., Any], inputs: Any, outputs: Any) -> Any:
        return jax.jit(jax.shard_map(function, mesh=self._mesh, in_specs=inputs, out_specs=outputs, check_vma=False))


def _with_autoencoder(networks: Architectures, autoencoder: Network) -> Architectures:
    configs = dict(networks.configs) | {networks.kind.autoencoder: autoencoder.config}
    return dataclasses.replace(networks, configs=configs)


def _require_preview(networks: Architectures, autoencoder: Network) -> None:
    """Raises `InputError` unless the autoencoder decodes the model's latents to images of the same size."""
    own = networks.configs[networks.kind.autoencoder]
    for key in ("latent_channels", "factor", "out_channels"):
        found, wanted = getattr(autoencoder.config, key), getattr(own, key)
        if found != wanted:
            raise InputError(f"preview_vae: {key} is {found}; expected {wanted}, as the model's own")


def require_exchangeable(student: Architectures, teacher: Architectures, ours: str, theirs: str) -> None:
    """Raises `InputError`, with the names of both, unless the teacher's denoiser can make the student's first steps."""
    for what, own, other in (
        ("prediction type", student.schedule.prediction_type, teacher.schedule.prediction_type),
        ("text width", student.denoiser.context_width, teacher.denoiser.context_width),
        ("channels of the latents", student.denoiser.in_channels, teacher.denoiser.in_channels),
        ("noise levels", student.schedule.alphas_cumprod().tolist(), teacher.schedule.alphas_cumprod().tolist()),
    ):
        if own != other:
            shown = "differ" if isinstance(own, list) else f"are {own} and {other}"
            raise InputError(f"teacher: the {what} of {ours} and {theirs} {shown}; they must be equal")
