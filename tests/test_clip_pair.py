"""Both towers of CLIP against Transformers, and its folder."""

import jax
import numpy as np
import pytest
import torch
from transformers import CLIPConfig as TheirConfig
from transformers import CLIPModel

from bksdm_jax.base.errors import InputError
from bksdm_jax.formats.clip_json import clip_from_transformers, clip_to_transformers
from bksdm_jax.metrics.clip import clip_extractor
from bksdm_jax.models.clip_pair import CLIP
from bksdm_jax.pipelines.clip_folder import load_clip, write_clip
from bksdm_jax.pipelines.tokenizer import load_tokenizer, write_tokenizer
from tests import tiny
from tests.arrays import require_close


@pytest.fixture(scope="module")
def theirs() -> CLIPModel:
    return tiny.clip(int(np.random.default_rng().integers(2**31)))


def test_both_towers_match_pytorch(theirs: CLIPModel) -> None:
    generator = np.random.default_rng()
    tokens = generator.integers(0, 590, (3, 77), np.int32)
    ends = np.array([5, 20, 76], np.int32)
    for row, end in zip(tokens, ends, strict=True):
        row[end:] = 599
    images = generator.uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    config = clip_from_transformers(theirs.config.to_dict())
    variables = {"params": tiny.clip_params(theirs)}
    ours = jax.jit(CLIP(config).apply)(variables, tokens, ends, images)
    with torch.inference_mode():
        wanted = theirs(
            input_ids=torch.from_numpy(tokens).long(), pixel_values=torch.from_numpy(images.transpose(0, 3, 1, 2))
        )
    require_close(ours, wanted.logits_per_text.numpy())
    assert clip_from_transformers(clip_to_transformers(config)) == config


def test_folder_goes_out_and_in_and_fits_transformers(theirs: CLIPModel, tmp_path) -> None:
    config = clip_from_transformers(theirs.config.to_dict())
    write_tokenizer(tmp_path / "tokenizer", tiny.WORDS)
    params = tiny.clip_params(theirs)
    write_clip(tmp_path / "clip", config, params, tmp_path / "tokenizer")
    loaded = load_clip(tmp_path / "clip")
    assert loaded.config == config
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    again = CLIPModel(TheirConfig.from_pretrained(tmp_path / "clip"))
    shapes = {name: tensor.shape for name, tensor in again.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in theirs.state_dict().items()}

    images = np.random.default_rng().integers(0, 256, (5, 32, 32, 3), np.uint8)
    captions = ["a cat", "", "the red cup", "a photo of a woman", "space"]
    extractor = clip_extractor(loaded, "shapes")
    found = extractor(images, captions, batch_size=2)  # the last call is filled up
    whole = extractor(images, captions, batch_size=5)
    for name, shape in {"features": (5, config.vision.width), "clip_cosine": (5,)}.items():
        assert found[name].shape == shape
        np.testing.assert_allclose(found[name], whole[name], rtol=1e-4, atol=1e-5)
    assert extractor(images).keys() == {"features", "image"}  # without captions
    cosines = found["clip_cosine"]
    tokens = loaded.tokenizer(captions)
    with torch.inference_mode():
        pixels = torch.from_numpy((images / 127.5 - 1).astype(np.float32).transpose(0, 3, 1, 2))
        theirs.config.text_config.eos_token_id = theirs.text_model.eos_token_id = int(tokens.max())
        wanted = theirs(input_ids=torch.from_numpy(tokens).long(), pixel_values=pixels)
    scale = np.exp(params["logit_scale"])
    np.testing.assert_allclose(cosines, np.diag(wanted.logits_per_image.numpy()) / scale, rtol=1e-3, atol=1e-5)


def test_tokenizer_knows_its_words_and_every_byte(tmp_path) -> None:
    write_tokenizer(tmp_path, tiny.WORDS)
    tokenizer = load_tokenizer(tmp_path, 77)
    tokens = tokenizer(["the red cup", "", "żółw 🐢"])
    assert tokenizer.ends(tokens)[:2].tolist() == [4, 1]
    assert (tokens[0, 5:] == tokens[0, 4]).all()
    assert tokens.max() == len(tokenizer) - 1
    for word in tiny.WORDS:
        assert tokenizer.ends(tokenizer([word])) == [2], word  # one token between start and end
    assert not (tokens[2, 1 : tokenizer.ends(tokens)[2]] == tokens.max()).any()  # no unknown token


def test_damaged_folders_are_told(tmp_path) -> None:
    with pytest.raises(InputError, match=str(tmp_path / "clip")):
        load_clip(tmp_path / "clip")
    with pytest.raises(InputError, match=r"text_config.*None"):
        clip_from_transformers({})
