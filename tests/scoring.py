"""For tests of scores: the FID Inception with random weights, in PyTorch, and two sets of images that differ."""

from pathlib import Path

import numpy as np
import skimage.data
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance
from safetensors.torch import save_file

from bksdm_jax.data.decode import to_rgb
from bksdm_jax.formats import names
from bksdm_jax.models.inception import inception_parameter_shapes

PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket", "hubble_deep_field", "immunohistochemistry", "retina")
State = dict[str, torch.Tensor]


def photograph(name: str) -> np.ndarray:
    """One of scikit-image's, as it is stored."""
    return getattr(skimage.data, name)()


def rgb_photographs() -> dict[str, np.ndarray]:
    """By name, uint8 [H, W, 3]: large and small, upright and wide, and from files of other kinds of pixels."""
    chelsea, camera = Image.fromarray(photograph("chelsea")), photograph("camera")
    deep = Image.fromarray(camera[:200].astype(np.uint16) * 257)
    images = {name: Image.fromarray(photograph(name)) for name in ("astronaut", "coffee", "hubble_deep_field")}
    images |= {
        "small": Image.fromarray(photograph("coffee")[100:160, 200:247]),
        "grey": Image.fromarray(camera),
        "alpha": Image.fromarray(photograph("logo")),
        "palette": chelsea.quantize(64),
        "16-bit": deep,
    }
    assert [images[name].mode for name in ("grey", "alpha", "palette", "16-bit")] == ["L", "RGBA", "P", "I;16"]
    return {name: np.asarray(to_rgb(image)) for name, image in images.items()}


