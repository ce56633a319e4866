"""Cards: the catalogue agrees with the installed DiffSynth, and geometry errors name the nearest legal value."""

import pytest

from sakuga.errors import GeometryError, ModelError
from sakuga.wan.cards import TASKS
from sakuga.wan.catalogue import card, cards


def test_catalogue_holds_every_model_of_the_plan():
    names = {entry.name for entry in cards()}
    for expected in ("wan-mini", "wan2.1-t2v-1.3b", "wan2.1-i2v-14b-720p", "wan2.1-flf2v-14b-720p", "wan2.1-vace-14b",
                     "wan2.1-fun-inp-1.3b", "wan2.1-fun-control-14b", "wan2.2-t2v-a14b", "wan2.2-ti2v-5b"):  # fmt: skip
        assert expected in names


@pytest.mark.parametrize("entry", cards(), ids=lambda entry: entry.name)
def test_every_card_is_consistent(entry):
    assert set(entry.tasks) <= set(TASKS)
    entry.check_geometry(entry.width, entry.height, entry.num_frames)
    assert entry.two_experts == (entry.boundary_ratio is not None) == bool(entry.parts("dit2"))
    assert entry.needs_clip == bool(entry.parts("image_encoder"))
    assert {"dit", "text_encoder", "vae", "tokenizer"} <= {file.part for file in entry.files}
    assert entry.size_multiple == 2 * entry.spatial_factor


@pytest.mark.parametrize("entry", [e for e in cards() if not e.embedded], ids=lambda entry: entry.name)
def test_dit_of_every_card_is_known_to_the_installed_diffsynth(entry):
    """DiffSynth recognises a checkpoint by its shapes; a card whose numbers fit no registered DiT cannot load."""
    from diffsynth.configs import MODEL_CONFIGS

    shapes = {
        tuple(config["extra_kwargs"].get(name, False) for name in ("in_dim", "has_image_input", "add_control_adapter"))
        for config in MODEL_CONFIGS
        if config["model_class"].endswith(".WanModel") and "in_dim" in config.get("extra_kwargs", {})
    }
    assert (entry.in_dim, entry.needs_clip, "camera" in entry.tasks) in shapes


def test_teacache_coefficients_come_from_diffsynth_and_only_where_it_has_them():
    known = {entry.name for entry in cards() if entry.teacache_coefficients() is not None}
    assert known == {"wan2.1-t2v-1.3b", "wan2.1-t2v-14b", "wan2.1-i2v-14b-480p", "wan2.1-i2v-14b-720p"}
    assert len(card("wan2.1-t2v-14b").teacache_coefficients()) == 5


@pytest.mark.parametrize(
    ("name", "size", "nearest"),
    [
        ("wan-mini", (130, 121, 33), "nearest: 128x128"),
        ("wan-mini", (1281, 721, 33), "nearest: 1280x720"),
        ("wan-mini", (128, 1, 33), "nearest: 128x16"),
        ("wan-mini", (128, 128, 32), "nearest: 33"),
        ("wan-mini", (128, 128, 0), "nearest: 1"),
        ("wan-mini", (128, 128, 82), "nearest: 81"),
        ("wan2.2-ti2v-5b", (1280, 720, 121), "nearest: 1280x736"),
    ],
)
def test_illegal_geometry_names_the_nearest_legal_one(name, size, nearest):
    with pytest.raises(GeometryError, match=nearest):
        card(name).check_geometry(*size)


def test_nearest_geometry_is_itself_legal():
    entry = card("wan-mini")
    for frames in range(1, 90):
        try:
            entry.check_geometry(128, 128, frames)
        except GeometryError as error:
            nearest = int(error.message.rsplit(" ", 1)[1])
            entry.check_geometry(128, 128, nearest)
            assert abs(nearest - frames) <= 2


def test_unknown_model_gets_a_guess():
    assert card("WAN-Mini").name == "wan-mini"
    with pytest.raises(ModelError, match=r"did you mean 'wan2\.1-t2v-14b'"):
        card("wan2.1-t2v-14")
    with pytest.raises(ModelError, match="sakuga models list"):
        card("sdxl")
