"""Local models through the real fastembed and onnxruntime, with tiny models made here."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragctl import errors
from ragctl.adapters import open_embedder, open_reranker
from ragctl.adapters.fastembed import FastembedEmbedder, FastembedReranker, open_folder
from ragctl.config import Experiment
from tests.onnx_models import MAX_TOKENS, SIZE, VOCABULARY, cross_encoder, embedding_model


def experiment(folder: Path, **sections: Any) -> Experiment:
    """An experiment with these sections."""
    source = {"kind": "local", "name": "s", "path": str(folder)}
    return Experiment.model_validate({"name": "e", "sources": [source], **sections})


def pooling(folder: Path, **settings: object) -> Path:
    """The folder, with how sentence-transformers pools."""
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps(settings))
    return folder


def mean_of(*words: str) -> Any:
    """The unit vector of a text's tokens, its two special ones among them."""
    vector = np.zeros(SIZE)
    for word in ("[CLS]", *words, "[SEP]"):
        vector[VOCABULARY[word]] += 1
    return vector / np.linalg.norm(vector)


# --- embedding -------------------------------------------------------------------------------------------


def test_a_folder_works_offline(tmp_path: Path) -> None:
    """Model, tokenizer and config in a folder are all it takes; texts of different length do not disturb one another."""
    embedder = FastembedEmbedder(open_folder(embedding_model(tmp_path)))
    found = embedder.embed(["salmon", "the harbour buoy"], "document")
    expected = [mean_of("salmon"), mean_of("the", "harbour", "buoy")]
    np.testing.assert_allclose(found.vectors, expected, rtol=1e-6)
    assert found.vectors.dtype == np.float32
    assert found.usage.input_tokens == 3 + 5
    assert embedder.dimension == SIZE
    assert not embedder.cpu_bound


def test_a_folder_without_tokenizer_config_works(tmp_path: Path) -> None:
    """What fastembed wants to know is read from tokenizer.json and config.json; the folder stays as it is."""
    folder = embedding_model(tmp_path / "model", tokenizer_config=False)
    before = sorted(folder.iterdir())
    embedder = FastembedEmbedder(open_folder(folder))
    np.testing.assert_allclose(embedder.embed(["boat"], "query").vectors, [mean_of("boat")], rtol=1e-6)
    with pytest.raises(errors.InputRefused, match=f"the model takes {MAX_TOKENS}$"):
        embedder.embed(["boat " * MAX_TOKENS], "query")
    assert sorted(folder.iterdir()) == before


def test_a_folder_that_does_not_say_how_long_a_text_may_be(tmp_path: Path) -> None:
    """Nothing is guessed: the message names what to add."""
    folder = embedding_model(tmp_path, tokenizer_config=False)
    (folder / "config.json").unlink()
    with pytest.raises(errors.ConfigError, match="does not say how many tokens a text may have") as caught:
        FastembedEmbedder(open_folder(folder)).embed(["boat"], "query")
    assert "model_max_length" in (caught.value.hint or "")


def test_a_model_that_pools_itself(tmp_path: Path) -> None:
    """A model that gives one vector per text is taken at its word."""
    embedder = FastembedEmbedder(open_folder(embedding_model(tmp_path, pooled=True)))
    np.testing.assert_allclose(embedder.embed(["boat"], "query").vectors, [mean_of("boat")], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"pooling_mode_cls_token": True}, "[CLS]"),
        ({"pooling_mode": "cls"}, "[CLS]"),
        ({"pooling_mode_lasttoken": True}, "[SEP]"),
    ],
)
def test_the_folder_says_how_to_pool(tmp_path: Path, settings: dict[str, object], expected: str) -> None:
    """The settings of sentence-transformers are kept to: here one token stands for the text."""
    folder = pooling(embedding_model(tmp_path), **settings)
    found = FastembedEmbedder(open_folder(folder)).embed(["boat"], "query").vectors
    assert found.argmax() == VOCABULARY[expected]
    assert found.sum() == 1


