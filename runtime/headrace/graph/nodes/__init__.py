"""The nodes that come with Headrace, by the name a graph writes behind `run`. Each is imported when a graph asks for it."""

from __future__ import annotations

from collections.abc import Mapping

BUILT_IN: Mapping[str, str] = {
    "tokenizer": "headrace.graph.nodes.tokenizer:Tokenizer",
    "image": "headrace.graph.nodes.image:Image",
    "decode": "headrace.graph.nodes.image:Decode",
    "mean_pooling": "headrace.graph.nodes.vectors:MeanPooling",
    "l2_normalise": "headrace.graph.nodes.vectors:L2Normalise",
    "softmax": "headrace.graph.nodes.scores:Softmax",
    "top_k": "headrace.graph.nodes.scores:TopK",
    "labels": "headrace.graph.nodes.scores:Labels",
}
