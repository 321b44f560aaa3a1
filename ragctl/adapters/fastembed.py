"""Local ONNX models through fastembed: embedding, and reranking by a cross-encoder.

A model is named as fastembed lists it and fetched from the hub once, or it is a folder as sentence-transformers and
Optimum export it, which works without a network: `model.onnx` (or `onnx/model.onnx`) and `tokenizer.json`, and,
where they are, `config.json`, `tokenizer_config.json`, `modules.json` and `1_Pooling/config.json`.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
from fastembed.rerank.cross_encoder import TextCrossEncoder
from loguru import logger
from tokenizers import Tokenizer

from ragctl.adapters.embeddings import as_vectors
from ragctl.backends import FastembedEmbedding, FastembedReranking
from ragctl.errors import ConfigError, InputRefused, RagctlError, ServiceError
from ragctl.records import Embedded, Usage, short_hash

if TYPE_CHECKING:
    from ragctl.adapters.base import EmbedRole
    from ragctl.config import Experiment

logger.disable("fastembed")  # it writes to stderr by itself; what goes wrong is raised, too

MODEL_FILES: Final = ("model.onnx", "onnx/model.onnx", "model_optimized.onnx")
# Files that shape a vector, besides the model file and the data beside it.
SETTINGS: Final = (
    "1_Pooling/config.json",
    "config.json",
    "modules.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)

T = TypeVar("T", TextEmbedding, TextCrossEncoder)
# fastembed keeps the models that it was told of in its classes.
_registering = threading.Lock()


class FastembedEmbedder:
    """An embedding model in this process."""

    cpu_bound = False  # onnxruntime has its own threads, and each worker would load the model
    max_batch = 32
    max_bytes = 4_000_000
    max_tokens: int | None = None

    def __init__(
        self,
        model: str | Folder,
        *,
        query_prefix: str = "",
        passage_prefix: str = "",
        threads: int | None = None,
    ) -> None:
        """`model` is a name on the hub or a folder. Nothing is loaded or fetched before the first text."""
        self._model, self._threads = model, threads
        self._prefixes: dict[EmbedRole, str] = {"query": query_prefix, "document": passage_prefix}
        self._loading = threading.Lock()
        # A query prefix leaves the index as it is
        prefix = short_hash(passage_prefix) if passage_prefix else ""
        self.identity = ":".join(filter(None, ("fastembed", _name(model), prefix)))

    @classmethod
    def from_config(cls, experiment: Experiment) -> Self:
        """The embedder of a config. ConfigError when it names no model, two, or a folder that holds none."""
        section = experiment.embedding
        assert isinstance(section, FastembedEmbedding)
        return cls(
            _chosen("embedding", section.model, section.path),
            query_prefix=section.query_prefix,
            passage_prefix=section.passage_prefix,
            threads=section.threads,
        )

    @cached_property
    def dimension(self) -> int:
        """Length of a vector; loads the model."""
        return int(self.embed(["dimension"], "document").vectors.shape[1])

    def embed(self, texts: Sequence[str], role: EmbedRole) -> Embedded:
        """Vectors of the texts. InputRefused when one has more tokens than the model takes: nothing is cut off."""
        prefixed = [self._prefixes[role] + text for text in texts]
        loaded, counter, limit = self._loaded
        usage = Usage(input_tokens=self._counted(prefixed, counter, limit))
        embed = loaded.query_embed if role == "query" else loaded.passage_embed
        where = f"model {_name(self._model)}"
        with _errors(f"{where} failed"):
            rows = [row.tolist() for row in embed(prefixed, batch_size=self.max_batch)]
        return Embedded(as_vectors(rows, count=len(texts), dimension=None, where=where), usage)

    @property
    def _loaded(self) -> tuple[TextEmbedding, Tokenizer, int]:
        """The model, a tokenizer of it that does not cut, and the tokens that a text may have."""
        with self._loading:
            return self._load

    @cached_property
    def _load(self) -> tuple[TextEmbedding, Tokenizer, int]:
        loaded = _load(TextEmbedding, "embedding", self._model, self._threads)
        tokenizer: Any = vars(loaded.model)["tokenizer"]  # of the ONNX model that fastembed wraps
        counter = Tokenizer.from_str(tokenizer.to_str())
        counter.no_truncation()
        counter.no_padding()
        return loaded, counter, int(tokenizer.truncation["max_length"])

    def _counted(self, texts: Sequence[str], counter: Tokenizer, limit: int) -> int:
        """Tokens of the texts, if each fits."""
        counts = [len(encoding) for encoding in counter.encode_batch(list(texts))]
        if max(counts) > limit:
            raise InputRefused(
                f"model {_name(self._model)}: a text has {max(counts)} tokens, the model takes {limit}",
                hint="make chunking.size smaller",
            )
        return sum(counts)


class FastembedReranker:
    """A cross-encoder in this process."""

    def __init__(self, model: str | Folder) -> None:
        """`model` is a name on the hub or a folder. Nothing is loaded or fetched before the first question."""
        self._model = model
        self._loading = threading.Lock()
        self.identity = f"fastembed:{_name(model)}"

    @classmethod
    def from_config(cls, experiment: Experiment) -> Self:
        """The reranker of a config. ConfigError when it names no model, two, or a folder that holds none."""
        section = experiment.reranking
        assert isinstance(section, FastembedReranking)
        return cls(_chosen("reranking", section.model, section.path))

    def rerank(self, question: str, texts: Sequence[str]) -> list[float]:
        """The model's logits. A pair with more tokens than it takes is cut, the longer side first."""
        with self._loading:
            loaded = self._loaded
        with _errors(f"model {_name(self._model)} failed"):
            return [float(score) for score in loaded.rerank(question, list(texts), batch_size=32)]

    @cached_property
    def _loaded(self) -> TextCrossEncoder:
        return _load(TextCrossEncoder, "reranking", self._model, None)


