"""Command line of Wan-mini's training: `python -m sakuga.training.mini STAGE --preset cpu --runs runs/mini`."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from sakuga.synth import World
from sakuga.training.mini.card import STAGES, draw_curves, write_card
from sakuga.training.mini.dit import (
    BASE_PRESETS,
    FAIRY_PRESETS,
    DitPreset,
    DitTrainer,
    load_part,
    save_lora,
    train_dit,
)
from sakuga.training.mini.latents import cache_clips, training_seeds
from sakuga.training.mini.run import fingerprint, pick_device
from sakuga.training.mini.vae import DECODER_PRESETS, VAE_PRESETS, train_vae
from sakuga.wan.mini import PARTS, mini_dir, save_part
from sakuga.wan.mini.models import MiniConfig
from sakuga.wan.mini.tokenizer import save_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sakuga.training.mini", description=__doc__)
    parser.add_argument("stage", choices=("tokenizer", "vae", "cache", "base", "decoder", "fairy", "card"))
    parser.add_argument("--preset", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--runs", type=Path, default=Path("runs/mini"), help="checkpoints, logs and cached latents")
    parser.add_argument("--weights", type=Path, default=mini_dir(), help="model folder that is read and written")
    parser.add_argument("--steps", type=int, help="steps of base or fairy, instead of the preset's")
    parser.add_argument("--warm-start", action="store_true", help="begin a new base run from the weights folder")
    parser.add_argument("--world", choices=("live", "fairy"), help="cache only this world")
    parser.add_argument("--photos", type=Path, help="folder of photographs instead of scikit-image's")
    parser.add_argument("--curves", type=Path, default=Path("docs/wan-mini-losses.svg"), help="where card draws them")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw; as many as cores for one GPU")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if args.threads:
        torch.set_num_threads(args.threads)
    stages: dict[str, Callable[[argparse.Namespace], None]] = {
        "tokenizer": lambda args: save_tokenizer(args.weights / "tokenizer", MiniConfig().text_encoder.vocab),
        "vae": make_vae,
        "cache": make_cache,
        "base": make_base,
        "decoder": make_decoder,
        "fairy": make_fairy,
        "card": make_card,
    }
    stages[args.stage](args)


def run_folder(args: argparse.Namespace, stage: str) -> Path:
    """Where a stage runs: named after what it rests on."""
    below = {"vae": (), "fairy": PARTS}.get(stage, ("vae",))
    basis = fingerprint(*(args.weights / f"{part}.safetensors" for part in below))
    return args.runs / (f"{stage}-{basis}" if below else stage)


def make_vae(args: argparse.Namespace) -> None:
    vae = train_vae(
        run_folder(args, "vae"), VAE_PRESETS[args.preset], args.device, args.photos, num_workers=args.workers
    )
    save_part(vae, args.weights / "vae.safetensors")


def make_decoder(args: argparse.Namespace) -> None:
    vae = MiniConfig().build_vae()
    load_part(vae, args.weights / "vae.safetensors")
    preset = DECODER_PRESETS[args.preset]
    folder = run_folder(args, "decoder")
    train_vae(folder, preset, args.device, args.photos, num_workers=args.workers, decoder_of=vae)
    save_part(vae, args.weights / "vae.safetensors")


def make_cache(args: argparse.Namespace) -> None:
    vae = MiniConfig().build_vae()
    load_part(vae, args.weights / "vae.safetensors")
    device = pick_device(args.device)
    vae.to(device)
    worlds: tuple[tuple[World, dict[str, DitPreset]], ...] = (("live", BASE_PRESETS), ("fairy", FAIRY_PRESETS))
    for world, presets in worlds:
        if args.world in (None, world):
            cache_clips(
                run_folder(args, f"clips-{world}"),
                vae,
                training_seeds(presets[args.preset].num_clips),
                world,
                device,
                args.photos,
                num_workers=args.workers,
                batch_size=8 if device.type == "cuda" else 1,
            )


def make_base(args: argparse.Namespace) -> None:
    trainer = _train(args, BASE_PRESETS, "base", "clips-live")
    save_part(trainer.dit, args.weights / "dit.safetensors")
    save_part(trainer.text_encoder, args.weights / "text_encoder.safetensors")


def make_fairy(args: argparse.Namespace) -> None:
    trainer = _train(args, FAIRY_PRESETS, "fairy", "clips-fairy")
    rank = str(FAIRY_PRESETS[args.preset].lora_rank)
    metadata = {"rank": rank, "alpha": rank, "base": "wan-mini"}
    save_lora(trainer, args.weights / "loras" / "fairy.safetensors", metadata)


def _train(args: argparse.Namespace, presets: dict[str, DitPreset], stage: str, clips: str) -> DitTrainer:
    preset = presets[args.preset]
    return train_dit(
        run_folder(args, stage),
        run_folder(args, clips),
        args.weights,
        replace(preset, num_steps=args.steps) if args.steps else preset,
        lora=stage == "fairy",
        warm_start=args.warm_start,
        device_name=args.device,
    )


def make_card(args: argparse.Namespace) -> None:
    folders = {stage: run_folder(args, stage) for stage in STAGES}
    write_card(args.weights, folders)
    draw_curves(folders, args.curves)


if __name__ == "__main__":
    main()