def test_the_folder_says_whether_to_normalise(tmp_path: Path) -> None:
    """A folder whose modules hold no Normalize gives the plain mean."""
    folder = embedding_model(tmp_path)
    (folder / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Transformer"}]))
    found = FastembedEmbedder(open_folder(folder)).embed(["boat"], "query").vectors
    assert found.sum() == pytest.approx(1)
    assert np.linalg.norm(found) < 0.6


def test_prefixes_go_in_front_of_queries_and_passages(tmp_path: Path) -> None:
    """Models that were trained with prefixes get them, each role its own."""
    folder = open_folder(embedding_model(tmp_path))
    embedder = FastembedEmbedder(folder, query_prefix="query: ", passage_prefix="passage: ")
    query, passage = (embedder.embed(["boat"], role).vectors[0] for role in ("query", "document"))
    np.testing.assert_allclose(query, mean_of("query", ":", "boat"), rtol=1e-6)
    np.testing.assert_allclose(passage, mean_of("passage", ":", "boat"), rtol=1e-6)
    assert embedder.identity != FastembedEmbedder(folder).identity


def test_nothing_is_cut_off_silently(tmp_path: Path) -> None:
    """A text that is longer than the model takes is refused, with both lengths and without the text."""
    embedder = FastembedEmbedder(open_folder(embedding_model(tmp_path)))
    embedder.embed(["boat " * (MAX_TOKENS - 2)], "document")
    with pytest.raises(errors.InputRefused) as caught:
        embedder.embed(["salmon", "boat " * (MAX_TOKENS - 1)], "document")
    assert f"a text has {MAX_TOKENS + 1} tokens, the model takes {MAX_TOKENS}" in caught.value.message
    assert caught.value.hint == "make chunking.size smaller"


def test_the_identity_is_what_the_folder_holds_and_not_where_it_is(tmp_path: Path) -> None:
    """A copy is the same model; other weights or another pooling are not."""
    here, there = (open_folder(embedding_model(tmp_path / name)) for name in ("here", "there"))
    pooled = open_folder(pooling(embedding_model(tmp_path / "cls"), pooling_mode="cls"))
    other = open_folder(embedding_model(tmp_path / "other", pooled=True))
    names = [FastembedEmbedder(folder).identity for folder in (here, there, pooled, other)]
    assert names[0] == names[1]
    assert len(set(names)) == 3
    assert all(str(tmp_path) not in name for name in names)


def test_a_copy_works_when_the_original_is_gone(tmp_path: Path) -> None:
    """What fastembed was told of one folder is not used for another that holds the same."""
    original = embedding_model(tmp_path / "original")
    FastembedEmbedder(open_folder(original)).embed(["boat"], "query")
    original.rename(tmp_path / "copy")
    found = FastembedEmbedder(open_folder(tmp_path / "copy")).embed(["boat"], "query").vectors
    np.testing.assert_allclose(found, [mean_of("boat")], rtol=1e-6)


def test_several_threads_share_a_model(tmp_path: Path) -> None:
    """It is loaded once, and each caller gets the vectors of its own texts."""
    embedder = FastembedEmbedder(open_folder(embedding_model(tmp_path)), threads=1)
    words = ["boat", "salmon", "buoy", "revenue"] * 5
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda word: embedder.embed([word], "query").vectors[0], words))
    np.testing.assert_allclose(found, [mean_of(word) for word in words], rtol=1e-6)


# --- reranking -------------------------------------------------------------------------------------------


def test_a_cross_encoder_scores_each_text(tmp_path: Path) -> None:
    """One score per text in the order of the texts, higher for the better; here: words in common."""
    reranker = FastembedReranker(open_folder(cross_encoder(tmp_path)))
    texts = ["salmon fell", "the harbour buoy rose", "harbour"]
    assert reranker.rerank("the harbour buoy", texts) == [0, 3, 1]
    assert reranker.rerank("the harbour buoy", []) == []


# --- config and errors -----------------------------------------------------------------------------------