# --- models ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Folder:
    """A model in a folder; `digest` is a hash of all that shapes its vectors, wherever the folder lies."""

    path: Path
    model_file: str  # below path
    pooling: PoolingType
    normalise: bool
    digest: str


def open_folder(path: Path) -> Folder:
    """The model in a folder. ConfigError says what is missing."""
    if not path.is_dir():
        raise ConfigError(f"no such model folder: {path}")
    model_file = next((name for name in MODEL_FILES if (path / name).is_file()), None)
    if model_file is None or not (path / "tokenizer.json").is_file():
        missing = "tokenizer.json" if model_file else f"model file ({', '.join(MODEL_FILES)})"
        raise ConfigError(
            f"the model folder {path} holds no {missing}",
            hint="export the model to ONNX, for example with optimum-cli export onnx",
        )
    pooling, normalise = _pooling(path), _normalises(path)
    digest = _digest(path, model_file)
    return Folder(path, model_file, pooling, normalise, digest)


def _pooling(path: Path) -> PoolingType:
    """How sentence-transformers would make one vector of the tokens'; the mean where the folder does not say."""
    settings = _json(path / "1_Pooling/config.json")
    if settings.get("pooling_mode_cls_token") or settings.get("pooling_mode") == "cls":
        return PoolingType.CLS
    if settings.get("pooling_mode_lasttoken") or settings.get("pooling_mode") == "lasttoken":
        return PoolingType.LAST_TOKEN
    return PoolingType.MEAN


def _normalises(path: Path) -> bool:
    """Whether vectors are scaled to length 1; where the folder does not list its modules, they are."""
    modules = _json(path / "modules.json")
    return not modules or any(str(module.get("type", "")).endswith("Normalize") for module in modules)


