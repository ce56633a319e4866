"""Wan-mini's training: exact short texts, resumable runs, and a loss that a model can lower."""

import argparse
import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffsynth.pipelines.wan_video import model_fn_wan_video
from safetensors.torch import load_file, save_file

from sakuga.synth.dataset import is_test_seed
from sakuga.training.mini import dit as dit_stage
from sakuga.training.mini import flow
from sakuga.training.mini.__main__ import run_folder
from sakuga.training.mini.card import STAGES, draw_curves, write_card
from sakuga.training.mini.latents import Clip, cache_clips, draw_clip, geometry_of, load_clips, training_seeds
from sakuga.training.mini.pictures import load_photos, photo_crop
from sakuga.training.mini.run import Run
from sakuga.training.mini.vae import ClipPool, Phase, VaePreset, VaeTrainer, train_vae
from sakuga.training.optimizers import Ema, MuonAdamW, orthogonalised
from sakuga.wan.attention import attention
from sakuga.wan.mini import MiniConfig, random_weights
from sakuga.wan.mini.models import DitConfig, TextEncoderConfig

SMALL = MiniConfig(
    dit=DitConfig(dim=48, num_heads=1, ffn_dim=48, num_layers=2, text_dim=48),
    text_encoder=TextEncoderConfig(dim=48, dim_attn=48, dim_ffn=48, num_heads=1, num_layers=1),
)


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small lose at two threads' barriers: 20 ms a step alone, 1 s on a busy machine."""
    kept = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(kept)


@pytest.fixture
def small(monkeypatch):
    """The training stages build small networks."""
    monkeypatch.setattr(dit_stage, "MiniConfig", lambda: SMALL)
    return SMALL


def test_orthogonalised_matrices_have_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((16, 40), (40, 16), (3, 16, 40)):
        values = torch.linalg.svdvals(orthogonalised(torch.randn(shape) * 7))
        assert values.min() > 0.5
        assert values.max() < 1.3


def test_short_texts_give_what_512_tokens_give():
    """The log-count bias makes 72 text columns exact: compared with the pipeline's own model function."""
    torch.manual_seed(0)
    dit = SMALL.build_dit()
    context = torch.zeros(2, flow.NUM_TEXT_TOKENS, 48)
    context[0, :40], context[1, :3] = torch.randn(40, 48), torch.randn(3, 48)
    latents, y, timestep = torch.randn(2, 16, 3, 4, 4), torch.randn(2, 20, 3, 4, 4), torch.tensor([900.0, 300.0])
    with torch.no_grad():
        with attention("sdpa"):
            full = model_fn_wan_video(dit, latents=latents, timestep=timestep, context=context, y=y)
        with flow.training_attention():
            short_context = context[:, : flow.SHORT_TEXT_TOKENS]
            short = model_fn_wan_video(dit, latents=latents, timestep=timestep, context=short_context, y=y)
            cut = model_fn_wan_video(dit, latents=latents, timestep=timestep, context=context[:, :60], y=y)
    assert torch.allclose(short, full, atol=1e-5)
    assert not torch.allclose(cut, full, atol=1e-5), "the number of padding tokens must matter, or this proves nothing"


def small_batch(num: int = 2) -> flow.Batch:
    return flow.Batch(
        latents_BCThw=torch.randn(num, 16, 3, 8, 8),
        y_BCThw=torch.randn(num, 20, 3, 8, 8),
        weight_BThw=1 + torch.rand(num, 3, 8, 8),
        token_ids_BL=torch.zeros(num, 4, dtype=torch.long),
        token_mask_BL=torch.ones(num, 4, dtype=torch.long),
    )


def test_keeping_every_token_gives_the_whole_models_velocity_and_loss():
    torch.manual_seed(0)
    dit, batch, context = SMALL.build_dit(), small_batch(), torch.randn(2, 72, 48)
    kept = torch.arange(3 * 4 * 4).expand(2, -1)
    timestep = torch.tensor([900.0, 300.0])
    with torch.no_grad(), flow.training_attention():
        args = (dit, batch.latents_BCThw, timestep, context, batch.y_BCThw)
        tokens = flow.masked_velocity(*args, kept)
        half = flow.masked_velocity(*args, kept[:, ::2])
        whole = model_fn_wan_video(args[0], latents=args[1], timestep=args[2], context=args[3], y=args[4])
    assert torch.allclose(tokens, flow._patches(whole, kept), atol=1e-5)
    assert not torch.allclose(half, tokens[:, ::2], atol=1e-3), "left-out tokens must be seen by none"


