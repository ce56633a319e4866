"""Our walk over the DiT's blocks gives the velocity of DiffSynth's `model_fn_wan_video`, for every family."""

import pytest
import torch
from diffsynth.pipelines.wan_video import model_fn_wan_video

from sakuga.wan import mini
from sakuga.wan.attention import attention, sdpa
from sakuga.wan.forward import DitForward, rotate
from tiny_wan import TEXT_DIM, tiny_control, tiny_t2v, tiny_ti2v, tiny_vace

TOLERANCE = 2e-6
"""fp32 rounding; the velocities have a deviation of about 1."""


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory):
    return mini.random_weights(tmp_path_factory.mktemp("weights") / "mini", seed=7) / "tokenizer"


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def prompt(num_tokens: int = 20) -> torch.Tensor:
    """As the prompt embedder gives it: 512 rows, zero behind the text."""
    rows = torch.zeros(1, 512, TEXT_DIM)
    rows[:, :num_tokens] = torch.randn(1, num_tokens, TEXT_DIM)
    return rows


def ours(model, latents, timestep, context, *, vace=None, **embedded) -> torch.Tensor:
    pipe = model.pipe
    forward = DitForward(pipe.dit, pipe.vace)
    tokens = forward.embed(latents, timestep, **embedded)
    hidden = forward.blocks(tokens, forward.context(*context), sdpa, vace_context_BCTHW=vace)
    return forward.head(tokens, hidden)


def theirs(model, latents, timestep, context, **arguments) -> torch.Tensor:
    with attention("sdpa"):
        return model_fn_wan_video(
            model.pipe.dit,
            vace=model.pipe.vace,
            latents=latents,
            timestep=timestep,
            context=context[0],
            clip_feature=context[1] if len(context) > 1 else None,
            **arguments,
        )


def assert_near(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.shape == b.shape
    assert (a - b).abs().max() < TOLERANCE * b.abs().max()


@pytest.mark.parametrize("num_tokens", [0, 1, 20, 511, 512])
def test_text_of_any_length(num_tokens, tokenizer_dir):
    model, latents, time = tiny_t2v(tokenizer_dir), torch.randn(1, 16, 2, 6, 4), torch.tensor([700.0])
    context = (prompt(num_tokens),)
    with torch.no_grad():
        assert_near(ours(model, latents, time, context), theirs(model, latents, time, context))


def test_the_number_of_padding_rows_counts(tokenizer_dir):
    """Else the shorter text would pass for the wrong reason: that padding has no effect."""
    model, latents, time = tiny_t2v(tokenizer_dir), torch.randn(1, 16, 2, 6, 4), torch.tensor([700.0])
    context = prompt(20)
    with torch.no_grad():
        whole = ours(model, latents, time, (context,))
        fewer = ours(model, latents, time, (context[:, :100],))
    assert (whole - fewer).abs().max() > 100 * TOLERANCE * whole.abs().max()


def test_a_clean_first_frame_has_a_time_of_its_own(tokenizer_dir):
    model, latents, time = tiny_ti2v(tokenizer_dir), torch.randn(1, 48, 3, 4, 4), torch.tensor([600.0])
    context = (prompt(),)
    with torch.no_grad():
        for clean in (True, False):
            ours_ = ours(model, latents, time, context, clean_first_frame=clean)
            assert_near(ours_, theirs(model, latents, time, context, fuse_vae_embedding_in_latents=clean))


def test_vace_hints(tokenizer_dir):
    model, latents, time = tiny_vace(tokenizer_dir), torch.randn(1, 16, 2, 6, 4), torch.tensor([900.0])
    context, vace = (prompt(),), torch.randn(1, 96, 2, 6, 4)
    with torch.no_grad():
        assert_near(
            ours(model, latents, time, context, vace=vace), theirs(model, latents, time, context, vace_context=vace)
        )
        assert not torch.allclose(ours(model, latents, time, context), ours(model, latents, time, context, vace=vace))


@pytest.mark.parametrize("with_reference", [True, False])
def test_image_tokens_control_and_reference(with_reference, tokenizer_dir):
    model, latents, time = tiny_control(tokenizer_dir), torch.randn(1, 16, 2, 6, 4), torch.tensor([500.0])
    context, y = (prompt(), torch.randn(1, 257, 1280)), torch.randn(1, 32, 2, 6, 4)
    reference = torch.randn(1, 16, 1, 6, 4) if with_reference else None
    with torch.no_grad():
        ours_ = ours(model, latents, time, context, y_BCTHW=y, reference_latents_BCTHW=reference)
        assert_near(ours_, theirs(model, latents, time, context, y=y, reference_latents=reference))


def test_rotation_is_that_of_diffsynth(tokenizer_dir):
    from diffsynth.models.wan_video_dit import rope_apply

    forward = DitForward(tiny_t2v(tokenizer_dir).pipe.dit)
    rotation = forward._rotation((3, 4, 5), torch.device("cpu"))
    assert forward._rotation((3, 4, 5), torch.device("cpu")) is rotation, "made once"
    x = torch.randn(2, 60, 96)
    theirs = rope_apply(x, torch.view_as_complex(rotation).to(torch.complex128), 2)
    assert torch.allclose(rotate(x, rotation, 2), theirs, atol=1e-6)


def test_hidden_states_after_each_block(tokenizer_dir):
    model, latents, time = tiny_t2v(tokenizer_dir), torch.randn(1, 16, 2, 6, 4), torch.tensor([700.0])
    forward = DitForward(model.pipe.dit)
    with torch.no_grad():
        tokens, context = forward.embed(latents, time), forward.context(prompt())
        states = list(forward.walk(tokens, context, sdpa))
        assert len(states) == forward.num_blocks == 2
        assert torch.equal(states[-1], forward.blocks(tokens, context, sdpa))
        assert not torch.equal(states[0], states[1])
