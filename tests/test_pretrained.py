"""Pretrained text encoders, by tiny ones with random weights."""

import json
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from checkpoints.checkpoint import load_checkpoint
from conditions import PADDING
from conftest import TINY
from images import save_image
from models.pretrained import PretrainedTokenizer
from models.text import TextEncoder
from runs import assert_same_training

transformers = pytest.importorskip("transformers")

WORDS = ["a", "red", "green", "square", ",", "number", *"0123456789"]


def save_encoder(folder: Path, kind: str, seed: int = 0) -> None:
    """Write an encoder of CLIP or T5, 32 wide, with a tokenizer that knows some words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    numbers = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    options = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)
    wrapped.save_pretrained(folder)
    torch.manual_seed(seed)
    if kind == "t5":
        sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
        config = transformers.T5Config(vocab_size=len(numbers), **sizes)
        transformers.T5EncoderModel(config).save_pretrained(folder)
    else:
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
        config = transformers.CLIPTextConfig(
            vocab_size=len(numbers), num_hidden_layers=2, eos_token_id=1, **sizes
        )
        transformers.CLIPTextModel(config).save_pretrained(folder)


@pytest.fixture(scope="module", params=["clip", "t5"])
def encoder(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / request.param
    save_encoder(folder, request.param)
    return folder


def test_states_are_those_of_transformers(encoder):
    tokenizer = PretrainedTokenizer(encoder, 8)
    captions = ["a red square", "", "a green square , number 3", "a red square"]
    found = tokenizer.condition(captions)
    kind = "T5EncoderModel" if encoder.name == "t5" else "CLIPTextModel"
    model = getattr(transformers, kind).from_pretrained(encoder).eval()
    words = transformers.AutoTokenizer.from_pretrained(encoder)
    for caption, tokens, states in zip(captions, found.tokens, found.states, strict=True):
        assert not states[tokens == PADDING].any()
        if not caption:
            assert (tokens == PADDING).all()
            continue
        numbers = words(caption, return_tensors="pt")["input_ids"]
        assert torch.equal(tokens[tokens != PADDING] - 1, numbers[0])
        with torch.no_grad():  # without padding
            expected = model(input_ids=numbers).last_hidden_state[0]
        assert_close(states[tokens != PADDING].float(), expected, rtol=2e-3, atol=2e-3)
    assert torch.equal(found.states[0], found.states[3])


def test_a_long_caption_keeps_its_end(encoder):
    tokens = PretrainedTokenizer(encoder, 4).encode(["a red green square"])[0].tolist()
    assert tokens == [4, 5, 6, 2]


def test_dropped_captions_have_the_same_bits_as_none():
    torch.manual_seed(0)
    encoder = TextEncoder(None, 6, text_width=32)
    tokens, states = torch.randint(1, 9, (2, 6)), torch.randn(2, 6, 32)
    nothing = encoder(torch.full((2, 1), PADDING)).states[:, 0]
    assert torch.equal(encoder(torch.zeros_like(tokens), states).states[:, 0], nothing)
    assert not torch.equal(encoder(tokens, states).states[:, 0], nothing)
    shorter = encoder(tokens[:, :3], states[:, :3])
    longer = encoder(torch.cat([tokens[:, :3], torch.zeros(2, 3, dtype=torch.int64)], 1), states)
    mask = shorter.mask
    assert torch.equal(mask, longer.mask)
    assert torch.equal(shorter.states[mask], longer.states[mask])


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "images"
    lines = []
    for i in range(24):
        colour = (200, 30, 30) if i % 2 else (30, 160, 30)
        save_image(folder / f"{i:02}.png", np.full((16, 16, 3), colour, np.uint8))
        text = f"a {'red' if i % 2 else 'green'} square, number {i}"
        lines.append(json.dumps({"file_name": f"{i:02}.png", "text": text}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize("encoder", ["t5"], indirect=True)
def test_training_sampling_and_resume(encoder, images, script):
    shutil.copytree(encoder, "encoder")
    flags = [*TINY, "--dataset", "folder", "--data-dir", images, "--image-size", 16, "--captions"]
    flags += ["--model", "dit", "--blocks", 1, "--batch-size", 4, "--validation", 4]
    flags += ["--save-every-steps", 2, "--text-encoder", "encoder", "--output-dir", "run"]
    result = script("train", *flags, "--max-steps", 4)
    assert result.code == 0, result.err
    config = json.loads(Path("run/config.json").read_text())
    assert config["model"]["text_width"] == 32
    assert config["model"]["vocabulary_size"] is None
    weights = load_checkpoint(Path("run/model_final.pt"))["model"]
    assert not any("shared" in name or "text_model" in name for name in weights)

    shutil.copytree("run", "copy")
    start = "copy/checkpoints/model_step_00000002.pt"
    result = script("train", "--resume", start, "--max-steps", 4, "--text-encoder", "none")
    assert result.code == 2
    assert "--text-encoder none is not a folder" in result.err
    assert script("train", "--resume", start, "--max-steps", 4).code == 0
    a, b = (load_checkpoint(Path(folder) / "model_final.pt") for folder in ("run", "copy"))
    assert_same_training(a, b)

    words = ["--checkpoint", "run", "--steps", 2, "--num-images", 4, "--guidance-scale", 2]
    words += ["--prompt", "a red square", "--output", "a.npz"]
    assert script("sample", *words).code == 0
    drawn = np.load("a.npz")["arr_0"]
    Path("encoder").rename("moved")
    result = script("sample", *words)
    assert result.code == 2
    assert "--text-encoder encoder is not a folder" in result.err
    result = script("sample", *words, "--text-encoder", "moved")
    assert result.code == 0, result.err
    assert np.array_equal(np.load("a.npz")["arr_0"], drawn)
    shutil.rmtree("moved")
    save_encoder(Path("moved"), encoder.name, seed=1)
    result = script("sample", *words, "--text-encoder", "moved")
    assert result.code == 2
    assert "not the files that the network was trained with" in result.err


def test_no_code_of_the_folder_is_run(encoder, tmp_path):
    folder = tmp_path / "encoder"
    shutil.copytree(encoder, folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"tokenizer_class": "Evil"}
    config["auto_map"] = {"AutoTokenizer": ["evil.Evil", None]}
    path.write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with suppress(ValueError):  # transformers refuses such a folder, or uses its own class
        PretrainedTokenizer(folder, 8)
    assert not (tmp_path / "ran").exists()


def test_missing_weights_are_refused_and_every_file_counts(encoder, tmp_path):
    folder = tmp_path / "encoder"
    shutil.copytree(encoder, folder)
    digest = PretrainedTokenizer(folder, 8).sha256
    path = folder / "tokenizer_config.json"
    path.write_text(path.read_text().replace("{", "{ ", 1))
    assert PretrainedTokenizer(folder, 8).sha256 != digest
    weights = load_file(folder / "model.safetensors")
    removed = next(name for name in weights if name.endswith("q.weight") or "q_proj" in name)
    del weights[removed]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights, as "):
        PretrainedTokenizer(folder, 8).condition(["a red square"])


def test_a_whole_clip_model_is_read(tmp_path):
    save_encoder(tmp_path, "clip")
    text = json.loads((tmp_path / "config.json").read_text())
    config = transformers.CLIPConfig(
        text_config=text,
        vision_config={"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
                       "num_attention_heads": 2, "image_size": 8, "patch_size": 4},
    )  # fmt: skip
    transformers.CLIPModel(config).save_pretrained(tmp_path)
    tokenizer = PretrainedTokenizer(tmp_path, 8)
    assert tokenizer.width == 32
    assert tokenizer.condition(["a red square"]).states.shape == (1, 8, 32)


@pytest.mark.parametrize("encoder", ["clip"], indirect=True)
def test_what_cannot_be_used_is_explained(encoder, images, script, monkeypatch):
    flags = [*TINY, "--dataset", "folder", "--data-dir", images, "--image-size", 16, "--captions"]
    flags += ["--max-steps", 1, "--batch-size", 4]

    def refused(folder: str, *others) -> str:
        result = script("train", *flags, *others, "--text-encoder", folder)
        assert result.code in (1, 2)
        return result.err

    assert "no effect on a network that takes no captions" in refused(
        encoder, "--no-text-conditional"
    )
    shutil.copytree(encoder, "encoder")
    Path("encoder/model.safetensors").write_bytes(b"\0" * 100)
    assert "--text-encoder encoder: " in refused("encoder")
    Path("encoder/model.safetensors").rename("encoder/pytorch_model.bin")
    assert "no weights as .safetensors" in refused("encoder")
    Path("encoder/config.json").write_text('{"model_type": "bert"}')
    assert "a bert; CLIP and T5 are supported" in refused("encoder")
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    assert "pip install -r requirements-text.txt" in refused(encoder)