def image_sets(count: int, size: int = 64, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random crops of photographs, and other crops of duller and darker ones, each uint8 [count, size, size, 3]."""
    rng = np.random.default_rng(seed)
    sources = [Image.fromarray(photograph(name)) for name in PHOTOGRAPHS]

    def crop(changed: bool) -> np.ndarray:
        image = sources[rng.integers(len(sources))]
        side = int(rng.integers(size, min(image.size)))
        left, top = (int(rng.integers(length - side + 1)) for length in image.size)
        image = image.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
        if changed:
            image = ImageEnhance.Brightness(ImageEnhance.Color(image).enhance(0.4)).enhance(0.7)
        return np.asarray(image)

    first, second = (np.stack([crop(changed) for _ in range(count)]) for changed in (False, True))
    return first, second


def random_state(seed: int = 0) -> State:
    """Random weights with pytorch-fid's names; batch normalisation has about the statistics of photographs."""
    generator = torch.Generator().manual_seed(seed)
    shapes = names.torch_shapes(inception_parameter_shapes())
    state = {"fc.bias": torch.randn(shapes["fc.weight"][0], generator=generator)}
    for name, shape in shapes.items():
        module, _, leaf = name.rpartition(".")
        spread = torch.randn(shape, generator=generator)
        if module.endswith(".bn"):
            state[name] = 1 + 0.2 * spread.clip(-3, 3) if leaf in ("weight", "running_var") else 0.2 * spread
            state[f"{module}.num_batches_tracked"] = torch.tensor(7)
        else:
            state[name] = spread * (2 / np.prod(shape[1:])) ** 0.5
    pixels = torch.from_numpy(image_sets(8, 299, seed)[0]).permute(0, 3, 1, 2) / 127.5 - 1
    torch_inception(state, pixels, calibrate=True)
    return state


def random_inception(path: Path, seed: int = 0) -> State:
    """Writes `random_state`, as safetensors if `path` ends so, else as PyTorch does."""
    state = random_state(seed)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return state


@torch.inference_mode()
def torch_inception(state: State, pixels: torch.Tensor, calibrate: bool = False) -> dict[str, torch.Tensor]:
    """`pool` and `logits`, without bias, of images [B, 3, 299, 299] in [-1, 1].

    `calibrate` first scales the stored statistics of every layer by those of its inputs.
    """

    def layer(x: torch.Tensor, name: str, padding: int | tuple[int, int] = 0, stride: int = 1) -> torch.Tensor:
        x = F.conv2d(x, state[f"{name}.conv.weight"], padding=padding, stride=stride)
        weight, bias, mean, var = (
            state[f"{name}.bn.{leaf}"] for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        if calibrate:
            found = torch.var_mean(x, (0, 2, 3))
            state[f"{name}.bn.running_mean"] = mean = found[1] + mean * found[0].sqrt()
            state[f"{name}.bn.running_var"] = var = found[0] * var
        return F.relu(F.batch_norm(x, mean, var, weight, bias, eps=1e-3))

    def projected(x: torch.Tensor, block: str) -> torch.Tensor:
        if block == "Mixed_7c":
            return layer(F.max_pool2d(x, 3, 1, 1), f"{block}.branch_pool")
        return layer(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), f"{block}.branch_pool")

    row, column = (0, 3), (3, 0)
    x = layer(layer(pixels, "Conv2d_1a_3x3", stride=2), "Conv2d_2a_3x3")
    x = F.max_pool2d(layer(x, "Conv2d_2b_3x3", 1), 3, 2)
    x = F.max_pool2d(layer(layer(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3"), 3, 2)
    for block in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        five = layer(layer(x, f"{block}.branch5x5_1"), f"{block}.branch5x5_2", 2)
        three = layer(layer(x, f"{block}.branch3x3dbl_1"), f"{block}.branch3x3dbl_2", 1)
        three = layer(three, f"{block}.branch3x3dbl_3", 1)
        x = torch.cat([layer(x, f"{block}.branch1x1"), five, three, projected(x, block)], 1)
    three = layer(layer(x, "Mixed_6a.branch3x3dbl_1"), "Mixed_6a.branch3x3dbl_2", 1)
    three = layer(three, "Mixed_6a.branch3x3dbl_3", stride=2)
    x = torch.cat([layer(x, "Mixed_6a.branch3x3", stride=2), three, F.max_pool2d(x, 3, 2)], 1)
    for block in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        seven = layer(layer(x, f"{block}.branch7x7_1"), f"{block}.branch7x7_2", row)
        seven = layer(seven, f"{block}.branch7x7_3", column)
        double = layer(x, f"{block}.branch7x7dbl_1")
        for i, padding in enumerate((column, row, column, row), 2):
            double = layer(double, f"{block}.branch7x7dbl_{i}", padding)
        x = torch.cat([layer(x, f"{block}.branch1x1"), seven, double, projected(x, block)], 1)
    three = layer(layer(x, "Mixed_7a.branch3x3_1"), "Mixed_7a.branch3x3_2", stride=2)
    seven = layer(layer(x, "Mixed_7a.branch7x7x3_1"), "Mixed_7a.branch7x7x3_2", row)
    seven = layer(layer(seven, "Mixed_7a.branch7x7x3_3", column), "Mixed_7a.branch7x7x3_4", stride=2)
    x = torch.cat([three, seven, F.max_pool2d(x, 3, 2)], 1)
    for block in ("Mixed_7b", "Mixed_7c"):
        three = layer(x, f"{block}.branch3x3_1")
        double = layer(layer(x, f"{block}.branch3x3dbl_1"), f"{block}.branch3x3dbl_2", 1)
        forks = [layer(three, f"{block}.branch3x3_2a", (0, 1)), layer(three, f"{block}.branch3x3_2b", (1, 0))]
        forks += [layer(double, f"{block}.branch3x3dbl_3a", (0, 1)), layer(double, f"{block}.branch3x3dbl_3b", (1, 0))]
        x = torch.cat([layer(x, f"{block}.branch1x1"), *forks, projected(x, block)], 1)
    pool = x.mean((2, 3))
    return {"pool": pool, "logits": pool @ state["fc.weight"].T}
