"""Fine-tuning as a run: what it trains, keeps and writes, how it continues, and what it says of odd inputs."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.numpy import load_file

import bksdm_jax
from bksdm_jax.base import trees
from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import read_json
from bksdm_jax.data.kept_latents import KeptConfig, keep_latents
from bksdm_jax.data.skipping import Skipping
from bksdm_jax.data.sources import open_examples, square_image
from bksdm_jax.pipelines.load import load_pipeline
from bksdm_jax.tasks.finetune import inputs as finetune_inputs
from bksdm_jax.tasks.finetune import task as task_module
from bksdm_jax.tasks.finetune.config import AdapterConfig, FinetuneConfig, PriorConfig, require_finetune
from bksdm_jax.tasks.finetune.images import loaded, loaded_prior
from bksdm_jax.tasks.finetune.inputs import CLASS_IMAGES, oddities, open_inputs
from bksdm_jax.tasks.finetune.task import LORA_FILE, FinetuneTask, finetune, finetune_again
from bksdm_jax.training.checkpoints import Checkpoints
from bksdm_jax.training.config import OptimizerConfig, SampleGridConfig
from bksdm_jax.training.sharding import make_mesh
from bksdm_jax.training.train_step import make_train_step
from tests.pairs_on_disk import picture

ADAPTER = AdapterConfig(rank=2, alpha=3.0, text_alpha=1.0)
PRIOR = PriorConfig(weight=0.5, prompt="a photo of a cat", images=3, steps=1, batch_size=1)
RATE = OptimizerConfig(learning_rate=1e-3, ema_decay=0.0)


@pytest.fixture(scope="session")
def instances(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images of different shapes without captions, and what else such folders have."""
    folder = tmp_path_factory.mktemp("instances")
    for number, size in enumerate([(20, 16), (16, 16), (16, 24)]):
        picture(number, size).save(folder / f"{number}.png")
    (folder / ".DS_Store").write_bytes(b"\0\1")
    (folder / ".ipynb_checkpoints").mkdir()
    picture(9).save(folder / ".ipynb_checkpoints" / "0-checkpoint.png")
    return folder


def settings(teacher: Path, data: Path, **changes: Any) -> FinetuneConfig:
    fixed = {"caption": "a photo of sks cat", "steps": 4, "batch_size": 2, "checkpoint_every": 2, "dtype": "float32"}
    fixed |= {"resolution": 16, "optimizer": RATE, "sheets": SampleGridConfig(steps=0), "log_every": 1}
    return FinetuneConfig(str(teacher), str(data), **fixed | changes)


@pytest.fixture(autouse=True)
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    use_one_device(monkeypatch)


def use_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    one = jax.devices()[:1]
    for name in ("devices", "local_devices"):
        monkeypatch.setattr(jax, name, lambda *_, **__: one)
    for name in ("device_count", "local_device_count"):
        monkeypatch.setattr(jax, name, lambda *_: 1)


def changed(before: Any, after: Any) -> set[str]:
    ours, theirs = trees.flatten(before), trees.flatten(after)
    assert ours.keys() == theirs.keys()
    return {path for path, leaf in ours.items() if not np.array_equal(leaf, theirs[path])}


def saved_numbers(workdir: Path, config: FinetuneConfig) -> int:
    """How many numbers the newest checkpoint holds."""
    config = dataclasses.replace(config, prior=PriorConfig())
    inputs, pipeline = open_inputs(config), load_pipeline(config.model)
    task = FinetuneTask(config, inputs.trained, pipeline, inputs.examples)
    like = make_train_step(task.objective, config.optimizer, config.seed, make_mesh(1, jax.devices()[:1])).state
    with Checkpoints(workdir / "checkpoints", 0) as checkpoints:
        return trees.count(checkpoints.restore(like))


