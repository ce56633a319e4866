"""The rules of the house: who may import whom, how long a file may be, what may not stand in a file.

Run: pytest tests/unit/test_house.py
"""

import ast
import fnmatch
import io
import json
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import jsonschema
import pytest
import yaml
from packaging.version import Version

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "sakuga"
MAX_FILE_LINES = 400
MAX_JOB_LINES = 60
MAX_SRC_LINES = 30_000
"""Of code, without docstrings and comments. 12,000 were meant; engine, API, farm, training and tuning need more."""
MAX_FUNCTION_LINES = 60
MAX_LONG_FUNCTIONS = 12
EMBEDDED_BYTES = 24 * 2**20

# A file longer than the limit needs an entry and a reason here.
LONG_FILES: dict[str, str] = {}


def _tracked(*patterns: str) -> list[Path]:
    """Files that git knows, or all files where there is no git (a source archive)."""
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z", "--", *patterns], cwd=ROOT, capture_output=True, check=True, text=True
        ).stdout
        return [ROOT / name for name in listing.split("\0") if name and (ROOT / name).is_file()]
    except (FileNotFoundError, subprocess.CalledProcessError):
        return [path for pattern in patterns for path in ROOT.glob(f"**/{pattern}") if ".venv" not in path.parts]


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def _code_lines(path: Path) -> int:
    """Lines that do something: docstrings, comments and blank lines help the reader and are not counted."""
    source = path.read_text(encoding="utf-8")
    strings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            strings |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in silent:
            code |= set(range(token.start[0], token.end[0] + 1))
    return len(code - strings)


def _python(folder: Path) -> list[Path]:
    return [path for path in _tracked("*.py") if folder in path.parents]


def test_import_contracts_hold():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command; lint_imports_command()",
            "--no-logo",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_training_of_the_mini_needs_neither_pydantic_nor_ray():
    """It has to run on a bare GPU machine with torch, diffsynth, numpy, opencv and safetensors."""
    import grimp

    graph = grimp.build_graph("sakuga", include_external_packages=True)
    mini = {module for module in graph.modules if module.startswith("sakuga.training.mini")}
    assert mini, "sakuga.training.mini is not in the import graph; is an __init__.py missing?"
    for forbidden in ("pydantic", "ray", "typer", "rich", "skimage", "boto3"):
        if forbidden in graph.modules:
            chain = next(filter(None, (graph.find_shortest_chain(module, forbidden) for module in sorted(mini))), None)
            assert chain is None, " -> ".join(chain or ())


def test_files_stay_short():
    found = {
        str(path.relative_to(ROOT)): _lines(path)
        for path in _tracked("*.py")
        if _lines(path) > MAX_FILE_LINES and str(path.relative_to(ROOT)) not in LONG_FILES
    }
    assert not found, f"over {MAX_FILE_LINES} lines: {found}"


def test_few_functions_are_long():
    long = []
    for path in _python(SRC):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long.append(f"{path.relative_to(SRC)}:{node.name} {lines}")
    assert len(long) <= MAX_LONG_FUNCTIONS, long


def test_the_package_can_be_read_in_an_afternoon():
    total = sum(_code_lines(path) for path in _python(SRC))
    assert total <= MAX_SRC_LINES


def test_jobs_only_parse_and_call():
    for path in _python(ROOT / "jobs"):
        assert _lines(path) < MAX_JOB_LINES, path.name


