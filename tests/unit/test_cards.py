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


@pytest.mark.parametrize("entry", cards(), ids=lambda entry: entry.name)
def test_shape_of_every_card_has_its_parameters(entry):
    motion = entry.dit.motion_params if entry.controls_speed else 0
    assert entry.dit.num_params(entry.in_dim) + motion == entry.num_params
    assert entry.dit.out_dim == entry.z_dim
    assert bool(entry.dit.num_image_tokens) == entry.needs_clip
    assert bool(entry.dit.num_vace_layers) == ("vace" in entry.tasks)


def _registered() -> list[tuple[str, dict]]:
    from diffsynth.configs import MODEL_CONFIGS

    return [(config["model_class"].rsplit(".", 1)[-1], config.get("extra_kwargs", {})) for config in MODEL_CONFIGS]


@pytest.mark.parametrize("entry", [e for e in cards() if not e.embedded], ids=lambda entry: entry.name)
def test_shape_of_every_card_is_registered_in_diffsynth(entry):
    names = ("dim", "ffn_dim", "num_heads", "num_layers", "text_dim", "freq_dim", "out_dim")
    wanted = {name: getattr(entry.dit, name) for name in names} | {"in_dim": entry.in_dim}
    found = [kwargs for name, kwargs in _registered() if name == "WanModel" and wanted.items() <= kwargs.items()]
    assert any(
        kwargs.get("has_ref_conv", False) == entry.dit.has_reference
        and kwargs.get("add_control_adapter", False) == entry.dit.has_camera
        and kwargs.get("seperated_timestep", False) == entry.dit.has_clean_frame
        and kwargs.get("has_image_pos_emb", False) == (entry.dit.num_image_tokens > 257)
        and list(kwargs["patch_size"]) == [1, 2, 2]
        for kwargs in found
    )


def test_other_networks_have_their_parameters():
    """Built on the meta device, so that 5.7 billion parameters take no memory."""
    import torch
    from diffsynth.models.wan_video_image_encoder import WanImageEncoder
    from diffsynth.models.wan_video_text_encoder import WanTextEncoder
    from diffsynth.models.wan_video_vae import WanVideoVAE, WanVideoVAE38

    from sakuga.wan import shapes
    from sakuga.wan.mini.models import MiniConfig

    def count(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    with torch.device("meta"):
        text = WanTextEncoder()
        assert count(text) == shapes.UMT5_XXL.num_params
        linears = [module for module in text.blocks[0].modules() if isinstance(module, torch.nn.Linear)]
        assert sum(linear.weight.numel() for linear in linears) == shapes.UMT5_XXL.block_linear_params
        assert count(WanVideoVAE()) == shapes.VAE_WAN.num_params
        assert count(WanVideoVAE38()) == shapes.VAE_WAN_22.num_params
        assert count(WanImageEncoder()) == shapes.CLIP_PARAMS
        assert count(MiniConfig().build_text_encoder()) == shapes.T5_MINI.num_params
        assert count(MiniConfig().build_vae()) == shapes.VAE_MINI.num_params


def test_teacache_coefficients_come_from_diffsynth_or_were_fitted():
    known = {entry.name for entry in cards() if entry.teacache_coefficients() is not None}
    fitted = {entry.name for entry in cards() if entry.teacache_fitted}
    assert known == fitted | {"wan2.1-t2v-1.3b", "wan2.1-t2v-14b", "wan2.1-i2v-14b-480p", "wan2.1-i2v-14b-720p"}
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
