"""Procedural dancers: a seed becomes a clip with prompt, first frame, skeleton, mask and layers.

Two worlds: *live* looks like a photo, *fairy* turns the photo into an anime fairy. It knows nothing of models.
"""

from sakuga.synth.choreography import DANCES, Choreography
from sakuga.synth.figure import HAIR_COLOURS, OUTFIT_COLOURS, Figure
from sakuga.synth.sample import HELD_OUT_SEED, Sample, World, make_sample

__all__ = [
    "DANCES", "HAIR_COLOURS", "HELD_OUT_SEED", "OUTFIT_COLOURS",
    "Choreography", "Figure", "Sample", "World", "make_sample",
]  # fmt: skip
