"""What all tests share: a quiet local Ray, two threads, a printed seed, and GPU tests that skip without a GPU.

`pytest --seed N` repeats a run; the seed in use stands above the last line of every run.
"""

import os
import random
import signal
import zlib

import pytest

# Before anything imports ray or torch; child processes inherit it.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))
# Two test processes on two cores: threads that spin at barriers slow each other down a hundredfold.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A shell starts background jobs with Ctrl-C ignored, and Python keeps that: tests of interruption would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption("--seed", type=int, default=None, help="seed of the tests that draw at random")


def pytest_configure(config):
    if config.option.seed is None:
        config.option.seed = random.SystemRandom().randrange(2**31)


def pytest_terminal_summary(terminalreporter, config):
    # Not in the header, which `-q` leaves out; the line with the counts still comes after it.
    terminalreporter.write_line(f"seed of this run: --seed {config.option.seed}")


@pytest.fixture
def seed(request) -> int:
    """A seed of this test's own, fixed by `--seed` and the test's name."""
    value = (request.config.option.seed ^ zlib.crc32(request.node.nodeid.encode())) % 2**31
    print(f"seed {value}, from --seed {request.config.option.seed}")
    return value


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory):
    """A tokenizer of the mini's kind, for tiny models."""
    from sakuga.wan.mini.tokenizer import save_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder, 1024)
    return folder


@pytest.fixture(scope="module")
def one_thread():
    """For tiny models: their operations are so small that threads only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_collection_modifyitems(items):
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu:
        import torch

        if not torch.cuda.is_available():
            for item in on_gpu:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