def _json(path: Path) -> Any:
    """A settings file; empty where there is none."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON") from error


def _digest(path: Path, model_file: str) -> str:
    """Hash of the files that shape a vector: the model, the data that ONNX keeps beside it, and the settings."""
    stem = (path / model_file).name
    beside = sorted(file for file in (path / model_file).parent.iterdir() if file.name.startswith(stem))
    digest = blake2b(digest_size=10)
    for file in [*beside, *(path / name for name in SETTINGS)]:
        if file.is_file():
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as data:
                while part := data.read(1 << 20):
                    digest.update(part)
    return digest.hexdigest()


def _name(model: str | Folder) -> str:
    return model if isinstance(model, str) else model.digest


def _chosen(section: str, model: str | None, path: Path | None) -> str | Folder:
    if (model is None) == (path is None):
        raise ConfigError(f"{section}: set either model, a name on the hub, or path, a folder")
    return open_folder(path) if path else str(model)


# --- loading ---------------------------------------------------------------------------------------------


def _load(kind: type[T], section: str, model: str | Folder, threads: int | None) -> T:
    """The model, ready to run. ConfigError for one that does not exist, ServiceError for one that cannot be fetched."""
    if isinstance(model, Folder):
        return _load_folder(kind, model, threads)
    known = {entry["model"].lower() for entry in kind.list_supported_models()}
    if model.lower() not in known:
        raise ConfigError(
            f"{section}.model: fastembed knows no model {model}",
            hint=f"its documentation lists {len(known)} of them; any other works from a folder: {section}.path",
        )
    hint = f"check the network, or set {section}.path to a folder that holds the model"
    with _errors(f"the model {model} is not in the cache and cannot be fetched", hint):
        return kind(model, threads=threads)


def _load_folder(kind: type[T], model: Folder, threads: int | None) -> T:
    with TemporaryDirectory(prefix="ragctl-model-") as staging:
        folder = _with_tokenizer_config(model.path, Path(staging))
        place = short_hash(str(model.path.resolve()))
        name = f"ragctl/{model.digest}/{model.pooling.value}/{place}"
        with _errors(f"the model in {model.path} cannot be loaded"):
            _register(kind, name, model)
            loaded = kind(name, threads=threads, specific_model_path=str(folder))
    if kind is TextEmbedding and model.pooling is not PoolingType.DISABLED and _is_pooled(loaded):
        return _load_folder(kind, replace(model, pooling=PoolingType.DISABLED), threads)
    return loaded


def _is_pooled(loaded: Any) -> bool:
    """Whether the model itself gives one vector per text, shape (texts, dimension), and not one per token."""
    return len(loaded.model.model.get_outputs()[0].shape) == 2


def _register(kind: type[T], name: str, model: Folder) -> None:
    """Tell fastembed of a model, once. An absolute model file is found whatever folder the tokenizer is in."""
    source, file = ModelSource(hf=name), str((model.path / model.model_file).resolve())
    with _registering:
        if any(entry["model"] == name for entry in kind.list_supported_models()):
            return
        if issubclass(kind, TextEmbedding):
            kind.add_custom_model(name, model.pooling, model.normalise, source, dim=0, model_file=file)
        else:
            kind.add_custom_model(name, source, model_file=file)


def _with_tokenizer_config(folder: Path, staging: Path) -> Path:
    """The folder, or where it has no tokenizer_config.json, which fastembed wants, a copy of its settings with one."""
    if (folder / "tokenizer_config.json").is_file():
        return folder
    for name in ("tokenizer.json", "config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            shutil.copy(folder / name, staging)
    config, tokenizer = _json(folder / "config.json"), Tokenizer.from_file(str(folder / "tokenizer.json"))
    pad = (tokenizer.padding or {}).get("pad_token") or tokenizer.id_to_token(config.get("pad_token_id", 0))
    limit = (tokenizer.truncation or {}).get("max_length") or _positions(config)
    if limit is None:
        raise ConfigError(
            f"the model folder {folder} does not say how many tokens a text may have",
            hint='add a tokenizer_config.json, such as {"model_max_length": 512, "pad_token": "[PAD]"}',
        )
    (staging / "tokenizer_config.json").write_text(json.dumps({"model_max_length": limit, "pad_token": pad}))
    return staging


def _positions(config: dict[str, Any]) -> int | None:
    """Tokens for which the model has positions. Rounded down to 8: RoBERTa's table has two that no token may take."""
    size = config.get("max_position_embeddings")
    return size - size % 8 or size if isinstance(size, int) else None


@contextmanager
def _errors(what: str, hint: str | None = None) -> Iterator[None]:
    """Whatever fastembed, onnxruntime or the hub's client raises, as a ServiceError that begins with `what`."""
    try:
        yield
    except RagctlError:
        raise
    except Exception as error:  # onnxruntime's errors have no other base class
        why = str(error).partition("\n")[0][:200] or type(error).__name__
        raise ServiceError(f"{what}: {why}", hint=hint) from error