def test_the_experiment_decides(tmp_path: Path) -> None:
    """Embedder and reranker of an experiment are folders that work offline."""
    config = experiment(
        tmp_path,
        embedding={"kind": "fastembed", "path": embedding_model(tmp_path / "e"), "query_prefix": "query: "},
        reranking={"kind": "fastembed", "path": cross_encoder(tmp_path / "r")},
    )
    reranker = open_reranker(config)
    assert open_embedder(config).embed(["boat"], "query").usage.input_tokens == 5
    assert reranker is not None
    assert reranker.rerank("boat", ["the boat"]) == [1]


@pytest.mark.parametrize("settings", [{}, {"model": "BAAI/bge-small-en-v1.5", "path": "/models/m"}])
def test_model_or_path(tmp_path: Path, settings: dict[str, str]) -> None:
    """One of the two has to be set."""
    for section in ("embedding", "reranking"):
        config = experiment(tmp_path, **{section: {"kind": "fastembed", **settings}})
        with pytest.raises(
            errors.ConfigError, match=f"^{section}: set either model, a name on the hub, or path"
        ):
            (open_embedder if section == "embedding" else open_reranker)(config)


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("model.onnx", r"holds no model file \(model.onnx, onnx/model.onnx, model_optimized.onnx\)"),
        ("tokenizer.json", "holds no tokenizer.json"),
    ],
)
def test_an_incomplete_folder_is_a_configuration_error(tmp_path: Path, missing: str, words: str) -> None:
    """The message names the folder and what it lacks, before anything is loaded."""
    (embedding_model(tmp_path) / missing).unlink()
    with pytest.raises(errors.ConfigError, match=words):
        open_folder(tmp_path)


def test_a_missing_folder_and_broken_settings(tmp_path: Path) -> None:
    """A path that is not there, and a file that is no JSON, are named."""
    with pytest.raises(errors.ConfigError, match=r"no such model folder: .*gone"):
        open_folder(tmp_path / "gone")
    (embedding_model(tmp_path) / "modules.json").write_text("[")
    with pytest.raises(errors.ConfigError, match=r"modules\.json is no JSON"):
        open_folder(tmp_path)


def test_a_broken_model_file_is_an_error_of_ours(tmp_path: Path) -> None:
    """What onnxruntime raises does not leave the adapter."""
    (embedding_model(tmp_path) / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(errors.ServiceError, match=r"the model in .* cannot be loaded: "):
        FastembedEmbedder(open_folder(tmp_path)).embed(["boat"], "query")


def test_an_unknown_name_is_a_configuration_error() -> None:
    """A misspelt model is not looked for on the network."""
    with pytest.raises(
        errors.ConfigError, match=r"embedding\.model: fastembed knows no model BAAI/bge-smal"
    ) as caught:
        FastembedEmbedder("BAAI/bge-smal").embed(["boat"], "query")
    assert "embedding.path" in (caught.value.hint or "")
    with pytest.raises(errors.ConfigError, match=r"reranking\.model: fastembed knows no model no/such"):
        FastembedReranker("no/such").rerank("q", ["a"])


def test_a_model_that_cannot_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network and with an empty cache the message says so, and how to do without a network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("FASTEMBED_CACHE_PATH", str(tmp_path))
    embedder = FastembedEmbedder("BAAI/bge-small-en-v1.5")
    assert embedder.identity == "fastembed:BAAI/bge-small-en-v1.5"
    with pytest.raises(errors.ServiceError) as caught:
        embedder.embed(["boat"], "query")
    assert "BAAI/bge-small-en-v1.5 is not in the cache and cannot be fetched" in caught.value.message
    assert caught.value.hint == "check the network, or set embedding.path to a folder that holds the model"


def test_without_the_extra_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base install does not have fastembed, and a user of it learns how to get it."""
    monkeypatch.delitem(sys.modules, "ragctl.adapters.fastembed")
    monkeypatch.setitem(sys.modules, "fastembed", None)
    config = experiment(tmp_path, embedding={"kind": "fastembed", "model": "BAAI/bge-small-en-v1.5"})
    with pytest.raises(errors.MissingExtra) as caught:
        open_embedder(config)
    assert caught.value.message == "embedding: kind fastembed needs an optional package"
    assert caught.value.hint == 'install it with: pip install "ragctl[fastembed]"'
