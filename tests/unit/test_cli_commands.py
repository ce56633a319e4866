"""Each command hands on what was typed and prints what came back. Engines and clusters are stood in for.

Run: pytest tests/unit/test_cli_commands.py
"""

import json

import numpy as np
import pytest

from sakuga.cli import main as cli
from sakuga.farm.results import BulkSummary
from sakuga.farm.worker import RenderPlan
from sakuga.media import write_mp4
from sakuga.recipe import RecipeRequest
from sakuga.recipe.request import REQUEST_FIELDS

RENDER_OPTIONS = {
    "id": ("--name", "clip"),
    "model": ("--model", "wan2.1-t2v-1.3b"),
    "negative_prompt": ("--negative-prompt", "blur"),
    "width": ("--width", "96"),
    "height": ("--height", "160"),
    "num_frames": ("--num-frames", "17"),
    "fps": ("--fps", "12"),
    "num_inference_steps": ("--num-inference-steps", "3"),
    "guidance_scale": ("--guidance-scale", "2.5"),
    "flow_shift": ("--flow-shift", "4.0"),
    "seed": ("--seed", "9223372036854775807"),
    "denoising_strength": ("--denoising-strength", "0.5"),
    "input_image": ("--image", "a.png"),
    "end_image": ("--end-image", "b.png"),
    "reference_image": ("--reference-image", "c.png"),
    "input_video": ("--video", "d.mp4"),
    "control_video": ("--control-video", "e.mp4"),
    "vace_video": ("--vace-video", "f.mp4"),
    "vace_mask": ("--vace-mask", "g.mp4"),
    "camera_direction": ("--camera-direction", "LeftUp"),
    "camera_speed": ("--camera-speed", "0.25"),
    "motion_bucket_id": ("--motion-bucket-id", "100"),
    "precision": ("--precision", "bf16"),
    "attention": ("--attention", "sdpa"),
    "loras": ("--lora", "fairy:0.5", "--lora", "x/y.safetensors"),
}
NOT_ON_THE_COMMAND_LINE = {"prompt", "weights_sha256", "guidance_scale_2", "boundary_ratio", "step_cache", "tiling"}


def last_json(text: str) -> dict:
    return json.loads(text.rstrip("\n").rsplit("\n", 1)[-1])


class FakeRenderer:
    """Notes what it was asked for and reports two steps."""

    def __init__(self, plan: RenderPlan) -> None:
        self.plan = plan
        self.requests: list[RecipeRequest] = []

    def key(self, request: RecipeRequest) -> str:
        return "0123456789abcdef" * 4

    def render(self, request, name, on_step):
        self.requests.append(request)
        self.name = name
        for step in (1, 2):
            on_step("denoise", step, 2, 0.1)
        return {"key": self.key(request), "seconds": {"denoise": 0.2}, "notes": ["the video has 9 [s], 5 are used"]}


@pytest.fixture
def renderer(monkeypatch):
    made: list[FakeRenderer] = []

    def make(plan):
        made.append(FakeRenderer(plan))
        return made[-1]

    monkeypatch.setattr(RenderPlan, "make_renderer", make)
    return made


def test_every_render_option_reaches_its_field(renderer, tmp_path, capsys):
    words = [word for option in RENDER_OPTIONS.values() for word in option]
    code = cli.run(
        ["render", "a dancer", *words, "--out", str(tmp_path), "--device", "cuda:1", "--weights", "w", "--json"]
    )
    told = last_json(capsys.readouterr().out)
    assert code == 0
    (request,) = renderer[0].requests
    typed = request.model_dump(exclude_none=True)
    assert typed.pop("prompt") == "a dancer"
    assert [(lora["weight"], lora.get("name"), lora.get("path")) for lora in typed.pop("loras")] == [
        (0.5, "fairy", None),
        (1.0, None, "x/y.safetensors"),
    ]
    assert {name: str(value) for name, value in typed.items()} == {
        name: option[1] for name, option in RENDER_OPTIONS.items() if name != "loras"
    }
    assert (renderer[0].plan.device, renderer[0].plan.weights) == ("cuda:1", "w")
    assert told["key"] == renderer[0].key(request)
    assert [path.rsplit("/", 1)[-1] for path in told["files"]] == [
        "clip.mp4",
        "clip.webp",
        "clip.sprites.webp",
        "clip.json",
    ]