@pytest.fixture(scope="module")
def lora_run(pico_teacher: Path, instances: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA's run, interrupted by its settings after two of four updates."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_one_device(monkeypatch)
        workdir = tmp_path_factory.mktemp("lora") / "run"
        config = settings(pico_teacher, instances, adapter=ADAPTER, prior=PRIOR)
        for steps in (2, 4):
            assert finetune(dataclasses.replace(config, steps=steps), workdir) == workdir / LORA_FILE
    return workdir


def test_a_lora_changes_the_chosen_kernels(pico_teacher: Path, lora_run: Path) -> None:
    before = bksdm_jax.load(pico_teacher)
    after = bksdm_jax.load(pico_teacher, lora=str(lora_run / LORA_FILE))
    for path in (found := changed(before.params, after.params)):
        assert path.split("/")[-2] in ("to_q", "to_v", "q_proj", "v_proj"), path
    layers = before.networks["text_encoder"].config.layers
    assert len([path for path in found if path.startswith("text_encoder")]) == 2 * layers
    assert len([path for path in found if path.startswith("unet")]) % 4 == 0  # of self- and cross-attention


def test_a_lora_says_how_it_was_trained(lora_run: Path) -> None:
    with safe_open(lora_run / LORA_FILE, "np") as file:
        said, keys = file.metadata(), set(file.keys())
        alphas = {key: float(file.get_tensor(key)) for key in keys if key.endswith(".alpha")}
    assert all(isinstance(value, str) for value in said.values())
    expected = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "2",
        "ss_steps": "4",
        "ss_learning_rate": "0.001",
    }
    expected |= {"ss_num_train_images": "3", "ss_num_reg_images": "3", "ss_prior_loss_weight": "0.5"}
    expected |= {"ss_base_model_version": "sd_v1", "modelspec.trigger_phrase": "a photo of sks cat"}
    assert {key: said.get(key) for key in expected} == expected
    assert json.loads(said["ss_tag_frequency"]) == {"images": {"a photo of sks cat": 3}}
    assert {value for key, value in alphas.items() if key.startswith("lora_unet_")} == {3.0}
    assert {value for key, value in alphas.items() if key.startswith("lora_te_")} == {1.0}


def test_a_run_that_continues_ends_bit_for_bit_alike(
    pico_teacher: Path, instances: Path, lora_run: Path, tmp_path: Path
) -> None:
    config = settings(pico_teacher, instances, adapter=ADAPTER, prior=PRIOR)
    whole = finetune(config, tmp_path / "run")
    assert whole.read_bytes().count(b'"ss_steps":"4"') == 1
    assert whole.read_bytes() == (lora_run / LORA_FILE).read_bytes()
    for key, value in (("adapter", AdapterConfig(rank=4)), ("prior", dataclasses.replace(PRIOR, weight=1.0))):
        with pytest.raises(InputError, match=rf"config\.json: .*{key}\."):
            finetune(dataclasses.replace(config, **{key: value}), tmp_path / "run")


@pytest.mark.slow
def test_a_lora_is_the_same_with_convolutions_as_cudnn_reads_them(
    pico_teacher: Path, instances: Path, lora_run: Path, tmp_path: Path
) -> None:
    config = settings(pico_teacher, instances, adapter=ADAPTER, prior=PRIOR, conv_layout="ohwi")
    made = finetune(dataclasses.replace(config, sheets=SampleGridConfig(steps=1, every=0)), tmp_path / "run")
    ours, theirs = load_file(made), load_file(lora_run / LORA_FILE)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        np.testing.assert_allclose(tensor, theirs[name], rtol=1e-3, atol=1e-4, err_msg=name)
    assert [path.name for path in (tmp_path / "run" / "samples").iterdir()] == ["step_000004.png"]


