"""How Wan-mini was trained: VAE, then the DiT with its text encoder, then the fairy LoRA.

    python -m sakuga.training.mini {tokenizer,vae,cache,base,fairy,card} --preset {cpu,gpu}

Needs torch, diffsynth, numpy, opencv and safetensors, no network, no pydantic and no ray. Every stage resumes from its
last checkpoint in the run folder when it is started again.
"""
