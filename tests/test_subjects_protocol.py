"""DreamBooth's evaluation: its file of prompts, what is made of a subject, and the table of all."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import read_json, write_json
from bksdm_jax.data.dreambooth import FILE, read_dreambooth
from bksdm_jax.data.tables import read_prompts, read_table, write_table
from bksdm_jax.evaluation import scorer as scoring
from bksdm_jax.experiments import subjects as module
from bksdm_jax.experiments.subjects import make_subjects
from bksdm_jax.experiments.subjects_config import METRICS, SubjectsConfig, flattened, require_subjects
from bksdm_jax.experiments.subjects_protocol import departures
from bksdm_jax.experiments.subjects_table import subjects_table, table_text
from bksdm_jax.metrics.extractor import Extractor
from bksdm_jax.reports.published import published_subjects
from bksdm_jax.sampling.config import SampleConfig
from bksdm_jax.tasks.finetune.config import FinetuneConfig
from configs.subjects import get_config
from launch.command import to_dataclass

TEXT = """Classes

subject_name,class
mug,mug
old_bear,toy animal
rex,dog

Prompts

Object Prompts

prompt_list = [
'a {0} {1} under a bridge'.format(unique_token, class_token),
'a huge {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} reading a map'.format(unique_token, class_token),
'a huge {0} {1}'.format(unique_token, class_token)
]
"""


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "dataset"
    rng = np.random.default_rng(0)
    for subject, count in (("mug", 2), ("old_bear", 1), ("rex", 3)):
        for number in range(count):
            write_image(folder / subject / f"{number:02d}.jpg", rng, (12, 9))
    (folder / FILE).write_text(TEXT)
    return folder


def write_image(path: Path, rng: np.random.Generator, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(path)


def test_prompts_are_those_of_the_class(dataset: Path) -> None:
    found = read_dreambooth(dataset)
    assert found.classes == {"mug": "mug", "old_bear": "toy animal", "rex": "dog"}
    assert found.prompts("rex", "sks", ("dog",)) == ["a sks dog reading a map", "a huge sks dog"]
    assert found.prompts("old_bear", "{1}", ("dog",)) == ["a {1} toy animal under a bridge", "a huge {1} toy animal"]
    assert found.photographs("rex") == dataset / "rex"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("\n", "\r\n"),
        ("class_token),\n", "class_token), "),
        ("prompt_list = [", "prompt_list = [  # of the paper"),
        ("class_token)\n]", "class_token), ]"),
        ("'a huge {0} {1}'", '"a huge {0} {1}"'),
        ("subject_name,class", "subject_name, class"),
        ("Live Subject Prompts\n\nprompt_list", "live_prompts"),
    ],
)
def test_other_ways_of_writing_the_file(dataset: Path, old: str, new: str) -> None:
    wanted = read_dreambooth(dataset)
    assert old in TEXT
    (dataset / FILE).write_bytes(TEXT.replace(old, new).encode())
    assert read_dreambooth(dataset) == wanted


def test_quotes_within_a_prompt(dataset: Path) -> None:
    (dataset / FILE).write_text(TEXT.replace("reading a map", r"of Sam\'s"))
    assert read_dreambooth(dataset).living[0] == "a {0} {1} of Sam's"


@pytest.mark.parametrize(
    ("old", "new", "facts"),
    [
        ("subject_name,class", "subject,class", ("no line 'subject_name,class'",)),
        ("mug,mug\n", "mug\n", ("line 4", "'mug'", "NAME,CLASS")),
        ("mug,mug\n", "../mug,mug\n", ("line 4", "'../mug,mug'")),
        ("mug,mug\n", "rex,mug\n", ("line 6", "rex", "twice")),
        ("mug,mug\nold_bear,toy animal\nrex,dog\n", "", ("line 5", "NAME,CLASS")),
        ("a {0} {1} reading", "a {0} reading", ("line 20", "{0} and {1}")),
        ("a {0} {1} reading", "a {0} {1} {2} reading", ("line 20", "{0} and {1}")),
        ("a {0} {1} reading", "a {0} {1.x} reading", ("line 20", "{0} and {1}")),
        (" reading a map'.format(unique_token, class_token)", " map'", ("line 20", ".format(")),
        ("map'.format(unique_token, class_token)", "map'.format(__import__('os'), 1)", ("line 20", ".format(")),
        ("class_token)\n]\n\nLive", "class_token)\n\nLive", ("line 16", "Live Subject", "]")),
        ("Live Subject", "Other", ("line 19", "heading")),
        ("Live Subject", "Object", ("line 19", "second list of object")),
        (TEXT[TEXT.index("Live") :], "", ("no list of live",)),
        (TEXT[TEXT.index("'a huge {0} {1}'.format(unique_token, class_token)\n]\n\nLive") :], "", ("the file ends",)),
        ("old_bear,", "old\0bear,", ("line 5", "NUL")),
    ],
)
def test_what_is_wrong_with_the_file(dataset: Path, old: str, new: str, facts: tuple[str, ...]) -> None:
    assert old in TEXT
    (dataset / FILE).write_text(TEXT.replace(old, new))
    with pytest.raises(InputError) as error:
        read_dreambooth(dataset)
    assert "\n" not in str(error.value)
    assert all(fact in str(error.value) for fact in (FILE, *facts)), error.value


class Fakes:
    """Stand-ins for fine-tuning and sampling, which write what the real ones write."""

    def __init__(self) -> None:
        self.tuned: list[tuple[FinetuneConfig, Path]] = []
        self.sampled: list[tuple[SampleConfig, Path]] = []
        self.interrupted = False

    def finetune(self, config: FinetuneConfig, workdir: Path) -> Path | None:
        self.tuned.append((config, workdir))
        workdir.mkdir(parents=True, exist_ok=True)
        if self.interrupted:
            return None
        return workdir / ("lora.safetensors" if config.adapter.rank else "model")

    def sample(self, config: SampleConfig, workdir: Path) -> int:
        self.sampled.append((config, workdir))
        prompts = [prompt for prompt in read_prompts(config.prompts) for _ in range(config.images_per_prompt)]
        rng = np.random.default_rng(len(self.sampled))
        rows = [(f"images/{i:06d}.png", prompt.text, prompt.source) for i, prompt in enumerate(prompts)]
        for name, *_ in rows:
            write_image(workdir / name, rng)
        write_table(workdir / "metadata.csv", ("file_name", "text", "source"), rows)
        return len(rows)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    fakes = Fakes()
    for name in ("finetune", "sample"):
        monkeypatch.setattr(module, name, getattr(fakes, name))
    return fakes


def config_of(folder: Path, subject: str = "rex", variants: str = "", **more: Any) -> SubjectsConfig:
    own = get_config(variants)
    own.update_from_flattened_dict({"dataset": str(folder), "subject": subject, "model": "shapes_teacher"} | more)
    return to_dataclass(SubjectsConfig, own)


def test_a_subject_is_tuned_and_sampled(fakes: Fakes, dataset: Path, tmp_path: Path) -> None:
    assert make_subjects(config_of(dataset, resolution=64), tmp_path / "out") == tmp_path / "out" / "rex"
    ((tuning, folder),) = fakes.tuned
    assert folder == tmp_path / "out" / "rex" / "training"
    assert (tuning.model, tuning.data, tuning.resolution) == ("shapes_teacher", str(dataset / "rex"), 64)
    assert (tuning.caption, tuning.prior.prompt) == ("a sks dog", "a dog")
    assert (tuning.steps, tuning.batch_size, tuning.optimizer.learning_rate) == (800, 1, 1e-6)
    assert (tuning.prior.weight, tuning.prior.images) == (1, 200)
    assert (tuning.text_encoder, tuning.random_crop, tuning.adapter.rank) == (True, True, 0)
    ((sampling, folder),) = fakes.sampled
    assert folder == tmp_path / "out" / "rex" / "images"
    assert sampling.model == str(tmp_path / "out" / "rex" / "training" / "model")
    assert (sampling.sampler, sampling.steps, sampling.guidance_scale) == ("dpmpp_2m", 25, 7.5)
    assert (sampling.images_per_prompt, sampling.resolution, sampling.lora) == (4, 64, ())
    rows = read_table(tmp_path / "out" / "rex" / "metadata.csv", ("file_name", "text", "subject"))
    assert len(rows) == 8
    assert rows[4] == {"file_name": "images/images/000004.png", "text": "a huge sks dog", "subject": "rex"}
    assert all((tmp_path / "out" / "rex" / row["file_name"]).is_file() for row in rows)


def test_a_lora_is_sampled_with_its_model(fakes: Fakes, dataset: Path, tmp_path: Path) -> None:
    make_subjects(config_of(dataset, "mug", "lora", lora=("style=0.5",)), tmp_path / "out")
    tuning, adapter = fakes.tuned[0][0], fakes.tuned[0][0].adapter
    assert (tuning.caption, tuning.optimizer.learning_rate) == ("a sks mug", 1e-4)
    assert (adapter.rank, adapter.alpha, adapter.modules) == (16, 27, ("to_q", "to_v"))
    assert (adapter.text_rank, adapter.text_alpha, adapter.text_modules) == (16, 17, ("q_proj", "v_proj"))
    sampling = fakes.sampled[0][0]
    made = str(tmp_path / "out" / "mug" / "training" / "lora.safetensors")
    assert (sampling.model, sampling.lora) == ("shapes_teacher", ("style=0.5", made))


def test_what_is_finished_is_not_made_again(fakes: Fakes, dataset: Path, tmp_path: Path) -> None:
    own = config_of(dataset)
    fakes.interrupted = True
    assert make_subjects(own, tmp_path / "out") is None
    assert (len(fakes.tuned), len(fakes.sampled)) == (1, 0)
    fakes.interrupted = False
    make_subjects(own, tmp_path / "out")
    make_subjects(own, tmp_path / "out")
    assert (len(fakes.tuned), len(fakes.sampled)) == (2, 1)
    assert make_subjects(dataclasses.replace(own, subject="all"), tmp_path / "out") == tmp_path / "out"
    assert [config.caption for config, _ in fakes.tuned[2:]] == ["a sks mug", "a sks toy animal"]
    assert (tmp_path / "out" / "rex" / "training").is_dir()
    make_subjects(dataclasses.replace(own, keep_training=False), tmp_path / "out")
    assert not (tmp_path / "out" / "rex" / "training").exists()
    assert len(fakes.tuned) == 4
    with pytest.raises(InputError, match=r"rex/config\.json: .*steps is 800.*, now 400"):
        make_subjects(dataclasses.replace(own, steps=400), tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"named": "rax"}, ("subject", "'rax'", "'rex'")),
        ({"named": "all"}, ("cup", "photographs")),
        ({"dataset": "/no/such"}, ("dataset", "/no/such", FILE)),
        ({"model": ""}, ("model", "--config.model")),
        ({"model": "/no/such/model"}, ("/no/such/model",)),
        ({"data": "photos"}, ("data", "'photos'", "dataset")),
        ({"prior.prompt": "a dog"}, ("prior.prompt", "'a dog'")),
        ({"checkpoints": "gs://b/x"}, ("checkpoints",)),
        ({"token": "two words"}, ("token", "'two words'")),
        ({"sampling.sampler": "magic"}, ("sampler", "'magic'")),
        ({"sampling.images_per_prompt": 0}, ("images_per_prompt", "0")),
        ({"steps": 0}, ("steps", "0")),
        ({"scoring.dtype": "float16"}, ("float16",)),
        ({"resolution": 60}, ("resolution", "60")),
    ],
)
def test_what_cannot_be_used_is_told_first(
    fakes: Fakes, dataset: Path, tmp_path: Path, changes: dict[str, Any], facts: tuple[str, ...]
) -> None:
    changes = dict(changes)
    (dataset / FILE).write_text(TEXT.replace("mug,mug", "mug,mug\ncup,mug"))  # a subject without photographs
    subject = changes.pop("named", "rex")
    with pytest.raises(InputError) as error:
        make_subjects(config_of(dataset, subject, **changes), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert all(fact in str(error.value) for fact in facts), error.value
    assert not fakes.tuned
    assert not (tmp_path / "out").exists()


def test_the_workdir_of_another_program_is_refused(fakes: Fakes, dataset: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"teacher": "x"})
    with pytest.raises(InputError, match="another program"):
        make_subjects(config_of(dataset), tmp_path)


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins whose features are an image's mean colour, and CLIP's cosine a caption's number of words."""

    def program(params: np.ndarray, images: np.ndarray, text: np.ndarray | None) -> dict[str, np.ndarray]:
        features = {"cls": colours(images), "image": colours(images)}
        return features if text is None else features | {"clip_cosine": np.asarray(text)}

    for name, weights in (("clip", "g"), ("dino", "facebook/dino-vits16")):
        facts = {"weights": weights, "sha256": name, "resize": "clean", "dtype": "float32", "architecture": "ViT-g-14"}
        extractor = Extractor(
            lambda image: np.asarray(Image.fromarray(image).resize((4, 4))),
            np.float32(0),
            program,
            text=lambda captions: np.array([len(text.split()) for text in captions], np.float32),
            facts=facts,
        )
        monkeypatch.setitem(scoring.EXTRACTORS, name, lambda config, own=extractor: own)


def colours(images: np.ndarray) -> np.ndarray:
    return np.asarray(images, np.float32).mean(axis=(1, 2)) - np.float32(100)


def of_files(paths: list[Path]) -> np.ndarray:
    found = colours(np.stack([np.asarray(Image.open(path).resize((4, 4))) for path in paths])).astype(np.float64)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.usefixtures("networks")
def test_the_table(fakes: Fakes, dataset: Path, tmp_path: Path) -> None:
    out, cache = tmp_path / "out", {"scoring.cache": str(tmp_path / "cache"), "sampling.images_per_prompt": 3}
    for name in ("rex", "mug"):
        make_subjects(config_of(dataset, name, **cache, **{"prior.folder": f"photos of a {name}"}), out)
    table = config_of(dataset, "", **cache, **{"model": "", "steps": 7})  # of the finished ones, not of the command
    found = subjects_table(table, out)
    assert found == read_json(out / "subjects.json")
    wanted = {}
    for name in ("mug", "rex"):
        ours, theirs = (
            of_files(sorted(place.glob("*.*g"))) for place in (out / name / "images/images", dataset / name)
        )
        wanted[name] = (ours @ theirs.T).mean()
        pairs = theirs @ theirs.T
        real = (pairs.sum() - len(pairs)) / (len(pairs) * (len(pairs) - 1))
        own = found["subjects"][name]
        assert own["dino"]["value"] == own["clip_i"]["value"] == pytest.approx(wanted[name], abs=1e-6)
        assert own["dino"]["low"] < own["dino"]["value"] < own["dino"]["high"]
        assert own["real_dino"] == pytest.approx(real, abs=1e-6)
    assert found["mean"]["dino"]["value"] == pytest.approx(np.mean(list(wanted.values())), abs=1e-6)
    assert found["mean"]["dino"]["low"] < found["mean"]["dino"]["value"]
    words = {"mug": (6 + 4) / 2, "rex": (6 + 4) / 2}  # "a sks mug under a bridge", "a huge sks mug"
    assert {name: own["clip_t"]["value"] for name, own in found["subjects"].items()} == words
    assert found["missing"] == ["old_bear"]
    assert found["images"] == 12
    says = "\n".join(found["departures"])
    assert all(part in says for part in ("subjects 2, not 30", "subject 2", "photographs 6", "images_per_prompt 3"))
    assert not any(part in says for part in ("steps", "CLIP", "DINO", "learning_rate"))
    printed = table_text(found)
    assert all(part in printed for part in ("not finished: old_bear", "published, arXiv", "0.728 ", "with the word"))
    with (out / "subjects.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["subject"] for row in rows] == ["mug", "rex", "mean"]
    assert float(rows[-1]["dino"]) == found["mean"]["dino"]["value"]
    assert float(rows[1]["clip_i_low"]) == found["subjects"]["rex"]["clip_i"]["low"]

    stripped = subjects_table(
        dataclasses.replace(table, scoring=dataclasses.replace(table.scoring, strip_token=True)), out
    )
    assert stripped["mean"]["clip_t"]["value"] == found["mean"]["clip_t"]["value"] - 1
    assert stripped["mean"]["dino"] == found["mean"]["dino"]
    make_subjects(config_of(dataset, "old_bear", **cache), out)  # has a single photograph
    more = subjects_table(table, out)
    assert (more["missing"], more["images"]) == ([], 18)
    assert more["subjects"]["old_bear"]["real_dino"] is None
    assert more["subjects"]["rex"] == found["subjects"]["rex"]


@pytest.mark.usefixtures("networks")
def test_a_table_needs_subjects_that_were_made_alike(fakes: Fakes, dataset: Path, tmp_path: Path) -> None:
    table = config_of(dataset, "", **{"scoring.cache": str(tmp_path / "cache")})
    with pytest.raises(InputError, match="no finished subject"):
        subjects_table(table, tmp_path / "out")
    make_subjects(config_of(dataset, "mug"), tmp_path / "out")
    make_subjects(config_of(dataset, "rex", **{"optimizer.learning_rate": 2e-6}), tmp_path / "out")
    with pytest.raises(InputError, match=r"rex/config\.json: optimizer\.learning_rate is 2e-06, but 1e-06 for mug"):
        subjects_table(table, tmp_path / "out")


def test_the_papers_evaluation_departs_in_nothing() -> None:
    own = {"dtype": "float32", "weights": "facebook/dino-vits16", "architecture": "ViT-g-14"}
    networks = {"clip": own, "dino": own}

    def said(variants: str, subjects: int = 30, **networks_more: Any) -> list[str]:
        config = config_of(Path("dataset"), variants=variants)
        settings = json.loads(json.dumps(flattened(dataclasses.asdict(config))))  # as in a subject's config.json
        return departures(settings, subjects, {25}, 158, networks | networks_more)

    assert said("v1") == []
    assert said("v1", 29) == ["subjects 29, not 30"]
    assert len(said("v1,lora")) == 5
    assert {one.split()[0] for one in said("")} == {"token", "prior.model"}
    assert said("v1", clip=own | {"architecture": "ViT-L-14"}) == ["CLIP ViT-L-14, not ViT-g-14"]
    assert said("v1", dino=own | {"dtype": "bfloat16"}) == ["dino in bfloat16"]


def test_variants() -> None:
    for name in ("v1", "sd", "bk_base", "bk_small", "bk_tiny", "v1,bk_tiny,lora", "v1,runlocal"):
        own = get_config(name)
        own.update({"dataset": "DIR", "subject": "rex", "model": own.model or "DIR"})
        require_subjects(to_dataclass(SubjectsConfig, own))
    assert own.token == "sks11df"
    with pytest.raises(ValueError, match="bk_base and bk_tiny"):
        get_config("bk_base,bk_tiny")
    assert published_subjects()["SD v1.4: Small"] == (0.720, 0.705, 0.259)
    assert published_subjects()["SD v1.4"]._fields == METRICS
