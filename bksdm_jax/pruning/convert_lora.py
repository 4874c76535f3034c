"""Converts a teacher's LoRA for a student: blocks get the student's numbers, and removed ones go."""

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.folders import atomic_folder
from bksdm_jax.base.paths import local_path
from bksdm_jax.base.progress import QUIET, waiting
from bksdm_jax.base.workdir import is_used
from bksdm_jax.formats.lora_file import LoraFile, read_lora_file
from bksdm_jax.formats.lora_names import TEXT, UNET, original_prefixes
from bksdm_jax.formats.low_rank import LowRank
from bksdm_jax.formats.unet_json import unet_from_diffusers
from bksdm_jax.formats.write_lora import write_lora
from bksdm_jax.models.unet_table import block_table
from bksdm_jax.pipelines.generations import TEACHERS
from bksdm_jax.pipelines.hub import hub_folder, is_hub_id
from bksdm_jax.pipelines.load import find_model
from bksdm_jax.pipelines.lora import find_lora, fitted, lora_metadata, lora_sha256, places, tell_unplaced
from bksdm_jax.pipelines.model_card import CONFIGS, parent_name
from bksdm_jax.pipelines.pipeline import Architectures
from bksdm_jax.pruning.lora_config import ConvertLoraConfig, require_conversion
from bksdm_jax.pruning.removal import INTERPOLATE
from bksdm_jax.pruning.stored_plan import PLAN, StoredPlan, block_of_module, read_plan

_REMOVED = "bksdm_jax.removed"
"""Metadata of a converted LoRA: the student's removed blocks."""
_OUTSIDE = "outside the blocks"
_OTHERS = ("conv_in", "conv_out", "time_embedding.", "add_embedding.")  # modules there
_TEXTS = (".json", ".txt")  # configs and the tokenizer's files
_KEPT = ("ss_base_model_version", "ss_v2", "ss_tag_frequency", "modelspec.architecture", "modelspec.trigger_phrase")
"""Metadata of the teacher's LoRA that hold for the student's."""


@dataclasses.dataclass(frozen=True)
class Moved:
    """What became of one block of the teacher.

    Attributes:
        teacher: its name.
        student: the student's; empty: it was removed.
        modules: how many have an adapter.
        squares: the sum of squares of their updates' entries; of DoRA's, before its magnitudes.
        lost: how much of it was removed.
    """

    teacher: str
    student: str
    modules: int
    squares: float
    lost: float


def convert_lora(config: ConvertLoraConfig, workdir: Path) -> tuple[Path, list[Moved]]:
    """Writes a teacher's LoRA for a student to a new folder.

    Returns:
        the file, and what became of every block that has an adapter, in the order of the file.

    Raises:
        InputError: a file can't be used, the LoRA isn't the teacher's, or nothing of it would be left.
    """
    require_conversion(config)
    plan_path, student = _student(config.model)
    plan = read_plan(plan_path)
    if is_used(workdir):
        raise InputError(f"{workdir}: exists already; choose a new folder for the LoRA")
    paths, moved, made = find_lora(config.lora), list[Moved](), list[LoraFile]()
    for path in paths:
        with waiting("reading the LoRA", QUIET):
            found = read_lora_file(path, _original_names(plan))
        if _REMOVED in found.metadata:
            raise InputError(f"{path}: converted already, for a student; give the teacher's own LoRA")
        foreign = _foreign(found, plan, places(student) if student else None)
        strangers = [*found.strangers, *(key for network, module in foreign for key in found.keys[network][module])]
        tell_unplaced(path, strangers, config.allow_unplaced_lora, "teacher")
        file, of_blocks = converted(_without(found, foreign), plan)
        made.append(file)
        moved += of_blocks
    layers = {network: modules for file in made for network, modules in file.layers.items() if modules}
    if not layers:
        raise InputError(f"{paths[0]}: nothing would be left: all blocks that it changes were removed in {plan_path}")
    if student is not None:
        fitted(made, student, allow_unplaced=False)
    metadata = {key: value for file in made for key, value in file.metadata.items() if key in _KEPT}
    metadata |= (lora_metadata(student) if student else {}) | _origin(config, plan, paths)
    name = Path(config.lora).resolve().name if Path(config.lora).exists() else parent_name(config.lora)
    file_name = f"{name.rpartition('/')[2].removesuffix(paths[0].suffix)}.safetensors"
    with atomic_folder(workdir, replace=False) as folder:
        try:
            write_lora(folder / file_name, layers, config.layout, config.save_dtype, metadata)
        except InputError as error:  # it names a folder that is gone by now
            raise InputError(str(error).replace(str(folder), str(workdir))) from error
    return workdir / file_name, moved


