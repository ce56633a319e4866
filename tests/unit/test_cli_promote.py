"""`sakuga promote` and `sakuga recheck` against a farm's API: what is offered, what is refused, what is kept."""

import json
from contextlib import contextmanager

import pytest
import yaml

from sakuga.cli import client
from sakuga.cli.main import run
from sakuga.errors import FarmError
from sakuga.tuning.sweepfile import parse_sweep
from sakuga.tuning.trials import DONE, FAILED, SweepFolder, TrialResult

SIZE = {"width": 64, "height": 64, "num_frames": 5}
SWEEP = parse_sweep(
    {"name": "s", "kind": "inference", "base": {**SIZE, "guidance_scale": 1}, "space": {"num_inference_steps": [1, 2]},
     "evaluation": {"synth": "fairy", "count": 1}, "objectives": ["seconds"]}
)  # fmt: skip


class FakeFarm:
    """What `Farm` does, without HTTP."""

    def __init__(self):
        self.entries, self.uploads, self.calls, self.is_down = [], [], [], False
        self.url = "http://farm"

    def __call__(self, url, api_key):
        return self

    def profiles(self):
        self.calls.append("profiles")
        if self.is_down:
            raise FarmError("http://farm does not answer; is `sakuga serve` running there?")
        return self.entries

    def ask(self, method, path):
        assert method == "GET"
        return {"data": [entry for entry in self.entries if path.endswith(f"/{entry['name']}")]}

    def upload_lora(self, path, name, model):
        self.uploads.append((path.name, name, model))
        return "lora_1"

    def promote(self, profile):
        self.calls.append("promote")
        entry = profile.as_dict() | {"id": "profile_1", "version": 1, "state": "canary"}
        self.entries.append(entry)
        return entry

    def roll_back(self, profile_id, why):
        self.calls.append(("roll_back", profile_id))
        self.entries[-1] |= {"state": "retired", "why": why}
        return self.entries[-1]


