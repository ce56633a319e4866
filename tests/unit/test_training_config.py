"""Settings of a training run: what is refused, and when a run may go on."""

import dataclasses
import math

import pytest

from sakuga.errors import TrainError
from sakuga.training.config import TrainConfig
from sakuga.wan.catalogue import card


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"rank": 0}, "rank is 0"),
        ({"rank": "eight"}, "rank is 'eight'"),
        ({"rank": 2.5}, "rank is 2.5"),
        ({"rank": True}, "rank is"),
        ({"lr": math.nan}, "lr is nan"),
        ({"lr": 0}, "lr is 0"),
        ({"lr": "fast"}, "lr is 'fast'"),
        ({"mode": "lorra"}, "did you mean 'lora'"),
        ({"targets": ("q", "kk")}, "targets is 'kk'"),
        ({"targets": ()}, "targets is empty"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"ema_decay": 1.5}, "ema_decay is 1.5"),
        ({"layer_weights": {"colur": 2.0}}, "did you mean 'colour'"),
        ({"layer_weights": {"shape": math.inf}}, "layer_weights shape is inf"),
        ({"mode": "full", "base_precision": "int8"}, "mode full"),
        ({"expert": "medium"}, "expert is 'medium'"),
        ({"still_share": 1.5}, "still_share is 1.5"),
        ({"style_lora_sha256": "0" * 64}, "goes beside a distillation"),
        ({"style_share": math.nan}, "style_share is nan"),
        ({"distill_source": "techer"}, "did you mean 'teacher'"),
    ],
)
def test_bad_settings_are_named(fields, said):
    with pytest.raises(TrainError, match=said):
        TrainConfig(**fields)


def test_unknown_setting_gets_a_guess():
    with pytest.raises(TrainError, match="did you mean 'rank'"):
        TrainConfig.from_dict({"rnk": 8})


def test_a_config_survives_its_dictionary():
    config = TrainConfig(rank=8, layer_weights={"shape": 1.5}, targets=("q", "v"))
    assert TrainConfig.from_dict(config.to_dict()) == config
    assert TrainConfig.from_dict(config.to_dict()).sha256 == config.sha256


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"rank": 193}, "above the width of wan-mini, 192"),
        ({"expert": "high"}, "has one expert"),
        ({"targets": ("q", "k_img")}, "has no k_img"),
    ],
)
def test_what_a_model_cannot_be_trained_with(fields, said):
    with pytest.raises(TrainError, match=said):
        TrainConfig(**fields).check_card(card("wan-mini"))


def test_a_run_goes_on_with_the_same_settings_only():
    config = TrainConfig()
    config.check_same(dataclasses.replace(config, num_steps=5000))
    with pytest.raises(TrainError, match=r"begun with rank 16 and is now given 8"):
        config.check_same(dataclasses.replace(config, rank=8))
