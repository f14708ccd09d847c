"""Captions: tokens, the text encoder, cross-attention, and training and sampling with prompts."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.testing import assert_close

import export
import train
from checkpoints.checkpoint import load_checkpoint
from cli import process
from cli.training import TRAIN
from conditions import PADDING, Condition
from conftest import TINY
from diffusion import GaussianDiffusion
from images import save_image
from models import build_model, model_config
from models.text import CrossAttention, Text, TextBlock, TextEncoder
from models.tokenizer import FIRST_BYTE, FIRST_WORD, MAX_LENGTH, Tokenizer
from runs import assert_same_training
from samplers import SAMPLERS

CAPTIONS = ["a red 3 above a 7", "two red 5s", "a blue 7, thin", "a red 7"]


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer.of_captions(CAPTIONS)


# --- the tokenizer --------------------------------------------------------------------------------


def test_words_are_numbered_by_frequency_and_then_by_the_alphabet(tokenizer):
    assert tokenizer.words == ["a", "7", "red", ",", "3", "5s", "above", "blue", "thin", "two"]
    assert tokenizer.size == FIRST_WORD + 10
    assert tokenizer.tokens("a red 7") == [FIRST_WORD, FIRST_WORD + 2, FIRST_WORD + 1]


@pytest.mark.parametrize("text", ["A RED  7", " a red 7\n", "a\tred 7"])
def test_case_and_blanks_do_not_matter(tokenizer, text):
    assert tokenizer.tokens(text) == tokenizer.tokens("a red 7")


def test_accents_are_composed_before_they_are_compared():
    tokenizer = Tokenizer.of_captions(["caf\u00e9"])
    assert tokenizer.tokens("cafe\u0301") == [FIRST_WORD]


@pytest.mark.parametrize("text", ["green", "\U0001f600", "mou\0stache", "\u732b"])
def test_an_unknown_word_is_spelled_in_bytes(tokenizer, text):
    tokens = tokenizer.tokens(text)
    assert min(tokens) >= FIRST_BYTE
    assert max(tokens) < FIRST_WORD
    words = bytes(token - FIRST_BYTE for token in tokens).decode().split()
    assert words == tokenizer.unknown(text)
    assert tokenizer.unknown(f"a red {text} {text}, thin") == words


def test_captions_are_filled_up_and_cut_off(tokenizer):
    assert tokenizer.length == 16  # six words, some room, and a multiple of 8
    table = tokenizer.encode(["", "a red 7", "a " * 20])
    assert table.shape == (3, 16)
    assert table.dtype == torch.int64
    assert (table[0] == PADDING).all()
    assert table[1].tolist() == tokenizer.tokens("a red 7") + [PADDING] * 13
    assert (table[2] == FIRST_WORD).all()
    assert Tokenizer.of_captions(["a " * 500]).length == MAX_LENGTH


# --- the encoder ----------------------------------------------------------------------------------


def encoder(length: int = 8) -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(FIRST_WORD + 10, length, width=32).eval()


def tokens_of(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows)


def test_padding_to_another_length_changes_no_bit():
    network, words = encoder(), [FIRST_WORD + 3, FIRST_WORD + 1]
    short = network(tokens_of(words))
    for extra in (1, 6):
        longer = network(tokens_of(words + [PADDING] * extra))
        assert torch.equal(longer.states, short.states)
        assert torch.equal(longer.mask, short.mask)


def test_padding_is_not_seen():
    """The state of a word does not depend on what is stored where nothing is written."""
    network, tokens = encoder(), tokens_of([FIRST_WORD + 3, FIRST_WORD + 1, PADDING, PADDING])
    before = network(tokens).states[:, :3]
    with torch.no_grad():
        network.token.weight[PADDING] = 7.0
        network.position.weight[3:] = 7.0
    assert torch.equal(network(tokens).states[:, :3], before)


def test_order_matters_and_captions_of_a_batch_do_not_affect_each_other():
    network = encoder()
    tokens = tokens_of([FIRST_WORD, FIRST_WORD + 1], [FIRST_WORD + 1, FIRST_WORD], [0, 0])
    states = network(tokens).states
    assert not torch.allclose(states[0, 0], states[1, 0])
    assert_close(network(tokens.flip(0)).states.flip(0), states)


def test_the_null_caption_attends_to_the_start_token_alone():
    text = encoder()(torch.full((2, 3), PADDING))
    assert text.mask[:, 0].all()
    assert not text.mask[:, 1:].any()
    assert text.states.isfinite().all()


def test_bytes_that_training_never_sees_say_nothing_at_first():
    """Two unknown words of equal length differ only in their bytes."""
    network = encoder()
    a, b = ([FIRST_BYTE + letter for letter in word] for word in (b" cat", b" dog"))
    assert torch.equal(network(tokens_of(a)).states, network(tokens_of(b)).states)


def test_a_block_of_the_encoder_equals_that_of_pytorch():
    torch.manual_seed(0)
    block = TextBlock(64).eval()
    theirs = torch.nn.TransformerEncoderLayer(
        64, 2, 256, 0.0, activation=lambda x: F.gelu(x, approximate="tanh"), batch_first=True,
        norm_first=True,
    ).eval()  # fmt: skip
    names = {
        "self_attn.in_proj_": block.qkv, "self_attn.out_proj.": block.out, "norm1.": block.norm_1,
        "norm2.": block.norm_2, "linear1.": block.mlp[0], "linear2.": block.mlp[2],
    }  # fmt: skip
    theirs.load_state_dict(
        {f"{name}{key}": p for name, m in names.items() for key, p in m.state_dict().items()}
    )
    x, mask = torch.randn(3, 5, 64), torch.arange(5) < torch.tensor([[5], [2], [1]])
    expected = theirs(x, src_key_padding_mask=~mask)
    assert_close(block(x, mask)[mask], expected[mask], rtol=1e-4, atol=1e-5)


# --- cross-attention ------------------------------------------------------------------------------


def trained_attention(channels: int = 64, width: int = 32) -> CrossAttention:
    """One whose last layer is not zero any more."""
    torch.manual_seed(0)
    attention = CrossAttention(channels, width)
    torch.nn.init.normal_(attention.out.weight)
    return attention


def test_cross_attention_equals_a_direct_computation():
    attention = trained_attention()
    x, states = torch.randn(2, 9, 64), torch.randn(2, 4, 32)
    mask = torch.tensor([[True, True, False, True], [True, False, False, False]])
    found = attention(x, Text(states, mask))
    theirs = torch.nn.MultiheadAttention(64, 2, kdim=32, vdim=32, batch_first=True)
    with torch.no_grad():
        theirs.q_proj_weight.copy_(attention.q.weight)
        theirs.k_proj_weight.copy_(attention.kv.weight[:64])
        theirs.v_proj_weight.copy_(attention.kv.weight[64:])
        theirs.in_proj_bias.copy_(torch.cat([attention.q.bias, attention.kv.bias]))
        theirs.out_proj.weight.copy_(attention.out.weight)
        theirs.out_proj.bias.copy_(attention.out.bias)
    expected, weights = theirs(attention.norm(x), states, states, key_padding_mask=~mask)
    assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert_close(attention.weights(x, Text(states, mask)), weights, rtol=1e-4, atol=1e-5)


# --- networks -------------------------------------------------------------------------------------

READERS = ["unet", "dit"]


def reading_network(name: str, **options) -> torch.nn.Module:
    """A network for images of 16 x 16 with captions of 8 tokens; all of its weights are random."""
    torch.manual_seed(0)
    options = {"vocabulary_size": FIRST_WORD + 10, "caption_length": 8, "channels": 32, **options}
    config = model_config(name, {"image_size": 16, "image_channels": 3}, 10, options)
    network = build_model(config).eval()
    for p in network.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    return network


@pytest.mark.parametrize("name", READERS)
def test_a_network_reads_captions(name):
    network, x, t = reading_network(name), torch.randn(3, 3, 16, 16), torch.tensor([2, 5, 9])
    words = FIRST_WORD + torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    condition = Condition(tokens=words)
    out = network(x, t, condition)
    order = torch.tensor([2, 0, 1])
    assert_close(network(x[order], t[order], condition[order]), out[order])
    assert not torch.allclose(network(x, t, Condition(tokens=words.flip(1))), out)
    null = network(x, t, condition.null())
    assert torch.equal(network(x, t), null)
    dropped = network(x, t, condition.dropped(torch.tensor([True, False, False])))
    assert_close(dropped, torch.cat([null[:1], out[1:]]))


def test_captions_and_classes_together():
    network, x, t = (
        reading_network("unet", num_classes=4),
        torch.randn(2, 3, 16, 16),
        torch.tensor([2, 5]),
    )
    words, labels = FIRST_WORD + torch.tensor([[1, 2], [3, 4]]), torch.tensor([0, 3])
    both = network(x, t, Condition(labels, words))
    for other in (Condition(labels), Condition(None, words), None):
        assert not torch.allclose(network(x, t, other), both)


def test_cross_attention_at_other_resolutions():
    network = reading_network("unet", cross_attention_resolutions=[8], multipliers=[1, 2])
    reading = [
        name for name, module in network.named_modules() if isinstance(module, CrossAttention)
    ]
    assert len(reading) == 2  # on the way up at 8 x 8, and in the middle
    with pytest.raises(ValueError, match="no feature map has the cross-attention resolution 5"):
        reading_network("unet", cross_attention_resolutions=[5])


# --- training and sampling ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def emoji(tmp_path_factory) -> Path:
    """A folder of sixteen small images in two colours, with captions."""
    folder = tmp_path_factory.mktemp("captioned") / "images"
    lines = []
    for i in range(16):
        colour = ("red", "blue")[i % 2]
        pixels = np.zeros((16, 16, 3), np.uint8)
        pixels[:, :, 0 if colour == "red" else 2] = 200 + i
        name = f"{i:02d}.png"
        save_image(folder / name, pixels)
        lines.append({"file_name": name, "text": f"a {colour} square, number {i}"})
    (folder / "metadata.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def run(emoji, tmp_path_factory) -> Path:
    """The folder of a run of four steps that is conditioned on these captions."""
    folder = tmp_path_factory.mktemp("text") / "run"
    words = [*flags_of(emoji), "--max-steps", "4", "--output-dir", str(folder)]
    assert process.run(train.main, TRAIN.parse(words)) == 0
    return folder


def flags_of(folder: Path) -> list[str]:
    flags = [*TINY, "--dataset", "folder", "--data-dir", str(folder), "--image-size", "16"]
    flags += ["--model", "dit", "--blocks", "1", "--patch-size", "4", "--batch-size", "4"]
    flags += ["--validation", "4"]
    return [*flags, "--captions", "--save-every-steps", "2"]


def test_a_run_keeps_the_vocabulary_and_held_out_prompts(run, script):
    config = json.loads((run / "config.json").read_text())
    assert config["train"]["text_conditional"]
    assert config["data"]["words"][:4] == [",", "a", "number", "square"]
    assert len(config["data"]["prompts"]) == 8
    assert config["model"]["vocabulary_size"] == FIRST_WORD + len(config["data"]["words"])
    result = script("sample", "--checkpoint", run / "model_final.pt", "--steps", 2)
    assert result.code == 0, result.err
    assert "prompts: held-out captions (--prompt gives others)" in result.out
    assert "64 images" in result.out


def test_captioned_images_are_not_mirrored_by_default(run, emoji, script):
    assert json.loads((run / "config.json").read_text())["data"]["flip"] is False
    words = [
        *TINY,
        "--dataset",
        "folder",
        "--data-dir",
        emoji,
        "--image-size",
        16,
        "--batch-size",
        4,
    ]
    result = script("train", *words, "--max-steps", 1)  # whose captions are ignored
    assert "images are mirrored at random (default for folder)" in result.out


def test_a_prompt_that_is_no_text_is_refused(run, script):
    result = script("sample", "--checkpoint", run / "model_final.pt", "--prompt", "caf\udce9")
    assert result.code == 2
    assert "--prompt" in result.err
    assert "is not UTF-8" in result.err


def test_captions_that_are_cut_are_named(emoji, script):
    shutil.copytree(emoji, "images")
    path = Path("images/metadata.jsonl")
    path.write_text(path.read_text().replace("number 3", "number " + "3 " * 140))
    words = [str(word).replace(str(emoji), "images") for word in flags_of(emoji)]
    result = script("train", *words, "--max-steps", 1)
    assert result.code == 0, result.err
    assert "1 caption has more than 128 tokens: the rest is ignored (03.png)" in result.out


def test_text_training_resumes_bit_for_bit(emoji, run, script, tmp_path):
    shutil.copytree(run, "copy")
    start = "copy/checkpoints/model_step_00000002.pt"
    result = script("train", "--resume", start, "--max-steps", 4)
    assert result.code == 0, result.err
    a, b = (load_checkpoint(Path(folder) / "model_final.pt") for folder in (run, "copy"))
    assert_same_training(a, b)


def test_changed_captions_are_noticed_on_resume(emoji, run, script, tmp_path):
    shutil.copytree(run, "copy")
    shutil.copytree(emoji, "images")
    path = Path("images/metadata.jsonl")
    path.write_text(path.read_text().replace("number 3", "number three"))
    words = ["--resume", "--output-dir", "copy", "--data-dir", "images", "--max-steps", 5]
    result = script("train", *words)
    assert result.code == 1
    assert "1 image was changed (03.png)" in result.err
    result = script("train", *words, "--allow-data-change")
    assert result.code == 0, result.err
    before, after = (
        json.loads(Path(folder, "config.json").read_text())["data"]["words"]
        for folder in (run, "copy")
    )
    assert before == after  # "three" is spelled in bytes


def test_prompts_are_rows_of_the_grid(run, script):
    words = ["--checkpoint", run / "model_final.pt", "--steps", 2, "--output", "a.npz"]
    prompts = ["--prompt", "a red square", "a purple circle"]
    result = script("sample", *words, *prompts)
    assert result.code == 0, result.err
    assert "16 images" in result.out
    assert "not in the training captions: 'purple', 'circle'" in result.out
    images = np.load("a.npz")["arr_0"]
    Path("prompts.txt").write_text("a red square\n\n  a purple circle \n")
    assert script("sample", *words, "--prompts", "prompts.txt").code == 0
    assert np.array_equal(np.load("a.npz")["arr_0"], images)
    assert script("sample", *words, *prompts, "--num-images", 3).code == 2
    assert script("sample", *words, "--prompt", "a red square", "--num-images", 3).code == 0
    assert script("sample", *words[:-2], *prompts).code == 0
    for prompts, captions in ((["a red square"], 1), ([], 8)):  # eight rows each
        more = ["--prompt", *prompts] if prompts else []
        assert script("sample", *words[:-2], *more, "--output", "grid.png").code == 0
        with Image.open("grid.png") as image:
            assert image.height > 8 * (4 * 16 + 2) + captions * 10
    rows, width = 2, 8 * (4 * 16 + 2) + 2  # enlarged four times, with lines between
    with Image.open("outputs/generated_samples.png") as image:
        assert image.width == width
        assert image.height > rows * (4 * 16 + 4) + rows * 10  # and captions


def test_guidance_by_prompts(run, script):
    def drawn(*flags) -> np.ndarray:
        words = [
            "--checkpoint",
            run / "model_final.pt",
            "--steps",
            2,
            "--num-images",
            2,
            "--output",
            "a.npz",
        ]
        result = script("sample", *words, *flags)
        assert result.code == 0, result.err
        return np.load("a.npz")["arr_0"]

    prompt = ["--prompt", "a red square"]
    conditional, null = drawn(*prompt), drawn("--prompt", "")
    assert np.array_equal(drawn(*prompt, "--guidance-scale", 0), null)
    assert np.array_equal(drawn(*prompt, "--guidance-scale", 1), conditional)
    guided = drawn(*prompt, "--guidance-scale", 3)
    assert not np.array_equal(guided, conditional)
    same = drawn(*prompt, "--guidance-scale", 3, "--negative-prompt", "")
    assert np.array_equal(same, guided)
    other = drawn(*prompt, "--guidance-scale", 3, "--negative-prompt", "a blue square")
    assert not np.array_equal(other, guided)


def test_an_empty_prompt_is_unconditional_and_said_so(run, script):
    result = script("sample", "--checkpoint", run / "model_final.pt", "--steps", 1, "--prompt", " ")
    assert "an empty prompt: samples of any caption" in result.out


def test_prompts_with_given_images(run, emoji, script):
    image = emoji / "03.png"
    for mode in (["--start-from", image], ["--inpaint", image, "--mask", image], ["--interpolate"]):
        words = [*mode, "--steps", 2, "--prompt", "a red square", "--num-images", 2]
        assert script("sample", "--checkpoint", run / "model_final.pt", *words).code == 0


@pytest.mark.parametrize("scale", [1, 3])
def test_a_strip_between_two_prompts(run, script, scale):
    def drawn(*flags) -> np.ndarray:
        words = [
            "--checkpoint",
            run / "model_final.pt",
            "--steps",
            2,
            "--interpolate",
            "--num-images",
            3,
        ]
        words += ["--output", "a.npz", "--guidance-scale", scale]
        result = script("sample", *words, *flags)
        assert result.code == 0, result.err
        return np.load("a.npz")["arr_0"].astype(int)

    strip = drawn("--prompt", "a red square", "a blue square")
    ends = drawn("--prompt", "a red square")[0], drawn("--prompt", "a blue square")[0]
    assert abs(strip[0] - ends[0]).max() <= 1  # from the same noise
    assert abs(strip[2] - ends[1]).max() <= 1


def test_a_mixture_of_two_predictions():
    diffusion = GaussianDiffusion("cosine", 100, prediction="x_0", clip=False)
    x_t, level, share = torch.randn(3, 2), diffusion.levels(10)[4], torch.tensor([0.0, 0.25, 1.0])
    first, second = (Condition(tokens=torch.full((3, 2), number)) for number in (4, 9))

    def model(x, t, condition):
        return condition.tokens.float()

    options = {"blend": (second, share)}
    x_0, _ = diffusion.denoiser(model, first, **options)(x_t, level)
    assert_close(x_0, torch.tensor([[4.0], [5.25], [9.0]]).expand(3, 2))
    x_0, _ = diffusion.denoiser(model, first, guidance_scale=2, **options)(x_t, level)
    assert_close(x_0, 2 * torch.tensor([[4.0], [5.25], [9.0]]).expand(3, 2))


@pytest.mark.parametrize("sampler", ["meanflow", "consistency"])
def test_a_mixture_of_two_average_velocities(sampler):
    diffusion, share = GaussianDiffusion("cosine", 100, "flow", clip=False), torch.tensor([0.0, 1])
    first, second = (Condition(tokens=torch.full((2, 2), number)) for number in (4, 9))

    class MeanFlow(torch.nn.Module):
        average_velocity = True

        def forward(self, x, t, condition):
            return condition.tokens * condition.span[:, None]

    def drawn(condition, **options):
        denoise = diffusion.denoiser(MeanFlow(), condition, **options)
        *_, x = SAMPLERS[sampler](denoise, torch.ones(2, 2), diffusion.levels(1), torch.randn_like)
        return x

    mixed = drawn(first, blend=(second, share))
    assert_close(mixed, torch.stack([drawn(first)[0], drawn(second)[0]]))
    assert not torch.equal(mixed[0], mixed[1])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt", "x" * 10_000], "--prompt: 10,000 characters; at most 1,000 are possible"),
        (["--prompt", "moustache " * 3], "has 30 tokens, and this checkpoint takes at most 16"),
        (["--negative-prompt", "blue"], "--negative-prompt has no effect without"),
        (
            ["--class-id", "3", "--prompt", "red"],
            "this checkpoint is not conditioned on class labels",
        ),
        (["--prompt", "red", "--prompts", "p.txt"], "--prompt has no effect with --prompts"),
        (["--prompts", "none.txt"], "none.txt"),
        (["--prompts", "empty.txt"], "empty.txt has no prompts: one is expected in each line"),
        (["--prompts", "latin.txt"], "latin.txt is not UTF-8"),
        (
            ["--interpolate", "--prompt", "red", "blue", "a"],
            "give one prompt, which all of these images share",
        ),
    ],
)
def test_prompts_that_cannot_be_drawn(run, script, flags, message):
    Path("empty.txt").write_text("\n")
    Path("latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    result = script("sample", "--checkpoint", run / "model_final.pt", *flags)
    assert result.code in (1, 2)
    assert message in result.err
    assert len(result.err.strip().splitlines()) <= 3


def test_a_prompt_for_a_checkpoint_without_text(trained, script):
    result = script("sample", "--checkpoint", trained, "--prompt", "a red square")
    assert result.code == 2
    assert "--prompt: this checkpoint is unconditional; train.py --text-conditional" in result.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--dataset", "digits", "--text-conditional"],
            "--text-conditional: digits has no captions",
        ),
        (["--dataset", "digits", "--captions"], "--captions applies only to --dataset folder"),
    ],
)
def test_captions_that_are_missing(script, flags, message):
    result = script("train", *TINY, *flags, "--max-steps", 1)
    assert result.code == 2
    assert message in result.err


def test_captions_are_not_exported_to_numpy(script, tmp_path):
    config = {"model": {"name": "unet", "caption_length": 16}}
    with pytest.raises(ValueError, match="conditioned on captions, which mini_diffusion cannot"):
        export.require_exportable("a.pt", config, "numpy")


def test_a_network_that_takes_no_captions(script, emoji):
    words = [*TINY, "--dataset", "folder", "--data-dir", emoji, "--image-size", 16, "--captions"]
    result = script("train", *words, "--model", "cnn", "--text-conditional", "--max-steps", 1)
    assert result.code == 2
    assert "--text-conditional: the model cnn takes no captions; unet and dit do" in result.err