@pytest.fixture
def farm(monkeypatch):
    fake = FakeFarm()
    monkeypatch.setattr("sakuga.cli.promote.Farm", fake)
    return fake


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A sweep whose trial names a LoRA by its path, and two gates."""
    from sakuga.engine.resolve import located
    from sakuga.wan.catalogue import card
    from sakuga.wan.lora import embedded_lora

    out = tmp_path_factory.mktemp("sweeps")
    folder = SweepFolder(out / "s")
    folder.create(SWEEP)
    found = card("wan-mini")
    lora = embedded_lora("fairy", found.name, located(found).lora_dir, found.loras)
    fields = {**SWEEP.base, "num_inference_steps": 1, "loras": [{"path": str(lora), "weight": 0.5}]}
    folder.write(TrialResult(id="aaaa0000", point={"num_inference_steps": 1}, state=DONE, fields=fields))
    folder.write(TrialResult(id="bbbb0000", point={"num_inference_steps": 2}, state=FAILED, reason="E_NAN: no"))
    gate = {"model": "wan-mini", **SIZE, "cases": {"synth": "fairy", "count": 1},
            "reference": {"num_inference_steps": 2, "guidance_scale": 1}}  # fmt: skip
    bars_of = {
        "gate": {"ref_ssim": {"min": 0.1}},
        "strict": {"ref_ssim": {"min": 0.9999}},
        "rated": {"weighted_total": {"min": 0.1}, "ref_ssim": {"min": 0.1}},
        "unseen": {"heldout_loss": {"max": 1}},
        "slow": {"seconds": {"max": 1}},
        "nan": {"ref_ssim": {"min": float("nan")}},
    }
    for name, bars in bars_of.items():
        (out / f"{name}.yaml").write_text(yaml.safe_dump(gate | {"bars": bars}))
    return out


@contextmanager
def no_renders(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("sakuga.engine.local.LocalEngine.load", lambda *_, **__: pytest.fail("rendered in vain"))
        yield


def cli(capsys, *words):
    code = run([*words, "--json"])
    return code, json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_the_way_into_the_farm_and_back_out(farm, root, capsys, monkeypatch):
    farm.is_down = True
    with no_renders(monkeypatch):
        code, told = cli(
            capsys, "promote", "s/aaaa", "--as", "fast", "--out", str(root), "--gate", str(root / "gate.yaml")
        )
    assert code == 3 and told["error"]["code"] == "E_FARM", "asked before anything is rendered"
    farm.is_down = False
    code, told = cli(capsys, "promote", "s/aaaa", "--as", "fast", "--out", str(root), "--gate", str(root / "gate.yaml"))
    assert code == 0 and told["passed"] and told["entry"]["state"] == "canary"
    (entry,) = farm.entries
    assert entry["fields"]["loras"] == entry["reference"]["loras"] == [{"name": "lora_1", "weight": 0.5}]
    assert farm.uploads == [("fairy.safetensors", "fast", "wan-mini")]
    assert "memory resident" in entry["plan"] and entry["source"]["trial"] == "aaaa0000"

    with no_renders(monkeypatch):
        code, told = cli(capsys, "recheck", "fast", "--out", str(root), "--gate", str(root / "gate.yaml"))
        assert code == 0 and told["passed"] and ("roll_back", "profile_1") not in farm.calls
        code, told = cli(capsys, "recheck", "fast", "--out", str(root), "--gate", str(root / "strict.yaml"))
    assert code == 1 and farm.calls[-1] == ("roll_back", "profile_1")
    assert "at least 0.9999" in farm.entries[0]["why"]["faults"][0]
    code, told = cli(capsys, "recheck", "fast", "--out", str(root), "--gate", str(root / "gate.yaml"))
    assert code == 2 and told["error"]["code"] == "E_PROFILE"


def test_another_trial_of_the_same_name_is_not_taken_for_the_profile(farm, root, capsys, tmp_path):
    words = ("--gate", str(root / "gate.yaml"), "--out", str(root))
    assert cli(capsys, "promote", "s/aaaa", "--as", "fast", *words)[0] == 0
    folder = SweepFolder(tmp_path / "s")
    folder.create(SWEEP)
    folder.write(TrialResult(id="aaaa0000", point={"num_inference_steps": 1}, state=DONE, fields=dict(SWEEP.base)))
    code, told = cli(capsys, "recheck", "fast", "--gate", str(root / "strict.yaml"), "--out", str(tmp_path))
    assert code == 2 and "holds another trial aaaa0000" in told["error"]["message"]
    assert farm.entries[-1]["state"] == "canary"
    del farm.entries[-1]["source"]["candidate_sha256"]
    code, told = cli(capsys, "recheck", "fast", *words)
    assert code == 2 and "does not say of which sweep" in told["error"]["message"]


def test_below_the_bars_nothing_is_offered_and_the_sentence_says_why(farm, root, capsys):
    code, told = cli(capsys, "promote", "s/aaaa", "--as", "f", "--out", str(root), "--gate", str(root / "strict.yaml"))
    sentence = told["error"]["message"]
    assert code == 1 and told["error"]["code"] == "E_GATE_FAILED" and not farm.entries
    assert "at least 0.9999" in sentence and "worst at fairy-67108864 frame" in sentence and "failed.png" in sentence


def test_a_weighted_total_asks_for_raters(farm, root, capsys):
    words = ("promote", "s/aaaa", "--as", "f", "--out", str(root), "--gate", str(root / "rated.yaml"))
    code, told = cli(capsys, *words)
    assert code == 1 and "sakuga rate" in told["error"]["message"]
    (rate,) = (root / "s" / "gates").glob("*/rate")
    assert {path.parent.name for path in rate.glob("*/*.mp4")} == {"reference", "aaaa0000"}
    from sakuga.quality.ratings import QUESTIONS, RATINGS_FILE, Pair, Rating, append_rating

    scores = {"aaaa0000": dict.fromkeys(QUESTIONS, 4), "reference": dict.fromkeys(QUESTIONS, 5)}
    pair = Pair(stem="fairy-67108864", variants=("aaaa0000", "reference"))
    rating = Rating(rater="me", pair=pair, left="aaaa0000", scores=scores, time="2026-01-01T00:00:00Z")
    append_rating(rate / RATINGS_FILE, rating)
    code, told = cli(capsys, *words, "--ratings", str(rate / RATINGS_FILE))
    assert code == 0 and told["figures"]["weighted_total"] > 0.4


@pytest.mark.parametrize(
    "words, code, message",
    [
        (("s/bbbb", "--as", "f"), "E_PROFILE", "only a trial that is done"),
        (("s/cccc", "--as", "f"), "E_PROFILE", "no trial 'cccc'"),
        (("x/aaaa", "--as", "f"), "E_SWEEP", "there is no sweep 'x'"),
        (("../s/aaaa", "--as", "f"), "E_INPUT", "is no trial"),
        (("s", "--as", "f"), "E_INPUT", "write SWEEP/TRIAL"),
        (("s/aaaa", "--as", "a b"), "E_RECIPE", "--as"),
        (("s/aaaa", "--as", "f", "--gate", "nan.yaml"), "E_GATE", "min of ref_ssim is nan"),
        (("s/aaaa", "--as", "f", "--gate", "none.yaml"), "E_GATE", "cannot be read"),
        (("s/aaaa", "--as", "f", "--gate", "unseen.yaml"), "E_GATE", "no render of this gate has heldout_loss"),
        (("s/aaaa", "--as", "f", "--gate", "slow.yaml"), "E_GATE", "no bar that the farm's audits can measure"),
        (("s/aaaa", "--as", "f", "--ratings", "none.jsonl", "--gate", "gate.yaml"), "E_INPUT", "none.jsonl"),
    ],
)
def test_bad_input_is_one_sentence(farm, root, capsys, monkeypatch, words, code, message):
    monkeypatch.chdir(root)
    _, told = cli(capsys, "promote", *words, "--out", str(root))
    assert told["error"]["code"] == code and message in told["error"]["message"]
    assert "promote" not in farm.calls


def test_the_client_has_what_is_asked_of_it():
    assert all(callable(getattr(client.Farm, name)) for name in ("profiles", "promote", "roll_back", "upload_lora"))