def test_checkpoints_of_a_lora_hold_adapters_alone(pico_teacher: Path, instances: Path, lora_run: Path) -> None:
    config = settings(pico_teacher, instances, adapter=ADAPTER)
    with safe_open(lora_run / LORA_FILE, "np") as file:
        adapters = sum(file.get_tensor(key).size for key in list(file.keys()) if not key.endswith(".alpha"))
    assert saved_numbers(lora_run, config) == 3 * adapters + 4  # weights and two moments; four counts
    assert adapters < trees.count(load_pipeline(pico_teacher).params) / 20


def test_class_images_are_the_models_own(pico_teacher: Path, lora_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = sorted(path.name for path in (lora_run / CLASS_IMAGES / "images").iterdir())
    assert made == ["000000.png", "000001.png", "000002.png"]
    sampled = read_json(lora_run / CLASS_IMAGES / "config.json")
    assert (sampled["model"], sampled["prompt"], sampled["images_per_prompt"]) == (str(pico_teacher), PRIOR.prompt, 3)
    monkeypatch.setattr(finetune_inputs, "sample", lambda *_: pytest.fail("they exist"))
    config = settings(pico_teacher, lora_run, prior=PRIOR)
    found = finetune_inputs.class_images(config, lora_run)
    assert {found[i].texts for i in range(len(found))} == {(PRIOR.prompt,)}


@pytest.mark.slow
def test_dreambooth_trains_both_networks(pico_teacher: Path, instances: Path, tmp_path: Path) -> None:
    config = settings(
        pico_teacher, instances, steps=2, prior=dataclasses.replace(PRIOR, folder=str(instances)), random_crop=True,
        sheets=SampleGridConfig(steps=1, every=0), evaluate_first=True,
    )  # fmt: skip
    model = finetune(config, tmp_path / "run")
    before, after = load_pipeline(pico_teacher), load_pipeline(model)
    finetune(dataclasses.replace(config, save_dtype="float32"), tmp_path / "run")  # finished: it is written again
    assert not changed(after.params, load_pipeline(model).params)
    assert {path.split("/")[0] for path in changed(before.params, after.params)} == {"unet", "text_encoder"}
    assert "U-Net and the text encoder were fine-tuned" in (model / "README.md").read_text()
    trained = sum(trees.count(before.params[name]) for name in ("unet", "text_encoder"))
    assert saved_numbers(tmp_path / "run", config) == 3 * trained + 4  # no moving average, no autoencoder
    assert StableDiffusionPipeline.from_pretrained(model, safety_checker=None).text_encoder is not None
    assert {path.name for path in (tmp_path / "run" / "samples").iterdir()} == {"step_000000.png", "step_000002.png"}
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    first = dict(zip(rows[0].split(","), map(float, rows[1].split(",")), strict=True))
    assert first["loss"] == pytest.approx(first["loss_instance"] + 0.5 * first["loss_prior"], rel=1e-5)


@pytest.mark.slow
def test_dreambooth_that_continues_ends_bit_for_bit_alike(pico_teacher: Path, instances: Path, tmp_path: Path) -> None:
    config = settings(pico_teacher, instances, prior=PRIOR, random_crop=True, flip=True, caption_dropout=0.3)
    whole = finetune(config, tmp_path / "whole")
    for steps in (2, 4):
        again = finetune(dataclasses.replace(config, steps=steps), tmp_path / "run")
    files = [path.relative_to(whole) for path in whole.rglob("*.safetensors")]
    assert len(files) == 3
    for file in files:
        assert (again / file).read_bytes() == (whole / file).read_bytes()


@pytest.mark.slow
def test_only_some_modules_are_trained(pico_teacher: Path, instances: Path, tmp_path: Path) -> None:
    config = settings(
        pico_teacher, instances, steps=2, only=("attn2.to_k", "attn2.to_v"), text_encoder=False, cache_latents=False
    )
    model = finetune(config, tmp_path / "run")
    before, after = load_pipeline(pico_teacher), load_pipeline(model)
    found = changed(before.params, after.params)
    assert {tuple(path.split("/")[-3:]) for path in found} == {("attn2", "to_k", "kernel"), ("attn2", "to_v", "kernel")}
    counted = sum(trees.flatten(before.params)[path].size for path in found)
    assert saved_numbers(tmp_path / "run", config) == 3 * counted + 4


def test_kept_latents_are_the_autoencoders(pico_teacher: Path, instances: Path) -> None:
    pipeline, config = load_pipeline(pico_teacher), settings(pico_teacher, instances)
    examples = open_examples(open_inputs(config).data, options=config)
    kept = keep_latents(examples, pipeline, KeptConfig(16, True, 1, 0, "float32"), "here")
    assert [one.name for one in kept] == ["0.png", "1.png", "2.png"]
    encode = jax.jit(lambda images: pipeline.architectures.encode(pipeline.params, np.float32, images))
    for example, one in zip((examples[i] for i in range(3)), kept, strict=True):
        for mirrored in (False, True):
            pixels = square_image(example, 16, mirror=mirrored).astype(np.float32)[None] / 127.5 - 1
            expected = np.concatenate([np.asarray(part) for part in encode(pixels)])
            found = jax.lax.bitcast_convert_type(one.moments(mirrored), jax.numpy.bfloat16)
            np.testing.assert_allclose(np.asarray(found, np.float32), expected, rtol=0.01, atol=0.01)
        np.testing.assert_array_equal(
            one.caption_inputs(0)["tokens"], pipeline.caption_inputs(example.texts)["tokens"][0]
        )


def test_squares_have_one_crop_and_others_several(pico_teacher: Path, instances: Path) -> None:
    config = settings(pico_teacher, instances)
    examples = open_examples(open_inputs(config).data, options=config)
    kept = keep_latents(examples, load_pipeline(pico_teacher), KeptConfig(16, False, 4, 0, "float32"), "here")
    crops = [{one.moments(False, position).tobytes() for position in (0.0, 0.3, 0.6, 0.9)} for one in kept]
    assert [len(some) for some in crops][1] == 1
    assert min(len(some) for some in (crops[0], crops[2])) > 1


def test_odd_instance_folders_are_told(pico_teacher: Path, instances: Path, tmp_path: Path) -> None:
    def told(data: Path, **changes: Any) -> str:
        config = settings(pico_teacher, data, **changes)
        return "\n".join(oddities(config, open_inputs(config), load_pipeline(pico_teacher)))

    assert len(open_inputs(settings(pico_teacher, instances)).examples) == 3  # hidden files are left out
    said = told(instances, caption="a zzqqx cat", prior=dataclasses.replace(PRIOR, prompt="a cat"))
    assert "splits 'zzqqx'" in said
    assert "'cat'" not in said
    (tmp_path / "more" / "inner").mkdir(parents=True)
    picture().save(tmp_path / "more" / "inner" / "a.png")
    said = told(tmp_path / "more", batch_size=1)
    assert "sub-folders" in said
    assert "inner" in said
    assert "one image" in said
    (tmp_path / "empty" / ".ipynb_checkpoints").mkdir(parents=True)
    with pytest.raises(InputError, match=r"empty.*found no"):
        told(tmp_path / "empty")


def test_a_prior_that_can_not_be_made_is_told_before_the_workdir_is_touched(
    pico_teacher: Path, instances: Path, tmp_path: Path
) -> None:
    for changes, said in (
        ({"model": "/no/such/model"}, r"prior\.model: .*/no/such/model"),
        ({"steps": 5000}, r"prior\.steps.*5000"),
    ):
        config = settings(pico_teacher, instances, prior=dataclasses.replace(PRIOR, **changes))
        with pytest.raises(InputError, match=said):
            finetune(config, tmp_path / "run")
    (tmp_path / "broken").mkdir()
    whole = (instances / "0.png").read_bytes()
    (tmp_path / "broken" / "a.png").write_bytes(whole[: len(whole) // 2])  # its header can be read
    with pytest.raises(InputError, match=r"a\.png"):
        finetune(settings(pico_teacher, tmp_path / "broken"), tmp_path / "run")
    with pytest.raises(InputError, match=r"replay: .*class_images"):
        finetune_again(settings(pico_teacher, instances, prior=PRIOR, replay=str(tmp_path / "no" / "such")))
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "class_images").exists()


def test_class_images_have_an_order_and_flips_of_their_own(pico_teacher: Path, instances: Path) -> None:
    config = settings(pico_teacher, instances, flip=True, prior=dataclasses.replace(PRIOR, folder=str(instances)))
    inputs, pipeline = open_inputs(config), load_pipeline(pico_teacher)
    both = loaded(config, pipeline, inputs.examples, None), loaded_prior(config, pipeline, inputs.prior, None)
    task = FinetuneTask(config, inputs.trained, pipeline, *both)
    batches = task.batches(0, range(2))
    pairs = [(one["moments"][0], one["prior"]["moments"][0]) for one in itertools.islice(batches, 8)]
    batches.close()
    same = [np.array_equal(ours[i], theirs[i]) for ours, theirs in pairs for i in range(2)]
    assert 0 < sum(same) < len(same) / 2  # three images and their mirror images


def test_the_next_image_takes_the_place_of_one_that_can_not_be_used(
    pico_teacher: Path, instances: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = shutil.copytree(instances, tmp_path / "broken")
    (broken / "1.png").write_bytes((broken / "1.png").read_bytes()[:60])
    config = settings(pico_teacher, broken, skip_unusable=True)
    examples = Skipping(open_inputs(config).examples, tmp_path / "skipped.csv")
    kept = keep_latents(examples, load_pipeline(pico_teacher), KeptConfig(16, False, 1, 0, "float32"), "here")
    assert [one.name for one in kept] == ["0.png", "2.png", "2.png"]
    assert "1.png" in (tmp_path / "skipped.csv").read_text()
    monkeypatch.setattr(task_module, "train", lambda task, *_, **__: task)
    task = finetune(config, tmp_path / "run")
    assert {name for step in range(3) for name in task.example_names(step)} == {"0.png", "2.png"}
    assert "1.png" in (tmp_path / "run" / "skipped.csv").read_text()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"adapter": AdapterConfig(rank=2, modules=("to_qq",))}, r"adapter\.modules.*'to_qq'.*to_q"),
        ({"adapter": AdapterConfig(rank=2, text_modules=("query",))}, r"adapter\.text_modules.*'query'.*q_proj"),
        ({"adapter": AdapterConfig(rank=2, modules=())}, r"adapter\.modules: empty"),
        ({"only": ("attn3.to_k",)}, r"only.*'attn3\.to_k'"),
        ({"prior": PriorConfig(weight=1.0)}, r"prior\.prompt: empty"),
        ({"adapter": AdapterConfig(text_rank=2)}, r"adapter\.text_rank.*adapter\.rank is 0"),
        ({"adapter": AdapterConfig(rank=2, layout="koya")}, r"adapter\.layout.*'koya'.*'kohya'"),
        ({"adapter": AdapterConfig(rank=-1)}, r"adapter\.rank.*-1"),
        ({"adapter": AdapterConfig(rank=2), "only": ("to_q",)}, r"only: .*adapter\.modules"),
        ({"save_weights": "ema"}, r"save_weights.*ema_decay is 0"),
        ({"resolution": 17}, r"resolution: 17"),
        ({"crops": 0}, r"crops.*0"),
        ({"batch_size": 3, "accumulation": 2}, r"batch_size: 3"),
    ],
)
def test_bad_settings_are_named(pico_teacher: Path, instances: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        open_inputs(settings(pico_teacher, instances, **changes))
    assert "\n" not in str(error.value)


def test_defaults_can_be_used() -> None:
    require_finetune(FinetuneConfig("model", "data"))