def converted(file: LoraFile, plan: StoredPlan) -> tuple[LoraFile, list[Moved]]:
    """A teacher's LoRA under the student's names, and what became of each block; text encoders stay as they are."""
    layers: dict[str, dict[str, LowRank]] = defaultdict(dict)
    keys: dict[str, dict[str, tuple[str, ...]]] = defaultdict(dict)
    blocks: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for network, modules in file.layers.items():
        for module, layer in modules.items():
            name = plan.renamed(module) if network == UNET else module
            if name:
                layers[network][name], keys[network][name] = layer, file.keys[network][module]
            block = (block_of_module(module) or _OUTSIDE) if network == UNET else network
            blocks[block].append((layer.squared_norm(), name))
    moved = []
    for block, entries in blocks.items():
        squares, lost = sum(square for square, _ in entries), sum(square for square, name in entries if not name)
        student = plan.students.get(block, "") if block_of_module(block) else block
        moved.append(Moved(block, student, len(entries), squares, lost))
    return dataclasses.replace(file, layers=dict(layers), keys=dict(keys), strangers=()), moved


def moved_table(moved: Sequence[Moved]) -> str:
    """The blocks as text: where each went, and its share of the update, by the sum of squares of its entries."""
    total = sum(one.squares for one in moved) or 1.0
    lines = [f"{'teacher block':<30}{'student block':<30}{'modules':>8}{'share of the update':>21}"]
    for one in moved:
        student = one.student or "removed"
        lines.append(f"{one.teacher:<30}{student:<30}{one.modules:>8}{one.squares / total:>20.2%}")
    lost, of_unet = sum(one.lost for one in moved), sum(one.squares for one in moved if one.teacher != TEXT) or 1.0
    lines += ["", f"removed: {lost / total:.2%} of the update, {lost / of_unet:.2%} of the U-Net's"]
    return "\n".join(lines)


def _student(name: str) -> tuple[Path, Architectures | None]:
    """A student's removal plan and, if its configs are there, its networks."""
    if is_hub_id(name):
        folder = hub_folder(name, "", lambda files: [file for file in files if file.endswith(_TEXTS)])
        if not (folder / PLAN).is_file():
            raise InputError(f"model: {name}: it has no {PLAN}; expected a student that launch.prune or .train wrote")
        path = folder / PLAN
    else:
        path = local_path("model", name)
        path = path / PLAN if path.is_dir() else path
    plan = path if path.suffix == ".json" else path.with_name(PLAN)  # or beside a student's single file
    if not plan.is_file():
        raise InputError(f"model: {plan}: no such file; expected a student that launch.prune or .train wrote")
    for folder in (plan.parent, plan.parent / CONFIGS):
        if (folder / UNET / "config.json").is_file():
            return plan, find_model(folder, networks=()).architectures
    return plan, None


def _original_names(plan: StoredPlan) -> dict[str, str]:
    """Names of the original layout, of a teacher that has Stable Diffusion's blocks; else none are understood."""
    config = unet_from_diffusers(TEACHERS["v1"])
    known = {row.block for row in block_table(config)[0]}
    return original_prefixes(config) if plan.students.keys() <= known else {}


def _foreign(file: LoraFile, plan: StoredPlan, known: Mapping[str, Collection[str]] | None) -> list[tuple[str, str]]:
    """Network and name of modules that the teacher doesn't have, as far as that can be seen.

    Those of blocks that neither remain nor were removed, and those that a student whose modules are `known` lacks.
    """
    removed = [name.removesuffix(INTERPOLATE) for name in plan.removed]
    stages = {name for name in removed if not block_of_module(name)}
    gone = {block_of_module(name) for name in removed} - {""}

    def is_known(block: str) -> bool:
        stage = block.rsplit(".", 2)[0]
        resampler = "samplers" in block  # the last stages lose theirs without a word
        return block in plan.students or block in gone or stage in stages or resampler

    found = []
    for network, modules in file.layers.items():
        for module in modules:
            block = block_of_module(module) if network == UNET else ""
            name = plan.renamed(module) if network == UNET else module
            odd = not (is_known(block) if block else network != UNET or module.startswith(_OTHERS))
            if odd or (known is not None and name and name not in known[network]):
                found.append((network, module))
    return found


def _without(file: LoraFile, foreign: Collection[tuple[str, str]]) -> LoraFile:
    """The file without some modules."""
    layers = {
        network: {module: layer for module, layer in modules.items() if (network, module) not in foreign}
        for network, modules in file.layers.items()
    }
    return dataclasses.replace(file, layers=layers)


def _origin(config: ConvertLoraConfig, plan: StoredPlan, paths: Collection[Path]) -> dict[str, str]:
    """Metadata that say where the file comes from."""
    name = parent_name(config.lora)
    return {
        "modelspec.title": f"{name}, for a student",
        "bksdm_jax.converted_from": name,
        "bksdm_jax.converted_from_sha256": lora_sha256(tuple(paths)),
        _REMOVED: ",".join(plan.removed),
    }
