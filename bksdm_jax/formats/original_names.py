"""Names of weights in the original single-file layout (CompVis, Stability) against Diffusers' PyTorch names.

The original U-Net numbers its blocks in the order in which they run, so its names follow from the table of blocks, a
student's as a teacher's; for students there is a second way of numbering (`unet_modules`).
"""

from collections.abc import Mapping

from bksdm_jax.models.clip import CLIPTextConfig
from bksdm_jax.models.unet_table import Block, UNetConfig, block_table
from bksdm_jax.models.vae import VAEConfig

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def unet_modules(config: UNetConfig, spaced: bool = False) -> dict[str, str]:
    """Diffusers' name of every module that has weights, or of a transformer -> the original name.

    Args:
        config: the U-Net.
        spaced: number the blocks of a student as if its stages had all of SD's: three numbers to a stage, those of
            removed blocks left out. Diffusers' own conversion script does so, and stable-diffusion.cpp expects it of
            small U-Nets; the original program, and tools that read a U-Net off its names, number without gaps.
    """
    modules = dict(_ENDS)
    place = _spaced if spaced else _Consecutive().place
    if config.added is not None:
        modules |= {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
    for row in block_table(config)[0]:
        if row.layer:
            continue  # the names within a transformer are the same
        original = place(row)
        if row.kind == "resnet":
            modules |= {f"{row.block}.{ours}": f"{original}.{theirs}" for ours, theirs in _RESNET.items()}
        elif row.kind == "attention":
            modules[row.block] = original
        else:
            modules[f"{row.block}.conv"] = f"{original}.{'op' if row.kind == 'downsampler' else 'conv'}"
    return {ours: UNET + theirs for ours, theirs in modules.items()}


class _Consecutive:
    """Numbers blocks as they come."""

    def __init__(self) -> None:
        # The last input, output and middle block; modules of the last output block.
        self._entered, self._left, self._middle, self._inside = 0, -1, -1, 0

    def place(self, row: Block) -> str:
        if row.stage == "mid_block":
            self._middle += 1
            return f"middle_block.{self._middle}"
        if row.stage.startswith("down"):
            self._entered += row.kind != "attention"
            return f"input_blocks.{self._entered}.{int(row.kind == 'attention')}"
        self._left += row.kind == "resnet"
        self._inside = 0 if row.kind == "resnet" else self._inside + 1
        return f"output_blocks.{self._left}.{self._inside}"


def _spaced(row: Block) -> str:
    """Three numbers to a stage; the first up stage's upsampler is module 1, the others' 2, attention or not."""
    j = int(row.leaf.rpartition(".")[2])
    if row.stage == "mid_block":
        return f"middle_block.{1 if row.kind == 'attention' else 2 * j}"
    i = int(row.stage.rpartition(".")[2])
    if row.kind == "downsampler":
        return f"input_blocks.{3 * i + 3}.0"
    if row.kind == "upsampler":
        return f"output_blocks.{3 * i + 2}.{1 if i == 0 else 2}"
    side, number = ("input", 3 * i + j + 1) if row.stage.startswith("down") else ("output", 3 * i + j)
    return f"{side}_blocks.{number}.{int(row.kind == 'attention')}"


def vae_modules(config: VAEConfig) -> dict[str, str]:
    """The same for the autoencoder. Its attention projects with 1x1 convolutions there: [C, C, 1, 1]."""
    modules = {name: name for name in ("quant_conv", "post_quant_conv")}
    count = len(config.widths)
    for half, side, sampler in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        modules |= {f"{half}.{name}": f"{half}.{name}" for name in ("conv_in", "conv_out")}
        modules[f"{half}.conv_norm_out"] = f"{half}.norm_out"
        for j in (0, 1):
            modules |= _vae_resnet(f"{half}.mid_block.resnets.{j}", f"{half}.mid.block_{j + 1}")
        for ours, theirs in _VAE_ATTENTION.items():
            modules[f"{half}.mid_block.attentions.0.{ours}"] = f"{half}.mid.attn_1.{theirs}"
        for i in range(count):
            place = f"{half}.{side}.{i if half == 'encoder' else count - 1 - i}"
            for j in range(config.layers_per_block + (half == "decoder")):
                modules |= _vae_resnet(f"{half}.{side}_blocks.{i}.resnets.{j}", f"{place}.block.{j}")
            modules[f"{half}.{side}_blocks.{i}.{side}samplers.0.conv"] = f"{place}.{sampler}.conv"
    return {ours: VAE + theirs for ours, theirs in modules.items()}


def open_clip_modules(config: CLIPTextConfig) -> dict[str, str]:
    """The same for OpenCLIP's text tower, but for what `open_clip_rows` and the position table hold."""
    modules = {"text_model.embeddings.token_embedding": "token_embedding", "text_model.final_layer_norm": "ln_final"}
    for i in range(config.layers):
        for ours, theirs in _OPEN_CLIP_LAYER.items():
            modules[f"text_model.encoder.layers.{i}.{ours}"] = f"transformer.resblocks.{i}.{theirs}"
    return {ours: OPEN_CLIP + theirs for ours, theirs in modules.items()}


POSITIONS = ("text_model.embeddings.position_embedding.weight", f"{OPEN_CLIP}positional_embedding")
"""OpenCLIP's table of positions is a weight by itself."""


def open_clip_rows(config: CLIPTextConfig) -> dict[str, tuple[str, int]]:
    """Names of what OpenCLIP holds as a third of one tensor's rows -> its name, and which third."""
    return {
        f"text_model.encoder.layers.{i}.self_attn.{part}.{leaf}": (
            f"{OPEN_CLIP}transformer.resblocks.{i}.attn.in_proj_{leaf}",
            third,
        )
        for i in range(config.layers)
        for third, part in enumerate(("q_proj", "k_proj", "v_proj"))
        for leaf in ("weight", "bias")
    }


def original_name(name: str, modules: Mapping[str, str]) -> str:
    """Diffusers' name of a weight -> the original one; `modules` as above. The longest module that fits counts."""
    path = name.split(".")
    for length in range(len(path) - 1, 0, -1):
        module = ".".join(path[:length])
        if module in modules:
            return ".".join([modules[module], *path[length:]])
    raise KeyError(name)


def _vae_resnet(ours: str, theirs: str) -> dict[str, str]:
    inner = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"conv_shortcut": "nin_shortcut"}
    return {f"{ours}.{name}": f"{theirs}.{other}" for name, other in inner.items()}
