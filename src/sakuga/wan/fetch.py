"""Download the files of a card, only when somebody asks: DiffSynth's own downloader does the work.

Nothing else in the package downloads anything.     Run: pytest tests/unit/test_fetch.py
"""

from pathlib import Path

from sakuga.errors import StorageError
from sakuga.wan.cards import ModelCard


def fetch_card(card: ModelCard, folder: Path, source: str) -> tuple[Path, ...]:
    """Fetch every file of `card` below `folder`/MODEL_ID/ and return their paths (folders for a tokenizer).

    `source` is "modelscope" or "huggingface". Files that are there already are not fetched again.
    Raises StorageError when the download fails or brings nothing; run again, it goes on with what is missing.
    """
    from diffsynth.core import ModelConfig

    paths: list[Path] = []
    for file in card.files:
        config = ModelConfig(
            model_id=file.model_id,
            origin_file_pattern=file.pattern,
            download_source=source,
            local_model_path=str(folder),
            skip_download=False,
        )
        try:
            config.download_if_necessary()
        except Exception as error:
            reason = str(error).strip().split("\n", 1)[0] or type(error).__name__
            raise StorageError(
                f"{file.pattern} of {file.model_id} could not be fetched from {source}: {reason}; "
                "check the network, or try the other source with --source; a second run goes on where this one stopped"
            ) from error
        found = config.path if isinstance(config.path, list) else [config.path]
        if not found or not all(path and Path(path).exists() for path in found):
            raise StorageError(
                f"{source} has no {file.pattern} in {file.model_id}, or gave only a part; try the other --source"
            )
        paths += [Path(path) for path in found]
    return tuple(paths)
