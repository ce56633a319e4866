"""The doctor's findings on machines that are not this one.

Run: pytest tests/unit/test_doctor.py
"""

import hashlib
import json
import shutil
import subprocess
from collections import namedtuple

import pytest

from sakuga.cli import checks, upload
from sakuga.cli.upload import is_ignored, measure_upload

Version = namedtuple("Version", "major minor micro releaselevel serial")


def test_python_that_is_too_new(monkeypatch):
    monkeypatch.setattr(checks.sys, "version_info", Version(3, 14, 0, "final", 0))
    assert checks.check_python().status == "fail"


def test_package_that_is_missing():
    found = checks.check_package("no-such-package-at-all")
    assert (found.status, found.advice) == ("fail", "run `make setup`")


def test_optional_package_that_is_absent_is_said_aloud():
    found = checks.check_optional("no_such_module", "nothing")
    assert found.status == "note"
    assert found.detail.startswith("absent")


def test_torchvision_of_another_build(monkeypatch):
    def broken(_name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(checks.importlib, "import_module", broken)
    found = checks.check_torchvision()
    assert found.status == "fail"
    assert "same index" in found.advice


@pytest.mark.parametrize(("version", "status"), [("3.40.1", "note"), ("3.51.3", "ok"), ("3.52.0", "ok"), ("4.0", "ok")])
def test_sqlite(version, status, monkeypatch):
    monkeypatch.setattr(checks.sqlite3, "sqlite_version", version)
    assert checks.check_sqlite().status == status


@pytest.mark.parametrize(("mode", "status"), [("token", "ok"), ("disabled", "note"), (None, "note")])
def test_ray_auth(mode, status, monkeypatch):
    monkeypatch.setattr(checks, "PORT_TABLES", ())
    monkeypatch.delenv("RAY_AUTH_MODE")
    if mode:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    assert checks.check_ray_auth().status == status


@pytest.mark.parametrize(
    ("address", "state", "status"),
    [
        ("00000000:2049", "0A", "fail"),
        ("0100007F:2049", "0A", "note"),
        ("0000000000000000FFFF00000100007F:2049", "0A", "note"),
        ("00000000000000000000000000000000:2049", "0A", "fail"),
        ("00000000000000000000000001000000:2049", "0A", "note"),
        ("00000000:2049", "01", "note"),
        ("00000000:1F90", "0A", "note"),
    ],
)
def test_public_job_api_without_a_token(address, state, status, monkeypatch, tmp_path):
    table = tmp_path / "tcp"
    table.write_text(f"  sl  local_address rem_address st\n   0: {address} 00000000:0000 {state} 0:0\n")
    monkeypatch.setattr(checks, "PORT_TABLES", (table, tmp_path / "missing"))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert checks.check_ray_auth().status == status
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert checks.check_ray_auth().status == "ok"


def test_full_disk(monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: usage(10, 9, 1))
    assert checks.check_disk(tmp_path).status == "warn"


def test_ffmpeg_without_a_filter(monkeypatch):
    monkeypatch.setattr(checks, "_listing", lambda _program, _what: " ssim  psnr  xpsnr  libx264 ")
    found = checks.check_ffmpeg()
    assert found.status == "warn"
    assert "libvmaf" in found.detail


def test_ffmpeg_without_an_encoder(monkeypatch):
    monkeypatch.setattr(checks, "_listing", lambda _program, _what: " ssim  psnr  xpsnr  libvmaf ")
    assert checks.check_ffmpeg().status == "fail"


def test_ffmpeg_that_does_not_start(monkeypatch):
    def broken(program, _what):
        raise subprocess.CalledProcessError(1, program)

    monkeypatch.setattr(checks, "_listing", broken)
    assert checks.check_ffmpeg().status == "fail"


@pytest.fixture
def weights(monkeypatch, tmp_path):
    (tmp_path / "dit.safetensors").write_bytes(b"weights")
    sha256 = {"dit.safetensors": hashlib.sha256(b"weights").hexdigest()}
    (tmp_path / "card.json").write_text(json.dumps({"sha256": sha256}))
    monkeypatch.setattr("sakuga.wan.mini.mini_dir", lambda: tmp_path)
    return tmp_path


def test_weights_that_are_whole(weights):
    assert checks.check_weights().status == "ok"


@pytest.mark.parametrize("damage", ["changed", "missing", "no card"])
def test_weights_that_are_not(damage, weights):
    if damage == "changed":
        (weights / "dit.safetensors").write_bytes(b"weightz")
    else:
        (weights / ("dit.safetensors" if damage == "missing" else "card.json")).unlink()
    assert checks.check_weights().status == "fail"


def test_upload_leaves_out_what_the_ignore_files_name(tmp_path):
    for name, size in {
        "keep.py": 10,
        "src/out/keep.bin": 100,
        "out/video.mp4": 1000,
        ".git/objects/pack": 10_000,
        "src/x.pyc": 100_000,
        "deep/cache/a/b": 1_000_000,
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    (tmp_path / ".gitignore").write_text("# outputs\n/out/\n*.pyc\n")
    (tmp_path / ".rayignore").write_text(".git\ndeep/cache\n")
    ignore_files = (tmp_path / ".gitignore").stat().st_size + (tmp_path / ".rayignore").stat().st_size
    measured = measure_upload(tmp_path)
    assert measured.size_bytes == 110 + ignore_files
    assert measured.largest[0].startswith("src ")
    assert measured.is_complete


def test_a_folder_with_too_many_files_is_not_counted_to_the_end(monkeypatch, tmp_path):
    monkeypatch.setattr(upload, "MAX_ENTRIES", 2)
    for name in "abc":
        (tmp_path / name).write_bytes(b"x")
    found = checks.check_upload(tmp_path)
    assert found.status == "note"
    assert found.detail.startswith("at least")


def test_upload_over_the_limit(monkeypatch, tmp_path):
    (tmp_path / "big.bin").write_bytes(bytes(1000))
    monkeypatch.setattr(checks, "UPLOAD_LIMIT_BYTES", 999)
    found = checks.check_upload(tmp_path)
    assert found.status == "warn"
    assert "big.bin" in found.advice


@pytest.mark.parametrize(
    ("path", "patterns", "ignored"),
    [
        ("out/a.mp4", ["/out"], True),
        ("src/out/a.mp4", ["/out"], False),
        ("src/out/a.mp4", ["out/"], True),
        ("a/b/x.pyc", ["*.pyc"], True),
        ("outline.md", ["out"], False),
    ],
)
def test_ignore_patterns(path, patterns, ignored):
    assert is_ignored(path, patterns) is ignored


def test_a_check_that_raises_is_a_finding_and_the_others_go_on(monkeypatch, tmp_path):
    def broken():
        raise OSError("libcudart.so.13: cannot open shared object file\nTraceback ...")

    monkeypatch.setattr(checks, "check_device", broken)
    monkeypatch.setattr("sakuga.wan.mini.mini_dir", lambda: tmp_path)
    (tmp_path / "card.json").write_text('{"sha256": {"dit')
    found = {check.name: check for check in checks.run_checks(tmp_path)}
    assert found["gpu"].status == found["embedded weights"].status == "fail"
    assert found["gpu"].detail.endswith("OSError: libcudart.so.13: cannot open shared object file")
    assert "JSONDecodeError" in found["embedded weights"].detail
    assert found["python"].status == "ok"
    assert list(found)[-1] == "chromium"


def test_a_finding_has_one_name_whether_its_check_ran_or_not(monkeypatch, tmp_path):
    ran = [check.name for check in checks.run_checks(tmp_path)]
    for name in [name for name in vars(checks) if name.startswith("check_")]:
        monkeypatch.setattr(checks, name, lambda *_: 1 / 0)
    failed = checks.run_checks(tmp_path)
    assert [check.name for check in failed] == ran
    assert {check.status for check in failed} == {"fail"}


def test_a_machine_that_cannot_render_gives_code_3(monkeypatch, capsys):
    from sakuga.cli import main as cli

    bad = checks.Check(name="torch", status="fail", detail="[bold]not[/bold] installed")
    monkeypatch.setattr(checks, "run_checks", lambda _folder: [bad])
    assert cli.run(["doctor"]) == 3
    assert "[bold]not[/bold] installed" in capsys.readouterr().out
    assert cli.run(["doctor", "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "healthy": False,
        "checks": [{"name": "torch", "status": "fail", "detail": bad.detail, "advice": ""}],
    }
