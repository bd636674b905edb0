"""Makes a tiny Qwen3 with random weights. Runs in the vLLM environment: `python tiny_model.py DIR`.

A KV token takes 2 layers x 2 (K and V) x 2 KV heads x 64 x 4 bytes = 2,048 bytes. The weights are float32,
because bfloat16 is five times slower on processors without AVX-512. The answers have no meaning. A load test
needs only that each token gives a piece of text.
"""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, set_seed

SEED = 20_24
VOCABULARY = 4096
_END = "<|im_end|>"
SPECIAL = ["<|endoftext|>", "<|im_start|>", _END]
THINK_TAGS = ["<think>", "</think>"]

# As with Qwen3, the model thinks unless `enable_thinking` is false; then the prompt ends with an empty
# thought. The opening tag is in the prompt, because a model with random weights would never write it.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
<think>
{% if enable_thinking is defined and not enable_thinking %}
</think>

{% endif %}
{%- endif -%}
"""


COMMON = """
the of and to in is you that it he was for on are as with his they at be this have from or one had by word
but not what all were we when your can said there use an each which she do how their if will up other about
out many then them these so some her would make like him into time has look two more write go see number no
way could people my than first water been call who oil its now find long down day did get come made may part
over new sound take only little work know place year live me back give most very after thing our just name
good sentence man think say great where help through much before line right too mean old any same tell boy
follow came want show also around form three small set put end does another well large must big even such
because turn here why ask went men read need land different home us move try kind hand picture again change
off play spell air away animal house point page letter mother answer found study still learn should world
woman life child school state family student group country problem case week company system program question
government night room area money story fact month lot book eye job business issue side head service friend
father power hour game member law car city team minute idea body parent face level office door health person
art war history party result morning reason research girl moment teacher force order plan paper music value
model space ground event matter center table town image voice field road river market summer window garden
always between both bring every keep last leave never next open public seem under until while without young
"""


ONSETS = "b ch d f g h j l m n p pr qu r s sh t th tr w"
NUCLEI = "a ai e ea ee i ie o oa oo ou u"
CODAS = "n r s t nd ng st ll ck ly ed er"


def _invented(rng: random.Random) -> str:
    parts = [ONSETS.split(), NUCLEI.split(), CODAS.split()]
    syllables = rng.choice((1, 1, 2))
    return "".join(rng.choice(part) for part in parts * syllables)


def _sentences(rng: random.Random) -> Iterator[str]:
    """Yields random sentences (deterministic) to train the tokenizer on.

    Common words, such as those of the load test's prompts, become one token each; the others are invented.
    """
    common = COMMON.split()
    invented = [_invented(rng) for _ in range(4000)]
    for _ in range(4000):
        words = rng.choices(common, k=rng.randint(3, 9)) + rng.choices(invented, k=rng.randint(2, 6))
        rng.shuffle(words)
        yield " ".join(words).capitalize() + "."


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(THINK_TAGS),
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sentences(random.Random(SEED)), trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in THINK_TAGS])
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise SystemExit(f"The tokenizer has {tokenizer.get_vocab_size()} tokens instead of {VOCABULARY}.")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=_END, pad_token=SPECIAL[0], chat_template=CHAT_TEMPLATE
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    set_seed(SEED)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model = Qwen3ForCausalLM(config)
    _say_only_text(model, tokenizer)
    return model


def _say_only_text(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Makes the model write only text: widens its logits and sets those of tags and partial characters to 0.

    Otherwise an answer of half characters would look empty to a client.
    """
    texts = tokenizer.batch_decode([[token] for token in range(VOCABULARY)])
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.25)
        for token, text in enumerate(texts):
            if text in SPECIAL + THINK_TAGS or "\ufffd" in text:
                model.lm_head.weight[token] = 0


def main() -> None:
    folder = Path(sys.argv[1])
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
