"""`sakuga train` as a user types it: results, bad input, a run that goes on, a LoRA for the farm."""

import json

import pytest

from sakuga.cli import main
from tiny_training import prepared_set

FAST = ("--rank", "4", "--batch-size", "2", "--lr", "1e-2", "--warmup-steps", "1", "--base-precision", "fp32",
        "--validate", "0")  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepared_set(folder)
    return folder


def run(capsys, *words: str) -> tuple[int, dict, str]:
    code = main.run(["train", *words, "--json"])
    told = capsys.readouterr()
    return code, json.loads(told.out.strip().splitlines()[-1]), told.err


def test_a_run_and_its_end(capsys, prepared, tmp_path):
    out = str(tmp_path / "run")
    code, told, _ = run(capsys, "--data", str(prepared), "--out", out, "--steps", "2", *FAST)
    assert code == 0
    assert told["steps"] == 2
    assert told["files"] == [f"{out}/lora.safetensors"]
    code, told, _ = run(capsys, "--data", str(prepared), "--out", out, "--steps", "3", *FAST)
    assert (code, told["steps"]) == (0, 3)


@pytest.mark.parametrize(
    "words, code, said",
    [
        (("--rank", "0"), "E_TRAIN", "rank is 0"),
        (("--rank", "193"), "E_TRAIN", "above the width of wan-mini"),
        (("--rank", "many"), "E_USAGE", "--rank"),
        (("--lr", "nan"), "E_TRAIN", "lr is nan"),
        (("--mode", "lra"), "E_TRAIN", "did you mean 'lora'"),
        (("--layer-weight", "shape=wide"), "E_TRAIN", "shape is 'wide'"),
        (("--layer-weight", "shape"), "E_INPUT", "NAME=VALUE"),
        (("--layer-weight", "shape=2"), "E_TRAIN", "layer maps"),
        (("--model", "wan-micro"), "E_MODEL", "wan-micro"),
        (("--start-lora", "/nowhere.safetensors"), "E_LORA", "nowhere"),
        (("--where", "world=fairy"), "E_INPUT", "prepared already"),
        (("--workers", "2:1"), "E_TRAIN", "2 to 1 workers"),
        (("--workers", "some"), "E_TRAIN", "write N"),
        (("--register", "fairy"), "E_SETTINGS", "API key"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_sentence(capsys, monkeypatch, prepared, tmp_path, words, code, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SAKUGA_API_KEY", raising=False)
    exit_code, told, err = run(capsys, "--data", str(prepared), "--out", str(tmp_path / "run"), *words)
    assert told["error"]["code"] == code
    assert said in told["error"]["message"]
    assert exit_code == told["exit_code"] != 0
    assert err.count("error ") == 1


def test_a_data_set_is_prepared_on_the_way(capsys, tmp_path):
    small = ("--groups", "2", "--first-seed", "8", "--width", "32", "--height", "32", "--frames", "5")
    assert main.run(["synth", str(tmp_path / "data"), *small]) == 0
    words = ("--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--where", "world=fairy", "--steps", "1")
    code, told, _ = run(capsys, *words, *FAST, "--layer-weight", "motion=2")
    assert (code, told["steps"]) == (0, 1)
    assert (tmp_path / "run" / "prepared" / "report.json").is_file()


def test_the_farm_gets_the_lora(capsys, sakuga, prepared, tmp_path):
    words = ("--data", str(prepared), "--out", str(tmp_path / "run"), "--steps", "1", "--register", "fairy-1", *FAST)
    code, out, _ = sakuga("train", *words, "--json")
    told = json.loads(out.strip().splitlines()[-1])
    assert code == 0
    assert told["registered"][0].startswith("lora_")
    code, out, err = sakuga("train", *words, "--json")  # the same bytes under the same name
    assert code == 0, err