def test_the_masked_loss_is_the_loss_of_its_tokens(monkeypatch):
    torch.manual_seed(0)
    dit, batch, context = SMALL.build_dit(), small_batch(), torch.randn(2, 72, 48)

    def everything(weight, share, rng):
        return torch.arange(3 * 4 * 4).expand(2, -1)

    monkeypatch.setattr(flow, "draw_tokens", everything)
    with torch.no_grad(), flow.training_attention():
        whole, masked = (
            flow.flow_loss(dit, context, batch, torch.Generator().manual_seed(1), share) for share in (1.0, 0.5)
        )
    assert masked == pytest.approx(float(whole), rel=1e-5)


def test_drawn_tokens_hold_the_dancer_and_the_same_places_in_every_frame():
    weight = torch.ones(1, 3, 8, 8)
    weight[0, 1, 2:6, 4:6] = 3.0  # two places of the 4 x 4, in one frame only
    kept = flow.draw_tokens(weight, 0.25, torch.Generator().manual_seed(0))
    places = kept.view(3, 4)
    assert {1 * 4 + 2, 2 * 4 + 2} <= set(places[0].tolist())
    assert torch.equal(places[1], places[0] + 16)
    assert torch.equal(places[2], places[0] + 32)
    other = flow.draw_tokens(weight, 0.25, torch.Generator().manual_seed(1))
    assert not torch.equal(kept, other), "the background is drawn anew"


def test_an_interrupted_run_ends_like_an_uninterrupted_one(tmp_path):
    def train(folder, stops):
        torch.manual_seed(0)
        module = torch.nn.Linear(8, 8)
        for num_steps in stops:
            optimizer = MuonAdamW(module.named_parameters(), lr=1e-2, num_steps=20, warmup=2)
            run = Run(folder, module, optimizer, Ema(module, 0.9), num_steps)
            run.resume()
            while run.step < num_steps:
                inputs = torch.randn(4, 8, generator=torch.Generator().manual_seed(run.step))
                loss = (module(inputs) - inputs).square().mean()
                loss.backward()
                optimizer.step(run.step)
                run.ema.update(module, run.step)
                run.after_step({"loss": loss.item()}, log_every=1)
            torch.nn.init.zeros_(module.weight)  # what counts must come from the checkpoint
        saved = torch.load(run.checkpoint, weights_only=True)
        return saved["ema"], [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]

    whole, whole_log = train(tmp_path / "a", [12])
    parts, parts_log = train(tmp_path / "b", [5, 12])
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert [line["loss"] for line in parts_log] == [line["loss"] for line in whole_log]


def test_clips_are_cached_once_and_hold_the_sample(tmp_path):
    vae = MiniConfig().build_vae()
    cache_clips(tmp_path, vae, range(5, 6), "live", torch.device("cpu"))
    written = (tmp_path / "5.safetensors").stat().st_mtime_ns
    cache_clips(tmp_path, vae, range(5, 6), "live", torch.device("cpu"))
    assert (tmp_path / "5.safetensors").stat().st_mtime_ns == written
    (clip,) = load_clips(tmp_path)
    sample = draw_clip(5, "live", [])
    assert geometry_of(5) == (128, 128, 33)
    assert clip.video_CThw.shape == clip.first_CThw.shape == (16, 9, 16, 16)
    assert clip.both_CThw is not None
    assert clip.prompts == sample.prompts
    # Causal: the first latent frame knows only the first frame.
    assert torch.allclose(clip.video_CThw[:, 0], clip.first_CThw[:, 0], atol=2e-2)
    covered = float(clip.figure_Thw.float().mean())
    assert abs(covered - sample.figure_mask_THW[1:].mean()) < 0.02


def test_training_keeps_out_of_the_test_split():
    seeds = training_seeds(40)
    assert len(seeds) == 40
    assert not any(is_test_seed(seed) for seed in seeds)