def test_every_module_says_what_it_is():
    missing = [
        str(path.relative_to(ROOT))
        for path in [*_python(SRC), *_python(ROOT / "jobs"), *_python(ROOT / "benchmarks")]
        if path.read_text(encoding="utf-8").strip()
        and not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not missing


def test_tests_named_in_docstrings_exist():
    found = []
    for path in _tracked("*.py"):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        named = re.findall(r"\btests/[\w/.-]*\w", docstring)
        found += [f"{path.relative_to(ROOT)}: {name}" for name in named if not (ROOT / name).exists()]
    assert not found


@pytest.mark.parametrize("name", ["utils.py", "helpers.py", "manager.py", "common.py"])
def test_no_drawer_for_everything(name):
    assert not [path for path in _python(SRC) if path.name == name]


def test_environment_is_read_in_settings_only():
    found = []
    for path in _python(SRC):
        if path.relative_to(SRC).parts[0] in {"settings.py", "settings"}:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if re.search(r"\bos\.(getenv|environ(\.get\(|\[[^]]+\](?!\s*=[^=])))", line):
                found.append(f"{path.relative_to(SRC)}:{number}")
    assert not found


def test_no_path_of_one_machine():
    """Home folders and file indexes of whoever wrote a file mean nothing to whoever reads it."""
    pattern = re.compile(r"(?<![\w.$~{}])/(work|home/\w+|Users/\w+|root|opt/pypi)/|file:///")
    found = []
    for path in _tracked("*"):
        if path.suffix in {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".jsonl", ".ipynb", ".csv", ""}:
            if path == Path(__file__):
                continue
            found += [
                f"{path.relative_to(ROOT)}:{number}"
                for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
                if pattern.search(line)
            ]
    assert not found


def test_notebooks_are_committed_without_output():
    for path in _tracked("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            assert not cell.get("outputs"), f"{path.name} has output; clear it before the commit"
            assert cell.get("execution_count") is None, path.name


def test_embedded_weights_stay_small():
    total = sum(path.stat().st_size for path in (SRC / "wan").rglob("*.safetensors"))
    assert total <= EMBEDDED_BYTES


def test_embedded_weights_are_uploaded_with_a_job():
    patterns = [line for line in (ROOT / ".rayignore").read_text().splitlines() if line and not line.startswith("#")]
    assert {".git", ".venv"} <= set(patterns)
    assert not [pattern for pattern in patterns if "safetensors" in pattern or pattern.strip("/").startswith("src")]


def test_constraints_pin_every_dependency_exactly():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins = {}
    for line in lines:
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([^\s;]+)( ; .+)?", line)
        assert match, f"not an exact pin: {line}"
        pins[re.sub(r"[-_.]+", "-", match[1]).lower()] = match[2]
    pyproject = (ROOT / "pyproject.toml").read_text()
    wanted = re.findall(r'^    "([A-Za-z0-9._-]+)[^"]*[<>=]=[^"]*"', pyproject, flags=re.MULTILINE)
    assert len(wanted) > 25
    assert not [name for name in wanted if re.sub(r"[-_.]+", "-", name).lower() not in pins]


def test_the_oldest_client_that_is_allowed_is_tested():
    tested = re.search(r'^OLDEST_CLIENT = "(.+)"$', (ROOT / "tests/unit/test_api_clients.py").read_text(), re.MULTILINE)
    allowed = re.search(r'^    "openai>=([\d.]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert tested and allowed
    assert Version(tested[1]) == Version(allowed[1])


def test_cluster_file_fits_rays_schema():
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    jsonschema.validate(cluster, schema)
    assert cluster["head_node_type"] in cluster["available_node_types"]
    assert cluster["available_node_types"]["head"]["resources"] == {"CPU": 0}
    workers = [node for name, node in cluster["available_node_types"].items() if name != "head"]
    assert all(node["resources"]["GPU"] > 0 for node in workers)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(cluster | {"wrokers": 3}, schema)


def test_make_targets_are_there():
    text = (ROOT / "Makefile").read_text()
    for target in ["setup", "demo", "test", "check", "serve", "bench", "proof", "chaos", "mini-refresh", "clean"]:
        assert re.search(rf"^{target}:", text, flags=re.MULTILINE), target


def test_no_folder_of_tests_is_left_out(request):
    """pytest skips folders by name, "dist" among them unless it is told otherwise."""
    skipped = request.config.getini("norecursedirs")
    folders = {path.parent.name for path in _tracked("*.py") if path.name.startswith("test_")}
    assert {"unit", "dist", "ray"} <= folders
    assert not [name for name in folders if any(fnmatch.fnmatch(name, pattern) for pattern in skipped)]
