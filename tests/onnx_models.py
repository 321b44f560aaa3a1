"""Tiny ONNX models with tokenizers, made on the spot, so that tests run what a user runs without a download.

The vocabulary is a handful of words; the embedding of a token is the unit vector of its number, and a cross-encoder
counts the words that question and text have in common. Both can be checked in one's head.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = (
    "query",
    "passage",
    ":",
    "the",
    "harbour",
    "buoy",
    "salmon",
    "revenue",
    "rose",
    "fell",
    "boat",
    "dimension",
    "turbine",
    "hall",
    "inspected",
    "march",
    "canteen",
    "visitors",
    "gate",
)
VOCABULARY = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}
SIZE = len(VOCABULARY)
MAX_TOKENS = 16


def embedding_model(folder: Path, *, pooled: bool = False, tokenizer_config: bool = True) -> Path:
    """A model folder: `last_hidden_state` (texts, tokens, SIZE), or with `pooled` the mean over all tokens."""
    gather = helper.make_node("Gather", ["table", "input_ids"], ["tokens"])
    if pooled:
        last = helper.make_node("ReduceMean", ["tokens", "token_axis"], ["last_hidden_state"], keepdims=0)
    else:
        last = helper.make_node("Identity", ["tokens"], ["last_hidden_state"])
    shape: list[str | int] = ["texts", SIZE] if pooled else ["texts", "tokens", SIZE]
    return _write(folder, [gather, last], "last_hidden_state", shape, tokenizer_config=tokenizer_config)


def cross_encoder(folder: Path) -> Path:
    """A model folder: `logits` (pairs, 1), the number of words that both sides of a pair have."""
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["tokens"]),
        helper.make_node("Cast", ["token_type_ids"], ["types"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["types", "last_axis"], ["second"]),
        helper.make_node("Sub", ["one", "second"], ["first"]),
        helper.make_node("Mul", ["tokens", "first"], ["question_tokens"]),
        helper.make_node("Mul", ["tokens", "second"], ["text_tokens"]),
        helper.make_node("ReduceMax", ["question_tokens", "token_axis"], ["question"], keepdims=0),
        helper.make_node("ReduceMax", ["text_tokens", "token_axis"], ["text"], keepdims=0),
        helper.make_node("Mul", ["question", "text"], ["common"]),
        helper.make_node("ReduceSum", ["common", "token_axis"], ["logits"], keepdims=1),
    ]
    return _write(folder, nodes, "logits", ["pairs", 1], tokenizer_config=True)


def _write(
    folder: Path, nodes: list[onnx.NodeProto], output: str, shape: list[str | int], *, tokenizer_config: bool
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    table = np.eye(SIZE, dtype=np.float32)
    words = table.copy()
    words[: len(SPECIAL)] = 0
    constants: dict[str, np.ndarray[Any, Any]] = {
        "table": table,
        "words": words,
        "one": np.array(1, np.float32),
        "token_axis": np.array([1], np.int64),
        "last_axis": np.array([2], np.int64),
    }
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["texts", "tokens"])
        for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        inputs,
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")
    _tokenizer().save(str(folder / "tokenizer.json"))
    config = {"model_type": "bert", "max_position_embeddings": MAX_TOKENS + 2, "pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config))
    if tokenizer_config:
        settings = {"model_max_length": MAX_TOKENS, "pad_token": "[PAD]"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, VOCABULARY[token]) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer
