"""Mutants of a model's configs: the commands that read one end in a result or in one line that says what is wrong.

`FUZZ` is the number of mutants; `MUTANT` is one mutant, as a failure prints it, to run instead of them.
"""

import collections
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from PIL import Image
from safetensors.numpy import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from bksdm_jax.formats import (
    clip_json,
    locate,
    missing_blocks,
    peft_settings,
    scheduler_json,
    unet_depths,
    unet_json,
    vae_json,
)
from bksdm_jax.pipelines import folder, passthrough, tokenizer
from bksdm_jax.pipelines.embedded import clip_folder
from bksdm_jax.pruning import stored_plan
from bksdm_jax.pruning.prune import PruneConfig, prune
from tests import mutations, tiny
from tests.conftest import ROOT

COUNT = int(os.environ.get("FUZZ", "30"))
MOST_WAIT = 120  # seconds, for what waits without computing; `tests.fuzz_worker` bounds computing
PLAN = "removal_plan.json"  # unread beside a model
INDEX = "unet/diffusion_pytorch_model.safetensors.index.json"
CLIP = mutations.keys_read(clip_json)
COMMANDS = ("prune", "sample", "cost", "plan", "train")
BASES = ("shards", "words", "file", "clip", "lora")
KNOWN = {
    "model_index.json": [*mutations.keys_read(passthrough), "StableDiffusionPipeline"],
    "unet/config.json": mutations.keys_read(unet_json, unet_depths, missing_blocks),
    "vae/config.json": mutations.keys_read(vae_json),
    "text_encoder/config.json": CLIP,
    "config.json": CLIP,
    "scheduler/scheduler_config.json": [*mutations.keys_read(scheduler_json, folder), "linear", "trailing"],
    "tokenizer/tokenizer_config.json": [
        *mutations.keys_read(tokenizer),
        "added_tokens_decoder",
        "extra_special_tokens",
    ],
    INDEX: mutations.keys_read(locate),
    "adapter_config.json": mutations.keys_read(peft_settings),
    "removal_plan.json": mutations.keys_read(stored_plan),
}
"""File -> keys that its reader knows."""
V2 = tiny.MICRO | {"attention_head_dim": 1, "use_linear_projection": True, "norm_num_groups": 32}


def test_what_readers_look_at_can_be_changed() -> None:
    keys = KNOWN["unet/config.json"]
    assert {"num_attention_heads", "reverse_transformer_layers_per_block", "addition_time_embed_dim"} <= set(keys)
    assert {"trained_betas", "clip_sample_range", "thresholding"} <= set(KNOWN["scheduler/scheduler_config.json"])
    assert {"shift_factor", "scaling_factor"} <= set(KNOWN["vae/config.json"])
    assert {"hidden_act", "text_config", "image_size"} <= set(CLIP)
    assert {"weight_map"} <= set(KNOWN[INDEX])
    assert {"lora_alpha", "alpha_pattern", "use_rslora"} <= set(KNOWN["adapter_config.json"])
    assert {"removed", "blocks", "layers"} <= set(KNOWN["removal_plan.json"])


@pytest.fixture(scope="module")
def bases(micro_torch_teacher: Path) -> Iterator[Path]:
    """The models `shards`, `words` (a tokenizer without `tokenizer.json`), `file` and `clip`, a `lora`, and `data`."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        root = Path(name)
        for base in ("shards", "words"):
            _write_folder(root / base, micro_torch_teacher)
        _split(root / "shards" / "unet")
        (root / "words" / "tokenizer" / "tokenizer.json").unlink()
        shutil.copytree(clip_folder(), root / "clip")
        _write_file(root / "file")
        _write_lora(root / "lora", micro_torch_teacher)
        (root / "data").mkdir()
        lines = ["file_name,text"]
        for i in range(4):
            Image.fromarray(np.full((16, 16, 3), 60 * i, np.uint8)).save(root / "data" / f"{i}.png")
            lines.append(f"{i}.png,a cat")
        (root / "data" / "metadata.csv").write_text("\n".join(lines))
        yield root


def _write_folder(target: Path, teacher: Path) -> None:
    """A teacher with all the files that a folder may have."""
    shutil.copytree(teacher, target)
    index = json.loads((target / "model_index.json").read_text())
    index |= {
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    }
    tokens = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    files = {
        "model_index.json": index,
        "feature_extractor/preprocessor_config.json": {"do_resize": True, "size": {"shortest_edge": 224}},
        "safety_checker/config.json": {"architectures": ["StableDiffusionSafetyChecker"], "projection_dim": 8},
        "safety_checker/model.safetensors.index.json": {"weight_map": {"bias": "model-00001-of-00001.safetensors"}},
        "tokenizer/special_tokens_map.json": tokens | {"pad_token": {"content": "<|endoftext|>", "lstrip": False}},
        "tokenizer/added_tokens.json": {"<|endoftext|>": 599, "<|startoftext|>": 598},
    }
    for name, value in files.items():
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_text(json.dumps(value))
    shard = target / "safety_checker" / "model-00001-of-00001.safetensors"
    save_file({"bias": np.zeros(2, np.float32)}, shard)


def _split(unet: Path) -> None:
    """Puts a U-Net's weights in two shards."""
    whole = unet / "diffusion_pytorch_model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    places = {name: f"{whole.stem}-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for shard in set(places.values()):
        save_file({name: tensor for name, tensor in tensors.items() if places[name] == shard}, unet / shard)
    (unet.parent / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))


def _write_lora(target: Path, teacher: Path) -> None:
    """A LoRA of PEFT, beside the removal plan of a student."""
    name, text = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "encoder.layers.0.mlp.fc1"
    shapes = {f"base_model.model.{name}": (32, 32), f"text_encoder.{text}": (64, 32)}
    tensors = {f"{stem}.lora_A.weight": np.ones((2, shape[1]), np.float32) for stem, shape in shapes.items()}
    tensors |= {f"{stem}.lora_B.weight": np.ones((shape[0], 2), np.float32) for stem, shape in shapes.items()}
    target.mkdir()
    save_file(tensors, target / "adapter_model.safetensors", {"lora_adapter_metadata": '{"unet.lora_alpha": 3}'})
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {"to_q": 1}, "use_rslora": True}
    (target / "adapter_config.json").write_text(json.dumps(settings))
    prune(PruneConfig(str(teacher), tiny.MICRO_STUDENT), target.with_name("pruned"))
    shutil.copy(target.with_name("pruned") / "removal_plan.json", target)
    shutil.rmtree(target.with_name("pruned"))


def _write_file(target: Path) -> None:
    """A single file in SD 2.x's layout, beside a tokenizer."""
    text = CLIPTextConfig(
        vocab_size=600, hidden_size=tiny.CONTEXT, intermediate_size=64, num_hidden_layers=2, num_attention_heads=1
    )
    text.hidden_act = "gelu"
    teacher = target.with_name("teacher")
    tiny.write_torch_pipeline(teacher, V2, vae=tiny.MICRO_VAE, text=tiny.randomize(CLIPTextModel(text), 2))
    prune(PruneConfig(str(teacher), "sd", format="single_file"), target)
    shutil.copytree(teacher / "tokenizer", target / "tokenizer")
    shutil.rmtree(teacher)


class Worker:
    """The process that runs mutants; a new one follows one that a mutant has ended."""

    def __init__(self, bases: Path) -> None:
        self._bases, self._errors = bases, bases / "errors.txt"
        self._process: subprocess.Popen[str] | None = None

    def ended(self, mutant: mutations.Mutant) -> dict[str, str]:
        """Command -> how it ended, as `fuzz_worker.ended` has it."""
        if self._process is None:
            self._start()
            for base in BASES:  # also does what only a first call does
                found = self._ask({"base": base, "changes": []})
                assert set(found.values()) == {"reached"}, found
        return self._ask(mutant)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> None:
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz_worker", str(self._bases), tiny.MICRO_STUDENT],
                cwd=ROOT,
                env=os.environ | {"XLA_FLAGS": ""},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def _ask(self, mutant: mutations.Mutant) -> dict[str, str]:
        self._process.stdin.write(f"{mutations.described(mutant)}\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], MOST_WAIT)
        answer = self._process.stdout.readline() if ready else ""
        if answer:
            return json.loads(answer)
        self.close()
        return {"process": f"failed: ended, or waits:\n{self._errors.read_text(errors='replace')[-6000:]}"}


def test_mutants_end_in_a_result_or_a_line(bases: Path) -> None:
    worker = Worker(bases)
    worker.ended({"base": "shards", "changes": []})
    suffixes = (".json", ".safetensors")
    files = {
        base: {
            path.relative_to(bases / base).as_posix(): path.read_bytes()
            for path in sorted((bases / base).rglob("*"))
            if path.suffix in suffixes and "config" not in path.parts and (base == "lora" or path.name != PLAN)
        }
        for base in BASES
    }
    counts: collections.Counter[str] = collections.Counter()
    failures: dict[str, tuple[mutations.Mutant, str]] = {}

    def check(mutant: mutations.Mutant) -> None:
        for command, end in worker.ended(mutant).items():
            counts[f"{command} {end.split(':')[0]}"] += 1
            if end.startswith("failed"):
                key = f"{command}: {_place(end)}"
                if key not in failures or len(mutant["changes"]) < len(failures[key][0]["changes"]):
                    failures[key] = mutant, end
                    print(f"MUTANT='{mutations.described(mutant)}'\n{end}", flush=True)  # long runs show it at once

    @settings(
        max_examples=COUNT,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(mutations.mutants(files, KNOWN))
    def check_all(mutant: mutations.Mutant) -> None:
        check(mutant)

    try:
        if "MUTANT" in os.environ:
            check(json.loads(os.environ["MUTANT"]))
        else:
            check_all()
    finally:
        worker.close()
    said = [f"MUTANT='{mutations.described(mutant)}'\n{end}" for mutant, end in failures.values()]
    if said:
        pytest.fail(f"{len(said)} kinds of failures, of each the shortest\n" + "\n\n".join(said), pytrace=False)
    if "MUTANT" not in os.environ:  # the readers refuse many, and many come through
        assert min(counts[f"{command} reached"] for command in COMMANDS) > COUNT / 10, counts
        assert counts["find refused"] > COUNT / 10, counts


def _place(end: str) -> str:
    """Type and innermost line of this package in a failure: mutants that fail alike count as one."""
    lines = [line.strip() for line in end.splitlines()]
    ours = [line for line in lines if line.startswith("File") and "bksdm_jax" in line]
    return f"{ours[-1] if ours else ''} {lines[-1].split(':')[0] if lines else ''}"
