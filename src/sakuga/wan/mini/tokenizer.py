"""The tokenizer: byte-level BPE trained on the dancers' prompts, so that any text has tokens and ours have few.

Trained from the prompts of fixed seeds, hence the same on every machine. Ids: 0 padding, 1 end, as in T5.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sakuga.synth.choreography import draw_choreography
from sakuga.synth.figure import draw_figure_attributes
from sakuga.synth.prompts import paraphrases

NUM_PROMPT_SEEDS = 1500


def train_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE, lower case, with `</s>` at the end of every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_prompts(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


def save_tokenizer(folder: Path, vocab_size: int) -> None:
    """Train and write the tokenizer as a Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    train_tokenizer(vocab_size).save_pretrained(folder)


def _prompts() -> list[str]:
    texts: list[str] = []
    for seed in range(NUM_PROMPT_SEEDS):
        rng = np.random.default_rng(seed)
        figure, choreography = draw_figure_attributes(rng), draw_choreography(rng)
        for world in ("live", "fairy"):
            texts += paraphrases(figure, choreography, world)
    return texts