def test_new_weights_get_new_run_folders(tmp_path):
    """Else a finished LoRA of the old base would be taken for the new base's."""
    args = argparse.Namespace(weights=random_weights(tmp_path, config=SMALL), runs=tmp_path / "runs")
    before = {stage: run_folder(args, stage) for stage in ("vae", "clips-live", "base", "fairy")}
    random_weights(tmp_path / "other", seed=1, config=SMALL)
    (tmp_path / "other" / "dit.safetensors").replace(tmp_path / "dit.safetensors")
    after = {stage: run_folder(args, stage) for stage in before}
    assert [stage for stage in before if before[stage] != after[stage]] == ["fairy"]
    (tmp_path / "other" / "vae.safetensors").replace(tmp_path / "vae.safetensors")
    last = {stage: run_folder(args, stage) for stage in before}
    assert [stage for stage in before if after[stage] != last[stage]] == ["clips-live", "base", "fairy"]
    vae = load_file(tmp_path / "vae.safetensors")
    name = next(name for name in vae if name.startswith("model.decoder."))
    save_file(vae | {name: vae[name] + 1}, tmp_path / "vae.safetensors")
    assert {stage: run_folder(args, stage) for stage in before} == last, "latents do not depend on the decoder"


def test_the_card_tells_what_was_trained_and_what_is_missing(tmp_path):
    weights = random_weights(tmp_path / "weights", config=SMALL)
    folders = {stage: tmp_path / stage for stage in STAGES}
    folders["vae"].mkdir()
    lines = [{"step": step, "seconds": step / 2, "loss": 1 / step} for step in (20, 40, 60)]
    (folders["vae"] / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folders["vae"] / "run.json").write_text(json.dumps({"device": "an abacus", "settings": {"lr": 1}}))
    card = write_card(weights, folders)
    assert card["training"]["vae"] | {"settings": None} == {
        "device": "an abacus", "settings": None, "steps": 60, "seconds": 30, "last_loss": round(1 / 60, 5),
    }  # fmt: skip
    assert "missing" in card["training"]["fairy"]
    digest = hashlib.sha256((weights / "dit.safetensors").read_bytes()).hexdigest()
    assert json.loads((weights / "card.json").read_text())["sha256"]["dit.safetensors"] == digest
    assert "tokenizer/tokenizer.json" in card["sha256"]
    card["training"] |= {"fast4": {"steps": 9}, "gone": {"steps": 1}}
    (weights / "card.json").write_text(json.dumps(card))
    (weights / "loras").mkdir(exist_ok=True)
    (weights / "loras" / "fast4.safetensors").write_bytes(b"a LoRA")
    again = write_card(weights, folders)["training"]
    assert again["fast4"] == {"steps": 9} and "gone" not in again
    draw_curves(folders, tmp_path / "curves.svg")
    assert "vae: loss, 60 steps" in (tmp_path / "curves.svg").read_text()


def test_clips_drawn_by_workers_and_encoded_together_are_the_same(tmp_path):
    vae, seeds = MiniConfig().build_vae(), [2, 3, 5, 10]
    cache_clips(tmp_path / "one", vae, seeds, "live", torch.device("cpu"))
    cache_clips(tmp_path / "many", vae, seeds, "live", torch.device("cpu"), num_workers=1, batch_size=2)
    for one, many in zip(load_clips(tmp_path / "one"), load_clips(tmp_path / "many"), strict=True):
        assert one.prompts == many.prompts
        assert torch.equal(one.figure_Thw, many.figure_Thw)
        assert torch.allclose(one.video_CThw.float(), many.video_CThw.float(), atol=2e-2)  # bf16, another batch
        assert (one.both_CThw is None) == (many.both_CThw is None)


def test_caching_without_clips_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="cache"):
        load_clips(tmp_path)


def fake_clip(seed: int) -> Clip:
    """A moving blob in one latent channel, so that there is something to learn."""
    generator = torch.Generator().manual_seed(seed)
    video = 0.1 * torch.randn(16, 3, 4, 4, generator=generator)
    video[0] += torch.linspace(-1, 1, 3)[:, None, None]
    return Clip(video_CThw=video.half(), first_CThw=video.half(), both_CThw=None,
                figure_Thw=torch.ones(3, 4, 4).half(), prompts=("a quick twirl",))  # fmt: skip


