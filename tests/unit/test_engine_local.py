"""The engine's own duties: events, states to keep and save, LoRAs per recipe, refusals, the receipt, files."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sakuga.engine import Conditioning, LocalEngine, RenderInputs, RenderState, write_render
from sakuga.engine.snapshot import VERSION, save_state
from sakuga.errors import (
    AttentionError,
    GeometryError,
    LoraError,
    ModelError,
    NumericsError,
    OutputError,
    RecipeError,
    VideoError,
    WeightsError,
)
from sakuga.media import read_video, video_sha256
from sakuga.recipe import LoraRef, RenderRecipe, StepCache, VideoRef
from sakuga.wan.caching import BranchCache
from sakuga.wan.weights import file_sha256
from tiny_wan import tiny_t2v

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def engine(tokenizer_dir):
    return LocalEngine(tiny_t2v(tokenizer_dir))


def recipe(**fields) -> RenderRecipe:
    return RenderRecipe(
        **{
            "model": "wan2.1-t2v-1.3b", "weights_sha256": "ab" * 32, "prompt": "a dancer", "width": 32, "height": 32,
            "num_frames": 5, "num_inference_steps": 3, "seed": 1, **fields,
        }
    )  # fmt: skip


def lora_file(path, engine: LocalEngine, *, seed: int = 0):
    """A LoRA on one layer, strong enough to show."""
    generator = torch.Generator().manual_seed(seed)
    width = engine.model.pipe.dit.dim
    tensors = {
        "blocks.0.self_attn.q.lora_A.default.weight": torch.randn(2, width, generator=generator),
        "blocks.0.self_attn.q.lora_B.default.weight": torch.randn(width, 2, generator=generator),
    }
    save_file(tensors, path)
    return path


def test_events_tell_every_step_in_order(engine):
    events = []
    engine.render(recipe(), on_event=events.append)
    assert [(event.stage, event.step) for event in events] == [
        ("encode", 0), ("denoise", 0), ("denoise", 1), ("denoise", 2), ("denoise", 3), ("decode", 3),
    ]  # fmt: skip
    assert {event.num_steps for event in events} == {3}
    assert [event.step_s is not None for event in events] == [False, False, True, True, True, False]
    elapsed = [event.elapsed_s for event in events]
    assert elapsed == sorted(elapsed)


def test_what_a_listener_raises_ends_the_render_and_the_engine_goes_on(engine):
    class Cancelled(Exception):
        pass

    def cancel(event):
        if event.step == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        engine.render(recipe(), on_event=cancel)
    assert len(engine.render(recipe()).frames_THWC) == 5


def test_states_are_values_an_old_one_gives_the_same_again(engine):
    start = engine.start(recipe(), RenderInputs())
    one = engine.step(start)
    kept = one.latents_BCTHW.clone()
    two = engine.step(one)
    assert (start.step, one.step, two.step) == (0, 1, 2)
    assert torch.equal(one.latents_BCTHW, kept)
    assert torch.equal(engine.step(one).latents_BCTHW, two.latents_BCTHW)


def test_two_renders_can_take_turns(engine, tmp_path):
    path = lora_file(tmp_path / "l.safetensors", engine)
    with_lora = recipe(loras=(LoraRef(sha256=file_sha256(path)),))
    inputs = RenderInputs(lora_paths=(path,))
    alone = engine.render(recipe()).frames_THWC, engine.render(with_lora, inputs).frames_THWC
    states = [engine.start(recipe(), RenderInputs()), engine.start(with_lora, inputs)]
    while not states[0].is_done:
        states = [engine.step(state) for state in states]
    for state, expected in zip(states, alone, strict=True):
        assert np.array_equal(engine.finish(state).frames_THWC, expected)


def test_a_snapshot_goes_on_to_the_same_bits_in_another_engine(engine, tokenizer_dir, tmp_path):
    video = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    path = lora_file(tmp_path / "l.safetensors", engine)
    wanted = recipe(
        loras=(LoraRef(sha256=file_sha256(path), weight=0.5),),
        videos=(VideoRef(role="input_video", sha256=video_sha256(video)),),
        denoising_strength=0.8,
    )
    state = engine.step(engine.start(wanted, RenderInputs(videos={"input_video": video}, lora_paths=(path,))))
    engine.snapshot(state, tmp_path / "state.safetensors")
    other = LocalEngine(tiny_t2v(tokenizer_dir))
    restored = other.restore(tmp_path / "state.safetensors")
    assert (restored.recipe, restored.step, restored.step_s) == (wanted, 1, state.step_s)
    with pytest.raises(LoraError, match="not among the files given"):
        other.step(restored)
    other.add_loras([path])
    while not state.is_done:
        state, restored = engine.step(state), other.step(restored)
    assert torch.equal(state.latents_BCTHW, restored.latents_BCTHW)


def test_a_snapshot_of_other_weights_or_a_damaged_one_is_refused(engine, tokenizer_dir, tmp_path):
    path = tmp_path / "state.safetensors"
    engine.snapshot(engine.start(recipe(), RenderInputs()), path)
    other = LocalEngine(dataclasses.replace(tiny_t2v(tokenizer_dir), weights_sha256="cd" * 32))
    with pytest.raises(WeightsError, match="this engine holds cdcdcd"):
        other.restore(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="damaged"):
        engine.restore(path)
    header = {"format": "sakuga-render-state", "version": str(VERSION), "aliases": "{}", "counters": "{"}
    save_file({"x": torch.ones(1)}, path, metadata=header)
    with pytest.raises(WeightsError, match="damaged: its header lacks or garbles"):
        engine.restore(path)
    save_file({"x": torch.ones(1)}, path)
    with pytest.raises(RecipeError, match="no render state"):
        engine.restore(path)
    save_file({"x": torch.ones(1)}, path, metadata={"format": "sakuga-render-state", "version": "99"})
    with pytest.raises(RecipeError, match="of version '99', this program writes"):
        engine.restore(path)


def test_a_snapshot_of_another_render_is_refused(engine, tmp_path):
    path = tmp_path / "state.safetensors"
    engine.snapshot(engine.start(recipe(), RenderInputs()), path)
    assert engine.restore(path, recipe()).step == 0
    with pytest.raises(RecipeError, match=f"not of {recipe(seed=2).render_key[:12]}; start this render"):
        engine.restore(path, recipe(seed=2))


def test_a_14b_state_at_720p_is_small(tmp_path):
    """Random numbers in the shapes of Wan2.1-I2V-14B-720P, 81 frames, bf16 but for the latents."""
    latents = torch.randn(1, 16, 21, 90, 160)
    half = {"dtype": torch.bfloat16}
    conditioning = Conditioning(
        context_positive_BLD=torch.randn(1, 512, 4096, **half),
        context_negative_BLD=torch.randn(1, 512, 4096, **half),
        y_BCTHW=torch.randn(1, 20, 21, 90, 160, **half),
        clip_feature_BLD=torch.randn(1, 257, 1280, **half),
    )
    caches = {
        branch: BranchCache(tensors={name: torch.randn_like(latents) for name in ("velocity", "before")})
        for branch in ("positive.0", "negative.0")
    }
    cache = StepCache(kind="forecast", threshold_rel_l1=0.1, refresh_every=5)
    state = RenderState(
        recipe=recipe(step_cache=cache), conditioning=conditioning, latents_BCTHW=latents, step=5,
        sigmas=torch.linspace(1, 0, 51), caches=caches, velocity_BCTHW=torch.randn_like(latents),
    )  # fmt: skip
    save_state(state, tmp_path / "light.safetensors")
    latent_bytes = latents.numel() * 4
    assert (tmp_path / "light.safetensors").stat().st_size <= 2.2 * latent_bytes
    save_state(dataclasses.replace(state, step=6), tmp_path / "full.safetensors")
    assert (tmp_path / "full.safetensors").stat().st_size > 6 * latent_bytes


def test_a_lora_is_fused_for_its_recipe_only_and_counted(engine, tmp_path):
    path = lora_file(tmp_path / "fairy.safetensors", engine)
    weight = engine.model.pipe.dit.blocks[0].self_attn.q.weight
    base = weight.clone()
    plain = engine.render(recipe()).frames_THWC
    wanted = recipe(loras=(LoraRef(sha256=file_sha256(path), weight=0.8),))
    video = engine.render(wanted, RenderInputs(lora_paths=(path,)))
    assert not torch.equal(weight, base)
    assert not np.array_equal(video.frames_THWC, plain)
    entry = engine.receipt(wanted, video)["loras"][0]
    assert (entry["file"], entry["matched"], entry["expected"], entry["ranks"]) == ("fairy.safetensors", 1, 1, [2])
    assert np.array_equal(engine.render(recipe()).frames_THWC, plain)
    assert torch.equal(weight, base)


def test_nan_is_an_error_and_no_video(engine):
    engine.model.pipe.dit.head.head.bias.data.fill_(float("nan"))
    with pytest.raises(NumericsError, match="step 1 of 3"):
        engine.render(recipe())


def test_a_vae_that_decodes_to_nan_is_an_error_and_no_black_video(engine):
    engine.model.pipe.vae.model.decoder.head[-1].bias.data[1] = float("nan")
    with pytest.raises(NumericsError, match="decoding gave NaN"):
        engine.render(recipe())


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"model": "wan-mini"}, ModelError, r"holds wan2\.1-t2v-1\.3b"),
        ({"weights_sha256": "cd" * 32}, WeightsError, "asks for weights cdcdcd"),
        ({"precision": "bf16"}, RecipeError, "runs in fp32"),
        ({"width": 40}, GeometryError, "nearest: 48x32"),
        ({"num_frames": 6}, GeometryError, "nearest: 5"),
        ({"attention": "sage"}, AttentionError, "needs a CUDA device"),
        ({"step_cache": StepCache(kind="teecache", threshold_rel_l1=0.1)}, RecipeError, "did you mean 'teacache'"),
        ({"denoising_strength": 0.5}, RecipeError, "input_video"),
        ({"guidance_scale_2": 3.0}, RecipeError, "two experts"),
    ],
)
def test_a_recipe_that_this_engine_cannot_render_is_refused_before_any_model_work(
    engine, fields, error, message, monkeypatch
):
    monkeypatch.setattr("sakuga.engine.local.encode", lambda *_: pytest.fail("model work began"))
    with pytest.raises(error, match=message):
        engine.start(recipe(**fields), RenderInputs())


def test_a_video_shorter_than_the_render_is_refused(engine):
    video = np.zeros((3, 32, 32, 3), dtype=np.uint8)
    wanted = recipe(videos=(VideoRef(role="input_video", sha256=video_sha256(video)),))
    with pytest.raises(VideoError, match="has 3 frames and 5"):
        engine.start(wanted, RenderInputs(videos={"input_video": video}))


def test_finish_before_the_last_step_is_refused(engine):
    with pytest.raises(RecipeError, match="3 steps are still to do"):
        engine.finish(engine.start(recipe(), RenderInputs()))


def test_a_prompt_beyond_the_tokenizer_is_said_in_the_receipt(engine, caplog):
    long = recipe(prompt="wings and hair " * 400)
    video = engine.render(long)
    notes = engine.receipt(long, video)["notes"]
    assert len(notes) == 1
    assert "the tokenizer stops at 512" in notes[0]
    assert "the tokenizer stops at 512" in caplog.text
    assert engine.receipt(recipe(), engine.render(recipe()))["notes"] == []


def test_what_is_cut_off_an_input_is_said_in_the_receipt(engine):
    video = np.zeros((7, 32, 40, 3), dtype=np.uint8)
    wanted = recipe(videos=(VideoRef(role="input_video", sha256=video_sha256(video)),), denoising_strength=0.5)
    rendered = engine.render(wanted, RenderInputs(videos={"input_video": video}, notes=("said before",)))
    assert engine.receipt(wanted, rendered)["notes"] == [
        "said before",
        "input_video has 7 frames, the first 5 are used",
        "input_video is 40x32, its middle 32x32 is used for 32x32",
    ]


def test_receipt_holds_what_made_the_video_and_is_json(engine):
    wanted = recipe()
    video = engine.render(wanted)
    receipt = json.loads(json.dumps(engine.receipt(wanted, video), allow_nan=False))
    assert RenderRecipe.from_dict(receipt["recipe"]) == wanted
    assert receipt["key"] == wanted.render_key
    assert receipt["weights"]["sha256"] == "ab" * 32
    assert receipt["attention"] == {"asked": "auto", "used": "sdpa", "trials": []}
    assert receipt["plan"] == "cfg 1 x ulysses 1 x ring 1, memory resident"
    assert receipt["versions"]["torch"] == torch.__version__
    seconds = receipt["seconds"]
    parts = seconds["encode"] + seconds["denoise"] + seconds["decode"]
    assert seconds["total"] == pytest.approx(parts, abs=1e-3)  # rounded to 0.1 ms each
    assert len(receipt["step_s"]) == 3


def test_artifacts_are_whole_and_the_receipt_comes_last(engine, tmp_path, monkeypatch):
    wanted = recipe()
    video = engine.render(wanted)
    paths = write_render(video, engine.receipt(wanted, video), tmp_path / "out", "v")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"v.mp4", "v.webp", "v.sprites.webp", "v.json"}
    assert read_video(paths.video).shape == (5, 32, 32, 3)
    assert Image.open(paths.thumbnail).format == "WEBP"
    receipt = json.loads(paths.receipt.read_text())
    assert receipt["files"] == {"video": "v.mp4", "thumbnail": "v.webp", "sprites": "v.sprites.webp"}
    assert receipt["spritesheet"]["num_tiles"] >= 1

    def fail(*_args):
        raise OutputError("no space")

    monkeypatch.setattr("sakuga.engine.artifacts.spritesheet_webp", fail)
    with pytest.raises(OutputError):
        write_render(video, receipt, tmp_path / "out", "v")
    assert not paths.receipt.exists(), "an old receipt vouches for a video that was not finished"


def test_a_render_of_one_frame_is_a_picture_too(engine, tmp_path):
    wanted = recipe(num_frames=1)
    video = engine.render(wanted)
    paths = write_render(video, engine.receipt(wanted, video), tmp_path / "out", "v")
    assert (np.asarray(Image.open(paths.picture)) == video.frames_THWC[0]).all(), "every pixel as it is"
    assert read_video(paths.video).shape == (1, 32, 32, 3)
    assert json.loads(paths.receipt.read_text())["files"]["picture"] == "v.png"
    longer = engine.render(recipe())
    write_render(longer, engine.receipt(recipe(), longer), tmp_path / "out", "v")
    assert not paths.picture.exists(), "an old picture beside a new video"
