"""Prompts: natural sentences that name a figure's attributes and her dance, several paraphrases for each sample."""

from __future__ import annotations

from sakuga.synth.choreography import Choreography
from sakuga.synth.figure import Figure

_DANCE_WORDS = {
    "twirl": "a {tempo} twirl",
    "arm wave": "a {tempo} arm wave",
    "side step": "{tempo} side steps",
    "star jump": "{tempo} star jumps",
    "hip sway": "a {tempo} hip sway",
    "high kick": "{tempo} high kicks",
}

_HAIR_WORDS = {
    "long hair": "long {colour} hair",
    "a bob": "a {colour} bob",
    "twin tails": "{colour} twin tails",
    "a ponytail": "a {colour} ponytail",
    "short hair": "short {colour} hair",
    "a bun": "a {colour} bun",
}

_LIVE = (
    "A young woman with {hair}, wearing {outfit} and {accessory}, dances {dance} {amplitude}, to the {side} first, "
    "in {place}.",
    "In {place}, a dancer with {hair} and {skin} skin performs {dance} {amplitude}, leading to the {side}; "
    "she wears {outfit}.",
    "{Dance}, {amplitude}, starting to the {side}: a girl in {outfit} with {hair} dancing in {place}.",
    "Photo-like video of a {skin}-skinned woman in {outfit}, {hair}, dancing {dance} {amplitude}, {side} side first.",
)

_FAIRY = (
    "A young woman with {hair} turns into an anime fairy in {outfit} and dances {dance} {amplitude}, "
    "to the {side} first, in {place}, with shining wings, a halo and butterflies.",
    "Anime: she becomes a dancing fairy with wings and a halo, {hair}, {outfit}, {dance} {amplitude}, "
    "leading to the {side}, {place}.",
    "The photo becomes an anime fairy with {hair} in {outfit}; {dance}, {amplitude}, starting to the {side}, "
    "butterflies around her in {place}.",
)


def paraphrases(figure: Figure, choreography: Choreography, world: str) -> tuple[str, ...]:
    """All sentences for a sample; the first is the one that goes into the metadata."""
    dance = _DANCE_WORDS[choreography.dance].format(tempo=choreography.tempo)
    words = {
        "hair": _HAIR_WORDS[figure.hair_shape].format(colour=figure.hair_colour),
        "outfit": f"{'an' if figure.outfit_colour == 'orange' else 'a'} {figure.outfit_colour} {figure.outfit}",
        "accessory": figure.accessory,
        "skin": figure.skin_tone,
        "place": figure.background,
        "dance": dance,
        "Dance": dance[0].upper() + dance[1:],
        "amplitude": choreography.amplitude,
        "side": choreography.side,
    }
    return tuple(template.format(**words) for template in (_LIVE if world == "live" else _FAIRY))