def test_render_says_the_notes_of_its_receipt(renderer, tmp_path, capsys):
    assert cli.run(["render", "a dancer", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "note: the video has 9 [s], 5 are used"


def test_render_of_one_frame_names_its_picture_first(renderer, tmp_path, capsys):
    (tmp_path / "still.png").write_bytes(b"x")  # as `write_render` would leave it
    assert cli.run(["render", "a dancer", "--frames", "1", "--name", "still", "--out", str(tmp_path), "--json"]) == 0
    told = last_json(capsys.readouterr().out)
    assert [path.rsplit("/", 1)[-1] for path in told["files"]][:2] == ["still.png", "still.mp4"]


def test_render_takes_its_threads_from_the_environment(renderer, tmp_path, monkeypatch):
    monkeypatch.setenv("SAKUGA_NUM_THREADS", "3")
    assert cli.run(["render", "a dancer", "--out", str(tmp_path)]) == 0
    assert renderer[0].plan.num_threads == 3


def test_every_field_of_a_request_has_an_option():
    assert set(RENDER_OPTIONS) | NOT_ON_THE_COMMAND_LINE == set(REQUEST_FIELDS)


def test_render_without_a_seed_draws_one_and_names_the_file_by_key(renderer, tmp_path, capsys):
    for _ in range(2):
        assert cli.run(["render", "a dancer", "--out", str(tmp_path)]) == 0
    first, second = (made.requests[0] for made in renderer)
    assert first.seed != second.seed
    assert renderer[0].name == "0123456789abcdef"
    assert str(tmp_path / "0123456789abcdef.mp4") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["", "--json"], "E_PROMPT"),
        (["x", "--seed=-1"], "E_RECIPE"),
        (["x", "--seed", "9223372036854775808"], "E_RECIPE"),
        (["x", "--steps", "0"], "E_RECIPE"),
        (["x", "--name", "../x"], "E_RECIPE"),
        (["x", "--seed", "abc"], "E_USAGE"),
    ],
)
def test_bad_render_arguments_have_their_code_and_render_nothing(words, code, renderer, tmp_path, capsys):
    assert cli.run(["render", *words, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error {code}: ")
    assert not any(made.requests for made in renderer)


def test_render_into_a_file(renderer, tmp_path, capsys):
    (tmp_path / "out").write_text("")
    assert cli.run(["render", "x", "--out", str(tmp_path / "out")]) == 3
    assert capsys.readouterr().err.startswith("error E_OUTPUT: ")
    assert not renderer


def _summary(**counts: int) -> BulkSummary:
    figures = {"videos": 3, "done": 3, "skipped": 0, "failed": 0, "not_run": 0} | counts
    return BulkSummary(out="out", **figures, wall_s=1.0, videos_per_min=180.0, seconds={}, errors={}, num_workers=1)


@pytest.fixture
def bulk(monkeypatch):
    """Stands for `run_bulk`: notes its arguments, returns or raises what it is given."""
    calls: list[tuple[tuple, dict]] = []

    def install(outcome):
        def run_bulk(*args, **kwargs):
            calls.append((args, kwargs))
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        monkeypatch.setattr("sakuga.farm.bulk.run_bulk", run_bulk)
        return calls

    return install


def test_bulk_hands_on_what_was_typed(bulk, tmp_path, capsys):
    calls = bulk(_summary())
    words = ["--workers", "2", "--no-resume", "--width", "96", "--lora", "fairy", "--address", "auto", "--json"]
    assert cli.run(["bulk", str(tmp_path / "m.jsonl"), "--out", str(tmp_path), *words]) == 0
    (args, kwargs) = calls[0]
    assert args == (tmp_path / "m.jsonl", tmp_path)
    assert kwargs["defaults"] == {"width": 96, "loras": ["fairy"]}
    assert (kwargs["num_workers"], kwargs["resume"], kwargs["address"]) == (2, False, "auto")
    assert last_json(capsys.readouterr().out) == _summary().as_dict()


def test_bulk_with_failed_rows_ends_with_1(bulk, tmp_path, capsys):
    bulk(_summary(done=2, failed=1))
    assert cli.run(["bulk", "m.jsonl", "--out", str(tmp_path)]) == 1
    assert "1 failed of 3 videos" in capsys.readouterr().out


def test_interrupted_bulk_says_how_to_go_on(bulk, tmp_path, capsys):
    bulk(KeyboardInterrupt("stopped; 1 of 3 videos are settled; run the same command again to go on with the rest"))
    assert cli.run(["bulk", "m.jsonl", "--out", str(tmp_path), "--json"]) == 130
    captured = capsys.readouterr()
    assert "run the same command again" in captured.err
    assert last_json(captured.out)["error"]["code"] == "E_INTERRUPTED"


def test_bulk_into_a_file_says_so_and_leaves_it(tmp_path, capsys):
    (tmp_path / "m.jsonl").write_text('{"prompt": "a dance"}\n')
    (tmp_path / "file").write_text("mine")
    assert cli.run(["bulk", str(tmp_path / "m.jsonl"), "--out", str(tmp_path / "file"), "--json"]) == 3
    captured = capsys.readouterr()
    assert captured.err.startswith("error E_OUTPUT: ")
    assert last_json(captured.out)["error"]["code"] == "E_OUTPUT"
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("command", ["bulk", "demo"])
@pytest.mark.parametrize("words", [[], ["--json"]])
def test_progress_goes_to_stderr_with_and_without_json(command, words, monkeypatch, tmp_path, capsys):
    """A program that reads stdout must not cost the person beside it the progress."""
    from sakuga.farm.demo.run import Demo
    from sakuga.farm.progress import ProgressEvent, append_event

    def render(*args, **kwargs):
        append_event(tmp_path / "progress.jsonl", ProgressEvent(t=0.0, row="a", name="row-a", stage="done"))
        demo = Demo(summary=_summary(), out=tmp_path, contact_sheet=None, page=tmp_path, seconds={"total": 1.0})
        return demo if command == "demo" else demo.summary

    monkeypatch.setattr("sakuga.farm.bulk.run_bulk", render)
    monkeypatch.setattr("sakuga.farm.demo.run.run_demo", render)
    manifest = ["m.jsonl"] if command == "bulk" else []
    assert cli.run([command, *manifest, "--out", str(tmp_path), *words]) == 0
    captured = capsys.readouterr()
    assert "row-a done" in captured.err
    assert "row-a done" not in captured.out
    if words:
        assert last_json(captured.out)["done"] == 3


@pytest.fixture
def videos(tmp_path, seed):
    """A folder of references and one of renders: `a` in both, one more in each."""
    frames = np.random.default_rng(seed).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    for folder, names in {"ref": ("a", "r"), "gen": ("a", "g")}.items():
        (tmp_path / folder).mkdir()
        for name in names:
            write_mp4(tmp_path / folder / f"{name}.mp4", frames, fps=15)
    return tmp_path


def test_evaluate_prints_a_table_and_names_what_has_no_pair(videos, capsys):
    assert cli.run(["evaluate", str(videos / "ref"), str(videos / "gen")]) == 0
    out = capsys.readouterr().out
    assert "psnr_db" in out
    assert "only in the reference: r" in out
    assert "only in the generated: g" in out


def test_evaluate_json(videos, capsys):
    paths = [str(videos / "ref" / "a.mp4"), str(videos / "gen" / "a.mp4")]
    assert cli.run(["evaluate", *paths, "--subjective", "20", "--json"]) == 0
    told = last_json(capsys.readouterr().out)
    assert told["mean"]["psnr_db"] == 100.0  # equal files: the cap
    assert told["weighted_total"] == pytest.approx(0.5 + 100 / 50 * 0.25 + 0.25)


def test_evaluate_with_a_broken_pair_goes_on_and_ends_with_1(videos, capsys):
    (videos / "ref" / "b.mp4").write_bytes(b"no video")
    (videos / "gen" / "b.mp4").write_bytes(b"no video")
    assert cli.run(["evaluate", str(videos / "ref"), str(videos / "gen"), "--json"]) == 1
    told = last_json(capsys.readouterr().out)
    assert [row["name"] for row in told["rows"]] == ["a"]
    assert [failure["code"] for failure in told["failed"]] == ["E_VIDEO"]


def test_evaluate_refuses_a_score_out_of_range_before_it_measures(tmp_path, capsys):
    assert cli.run(["evaluate", str(tmp_path), str(tmp_path), "--subjective", "21"]) == 2
    assert "0 to 20" in capsys.readouterr().err


def test_synth_draws_and_a_second_run_keeps(tmp_path, capsys):
    words = [
        "synth",
        str(tmp_path),
        "--groups",
        "1",
        "--first-seed",
        "9",
        "--frames",
        "5",
        "--width",
        "64",
        "--height",
        "64",
    ]
    assert cli.run([*words, "--json"]) == 0
    first = last_json(capsys.readouterr().out)
    assert (first["num_train"], first["num_test"], first["num_drawn"]) == (0, 2, 2)
    assert cli.run([*words, "--json"]) == 0
    assert last_json(capsys.readouterr().out)["num_drawn"] == 0


@pytest.mark.parametrize("words", [["--preset", "smal"], ["--groups", "0"], ["--frames", "0", "--groups", "1"]])
def test_synth_refuses(words, tmp_path, capsys):
    assert cli.run(["synth", str(tmp_path), *words]) == 2
    assert capsys.readouterr().err.startswith("error E_")
