"""Maps Diffusers' PyTorch names of weights to the original single-file layout (CompVis, Stability).

The original U-Net numbers its blocks in the order of the forward pass, so the names follow from the block table. For
students there is a second numbering (`unet_modules`).
"""

from collections.abc import Mapping

from bksdm_jax.models.unet_table import Block, UNetConfig, block_table
from bksdm_jax.models.vae import VAEConfig

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."

_HEADS = {
    UNET: ("input_blocks", "middle_block", "output_blocks", "time_embed", "label_emb", "out"),
    VAE: ("encoder", "decoder", "quant_conv", "post_quant_conv"),
    CLIP: ("text_model",),
    OPEN_CLIP: ("transformer.resblocks", "token_embedding", "ln_final"),
}
OWN_MODULES = tuple(f"{prefix}{head}." for prefix, heads in _HEADS.items() for head in heads)
"""Beginnings of the names of weights that belong to a network."""
OPEN_CLIP_LAYER = f"{OPEN_CLIP}transformer.resblocks.{{}}."
"""Beginning of the names of a layer's weights, with `{}` for the layer."""
_BARE_CLIP = tuple(f"{CLIP}{head}." for head in ("embeddings", "encoder", "final_layer_norm"))
_POSITIONS = f"{CLIP}text_model.embeddings.position_ids"  # 0, 1, 2, ...
_SCHEDULE = (
    *("betas", "logvar", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod"),
    *("sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod"),
    *("sqrt_recipm1_alphas_cumprod", "posterior_variance", "posterior_log_variance_clipped"),
    *("posterior_mean_coef1", "posterior_mean_coef2", "v_pred", "ztsnr"),
)
USUAL_LEFTOVERS = {
    *(_POSITIONS, f"{OPEN_CLIP}text_projection", f"{OPEN_CLIP}logit_scale", f"{OPEN_CLIP}attn_mask", *_SCHEDULE)
}
"""Tensors that most files have and no network uses."""

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
_OPEN_CLIP_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_OPEN_CLIP_STACKED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def current_original_name(name: str) -> str:
    """The usual name of a tensor: some files lack `text_model.` in CLIP's."""
    return name.replace(CLIP, f"{CLIP}text_model.", 1) if name.startswith(_BARE_CLIP) else name


def unet_modules(config: UNetConfig, spaced: bool = False) -> dict[str, str]:
    """Diffusers' name -> original name, for every transformer and every other module with weights.

    If `spaced`, the blocks of a student are numbered with gaps for removed blocks, three numbers per stage as in SD
    itself. Diffusers' conversion script does this, and stable-diffusion.cpp expects it of small U-Nets; the original
    code and tools that infer a U-Net from its names number without gaps.
    """
    modules = dict(_ENDS)
    number = _spaced if spaced else _Consecutive().number
    if config.added is not None:
        modules |= {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
    for row in block_table(config)[0]:
        if row.layer:
            continue  # names inside a transformer are the same in both layouts
        original = number(row)
        if row.kind == "resnet":
            modules |= {f"{row.block}.{ours}": f"{original}.{theirs}" for ours, theirs in _RESNET.items()}
        elif row.kind == "attention":
            modules[row.block] = original
        else:
            modules[f"{row.block}.conv"] = f"{original}.{'op' if row.kind == 'downsampler' else 'conv'}"
    return {ours: UNET + theirs for ours, theirs in modules.items()}


class _Consecutive:
    """Numbers blocks consecutively."""

    def __init__(self) -> None:
        # The current input, output and middle block, and the module in the output block.
        self._entered, self._left, self._middle, self._inside = 0, -1, -1, 0

    def number(self, row: Block) -> str:
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
    """Three numbers per stage; the upsampler is module 1 in the first up stage, else 2, with or without attention."""
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
    """The same for the autoencoder, whose attention projections are 1x1 convolutions [C, C, 1, 1] in this layout."""
    modules = {name: name for name in ("quant_conv", "post_quant_conv")}
    count = len(config.widths)
    for half, side, resampler in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        modules |= {f"{half}.{name}": f"{half}.{name}" for name in ("conv_in", "conv_out")}
        modules[f"{half}.conv_norm_out"] = f"{half}.norm_out"
        for j in (0, 1):
            modules |= _vae_resnet(f"{half}.mid_block.resnets.{j}", f"{half}.mid.block_{j + 1}")
        for ours, theirs in _VAE_ATTENTION.items():
            modules[f"{half}.mid_block.attentions.0.{ours}"] = f"{half}.mid.attn_1.{theirs}"
        for i in range(count):
            stage = f"{half}.{side}.{i if half == 'encoder' else count - 1 - i}"
            for j in range(config.layers_per_block + (half == "decoder")):
                modules |= _vae_resnet(f"{half}.{side}_blocks.{i}.resnets.{j}", f"{stage}.block.{j}")
            modules[f"{half}.{side}_blocks.{i}.{side}samplers.0.conv"] = f"{stage}.{resampler}.conv"
    return {ours: VAE + theirs for ours, theirs in modules.items()}


def text_name(name: str, second: bool) -> tuple[str, int | None]:
    """The original name of a weight of CLIP's text tower or, if `second`, OpenCLIP's.

    OpenCLIP stacks the q, k and v projections: for these also the index in the stack, else None.
    """
    if not second:
        return CLIP + name, None
    inner = name.removeprefix("text_model.")
    if inner in _OPEN_CLIP_ENDS:
        return OPEN_CLIP + _OPEN_CLIP_ENDS[inner], None
    layer, _, rest = inner.removeprefix("encoder.layers.").partition(".")
    module, _, leaf = rest.rpartition(".")
    block = OPEN_CLIP_LAYER.format(layer).rstrip(".")
    if module in _OPEN_CLIP_STACKED:
        return f"{block}.attn.in_proj_{leaf}", _OPEN_CLIP_STACKED.index(module)
    return f"{block}.{_OPEN_CLIP_LAYER[module]}.{leaf}", None


def original_name(name: str, modules: Mapping[str, str]) -> str:
    """The original name of a weight of the U-Net or autoencoder: the longest matching entry of `modules` applies."""
    path = name.split(".")
    for length in range(len(path) - 1, 0, -1):
        module = ".".join(path[:length])
        if module in modules:
            return ".".join([modules[module], *path[length:]])
    raise KeyError(name)


def _vae_resnet(ours: str, theirs: str) -> dict[str, str]:
    inner = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"conv_shortcut": "nin_shortcut"}
    return {f"{ours}.{name}": f"{theirs}.{other}" for name, other in inner.items()}