def test_base_and_lora_lower_their_loss(tmp_path, small, monkeypatch):
    weights = random_weights(tmp_path / "weights", config=small)
    monkeypatch.setattr(dit_stage, "load_clips", lambda folder: [fake_clip(seed) for seed in range(8)])
    preset = dit_stage.DitPreset(num_clips=8, num_steps=40, tokens_per_batch=8 * 12, lr=1e-2, ema_decay=0.5)
    trainer = dit_stage.train_dit(tmp_path / "base", tmp_path, weights, preset, lora=False)
    before, after = losses(tmp_path / "base")
    assert after < 0.85 * before
    assert not any("lora" in name for name, _ in trainer.named_parameters())
    frozen = load_file(weights / "dit.safetensors")["blocks.0.self_attn.q.weight"].float()
    warm = dit_stage.train_dit(
        tmp_path / "warm", tmp_path, weights, replace(preset, num_steps=0), lora=False, warm_start=True
    )
    assert torch.equal(warm.dit.blocks[0].self_attn.q.weight, frozen), "a warm start begins with the weights"
    lora = dit_stage.train_dit(tmp_path / "fairy", tmp_path, weights, replace(preset, lora_rank=4), lora=True)
    before, after = losses(tmp_path / "fairy")
    assert after < before
    assert torch.equal(lora.dit.blocks[0].self_attn.q.base_layer.weight, frozen), "the base must stay as it was"
    dit_stage.save_lora(lora, tmp_path / "lora.safetensors", {"rank": "4"})
    saved = load_file(tmp_path / "lora.safetensors")
    assert len(saved) == 2 * 2 * 10  # A and B, two blocks, q k v o of both attentions and two of the ffn
    assert saved["blocks.0.self_attn.q.lora_A.default.weight"].shape == (4, 48)
    assert all(value.abs().sum() > 0 for name, value in saved.items()), "an adapter matrix that never moved"


def losses(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return lines[0]["loss"], lines[-1]["loss"]


def test_vae_step_reaches_encoder_and_decoder():
    trainer = VaeTrainer(MiniConfig().build_vae(), kl_weight=1e-4)
    loss, figures = trainer(torch.rand(1, 3, 5, 32, 32) * 2 - 1, torch.Generator().manual_seed(0))
    loss.backward()
    assert figures["kl"] > 0
    without = [name for name, p in trainer.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert without == []


def test_a_finer_decoder_leaves_the_encoder_as_it_is(tmp_path):
    torch.manual_seed(0)
    vae = MiniConfig().build_vae()
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    preset = VaePreset(phases=(Phase(2, 1, 5),), crop=32, lr=1e-3, pool_clips=1, photo_share=0.0)
    after = train_vae(tmp_path, preset, "cpu", decoder_of=vae).state_dict()
    changed = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder", "conv2"}


def test_vae_batches_mix_dancers_and_photographs():
    preset = VaePreset(phases=(Phase(2, 4, 5), Phase(3, 2, 9)), crop=64, lr=1e-3, pool_clips=2, photo_share=0.5)
    assert (preset.num_steps, preset.phase_at(1).num_frames, preset.phase_at(2).num_frames) == (5, 5, 9)
    pool = ClipPool(preset, load_photos())
    pool.refresh(3)
    assert len(pool.clips) == 2
    batch = pool.batch(np.random.default_rng(0), preset.phases[0])
    assert batch.shape == (4, 3, 5, 64, 64)
    assert -1 <= batch.min() < batch.max() <= 1


def test_the_astronaut_is_never_seen():
    """The demo's photograph must stay unseen: no training photo correlates with it."""
    from skimage.data import astronaut

    def tiny(photo):
        return photo_crop([photo], np.random.default_rng(1), 16, 16).astype(float).ravel()

    face = tiny(astronaut())
    assert all(abs(np.corrcoef(face, tiny(photo))[0, 1]) < 0.9 for photo in load_photos())
    assert np.corrcoef(face, tiny(astronaut()))[0, 1] > 0.99


def test_a_folder_without_photos_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="--photos"):
        load_photos(tmp_path)
