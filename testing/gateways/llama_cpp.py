"""Makes a tiny Llama with random weights and serves it by llama.cpp, in the environment of llama.cpp.

`python llama_cpp.py MODEL PORT CONTEXT SLOTS WORD...` runs until it is ended. Each word is one token.
"""

import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xllamacpp
from gguf import GGUFWriter, TokenType

HIDDEN, MLP, LAYERS, HEADS, KV_HEADS = 256, 1024, 4, 4, 2
SPACE = "\u2581"  # how vocabularies of SentencePiece write it
MARKERS = {"<unk>": TokenType.UNKNOWN, "<s>": TokenType.CONTROL, "</s>": TokenType.CONTROL}


def vocabulary(words: Sequence[str]) -> dict[str, TokenType]:
    """Returns the tokens with their types: special ones, bytes, and every beginning of every word, because
    the tokenizer puts a word together letter by letter."""
    bytes_ = {f"<0x{value:02X}>": TokenType.BYTE for value in range(256)}
    begun = {SPACE + word[:end]: TokenType.NORMAL for word in words for end in range(1, len(word) + 1)}
    return MARKERS | bytes_ | begun


def write_model(path: Path, words: Sequence[str], context: int) -> None:
    """Writes the model as a GGUF file."""
    tokens = vocabulary(words)
    writer = GGUFWriter(path, "llama")
    _describe(writer, tokens, context)
    said = {SPACE + word for word in words}
    for name, weights in _weights([token in said for token in tokens]):
        writer.add_tensor(f"{name}.weight", weights.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: GGUFWriter, tokens: Mapping[str, TokenType], context: int) -> None:
    writer.add_context_length(context)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(list(tokens))
    writer.add_token_scores([-float(place) for place in range(len(tokens))])
    writer.add_token_types(list(tokens.values()))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}\n{% endfor %}")


def _weights(is_said: Sequence[bool]) -> Iterator[tuple[str, "np.ndarray[Any, np.dtype[np.float64]]"]]:
    """Yields random weights by name. The model says only the chosen tokens: the others' logits are 0."""
    rng = np.random.default_rng(20)
    shapes = {
        "attn_q": (HIDDEN, HIDDEN),
        "attn_k": (HIDDEN // HEADS * KV_HEADS, HIDDEN),
        "attn_v": (HIDDEN // HEADS * KV_HEADS, HIDDEN),
        "attn_output": (HIDDEN, HIDDEN),
        "ffn_gate": (MLP, HIDDEN),
        "ffn_up": (MLP, HIDDEN),
        "ffn_down": (HIDDEN, MLP),
    }
    yield "token_embd", rng.normal(0.0, 0.3, (len(is_said), HIDDEN))
    yield "output", rng.normal(0.0, 0.3, (len(is_said), HIDDEN)) * np.array(is_said)[:, None]
    yield "output_norm", np.ones(HIDDEN)
    for layer in range(LAYERS):
        for name, shape in shapes.items():
            yield f"blk.{layer}.{name}", rng.normal(0.0, 0.3, shape)
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{layer}.{name}", np.ones(HIDDEN)


def main() -> None:
    path, port, context, slots, *words = sys.argv[1:]
    write_model(Path(path), words, int(context))
    parameters = xllamacpp.CommonParams()
    parameters.model.path = path
    parameters.hostnames, parameters.port = ["127.0.0.1"], int(port)
    parameters.n_parallel, parameters.n_ctx = int(slots), int(slots) * int(context)
    parameters.cpuparams.n_threads = 1
    parameters.warmup = False
    parameters.endpoint_metrics = True
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
