"""Command line of Wan-mini's training: `python -m sakuga.training.mini STAGE --preset cpu --runs runs/mini`."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path

import torch

from sakuga.synth import World
from sakuga.training.mini.card import draw_curves, write_card
from sakuga.training.mini.dit import BASE_PRESETS, FAIRY_PRESETS, DitPreset, load_part, save_lora, train_dit
from sakuga.training.mini.latents import cache_clips
from sakuga.training.mini.run import pick_device
from sakuga.training.mini.vae import VAE_PRESETS, train_vae
from sakuga.wan.mini import mini_dir, save_part
from sakuga.wan.mini.models import MiniConfig
from sakuga.wan.mini.tokenizer import save_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sakuga.training.mini", description=__doc__)
    parser.add_argument("stage", choices=("tokenizer", "vae", "cache", "base", "fairy", "card"))
    parser.add_argument("--preset", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--runs", type=Path, default=Path("runs/mini"), help="checkpoints, logs and cached latents")
    parser.add_argument("--weights", type=Path, default=mini_dir(), help="model folder that is read and written")
    parser.add_argument("--steps", type=int, help="steps of base or fairy, instead of the preset's")
    parser.add_argument("--world", choices=("live", "fairy"), help="cache only this world")
    parser.add_argument("--curves", type=Path, default=Path("docs/wan-mini-losses.svg"), help="where card draws them")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.stage == "tokenizer":
        save_tokenizer(args.weights / "tokenizer", MiniConfig().text_encoder.vocab)
    elif args.stage == "vae":
        vae = train_vae(args.runs / "vae", VAE_PRESETS[args.preset], args.device)
        save_part(vae, args.weights / "vae.safetensors")
    elif args.stage == "cache":
        vae = MiniConfig().build_vae()
        load_part(vae, args.weights / "vae.safetensors")
        device = pick_device(args.device)
        vae.to(device)
        worlds: tuple[tuple[World, dict[str, DitPreset]], ...] = (("live", BASE_PRESETS), ("fairy", FAIRY_PRESETS))
        for world, presets in worlds:
            if args.world in (None, world):
                seeds = range(presets[args.preset].num_clips)
                cache_clips(args.runs / f"clips-{world}", vae, seeds, world, device)
    elif args.stage == "card":
        write_card(args.weights, args.runs, args.preset)
        draw_curves(args.runs, args.curves)
    else:
        presets = BASE_PRESETS if args.stage == "base" else FAIRY_PRESETS
        preset = presets[args.preset]
        preset = replace(preset, num_steps=args.steps) if args.steps else preset
        clips = args.runs / ("clips-live" if args.stage == "base" else "clips-fairy")
        is_lora = args.stage == "fairy"
        trainer = train_dit(args.runs / args.stage, clips, args.weights, preset, lora=is_lora, device_name=args.device)
        if is_lora:
            metadata = {"rank": str(preset.lora_rank), "alpha": str(preset.lora_rank), "base": "wan-mini"}
            save_lora(trainer, args.weights / "loras" / "fairy.safetensors", metadata)
        else:
            save_part(trainer.dit, args.weights / "dit.safetensors")
            save_part(trainer.text_encoder, args.weights / "text_encoder.safetensors")


if __name__ == "__main__":
    main()
