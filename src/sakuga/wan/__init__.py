"""Everything that touches DiffSynth's Wan classes: cards, loading, attention, LoRA, conditioning, the mini model."""
