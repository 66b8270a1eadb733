"""Parts of tiny models: a tokenizer and weights made on the spot, so that tests need no download."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast

WIDTH, FFN_WIDTH, LAYERS, HEADS, KV_HEADS = 32, 48, 4, 4, 2
"""Dimensions shared by the tiny models."""

# A few merges, so that "cat" after a space is not tokenised like "cat" alone, as in real vocabularies.
_MERGES = [("Ġ", "a"), ("Ġ", "c"), ("Ġ", "t"), ("Ġ", "b"), ("Ġt", "h"), ("i", "n"), ("e", "r"), ("o", "n"), ("a", "t")]


def tiny_tokenizer(specials: Sequence[str] = (), *, bos: bool = True) -> Any:
    """A byte-level BPE tokenizer of about 270 tokens that can spell any text.

    Args:
        specials: Special tokens of the family, such as ``"<image>"``. Ids: ``<pad>`` 0, ``<s>`` 1, ``</s>`` 2, then
            these.
        bos: Whether a text begins with ``<s>``.
    """
    special_tokens = ["<pad>", "<s>", "</s>", *specials]
    merged = [left + right for left, right in _MERGES]
    vocabulary = [*special_tokens, *sorted(pre_tokenizers.ByteLevel.alphabet()), *merged]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(vocabulary)}, merges=_MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
        )
    make: Any = PreTrainedTokenizerFast
    return make(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=list(specials),
        clean_up_tokenization_spaces=False,
    )


def text_config(tokenizer: Any, **more: Any) -> dict[str, Any]:
    """Fields of a small decoder's config, by the names that most families have for them.

    Args:
        tokenizer: From `tiny_tokenizer`.
        **more: Further fields, or others in place of these.
    """
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": FFN_WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **more,
    }


def amplified(model: Any) -> Any:
    """A Gemma whose last feed-forward network is heard: its output is normed, here to five times the usual size.

    Otherwise it could not outweigh the layers below, whatever an edit does to it, and no random model would learn.
    """
    with torch.no_grad():
        model.model.language_model.layers[-1].post_feedforward_layernorm.weight += 4
    return model


def build(make: Callable[[], nn.Module], seed: int) -> Any:
    """A model in fp32 and eval mode whose weights depend on the seed alone.

    The usual initialisations are so small (BLIP-2: 1e-10) that an image would not move a single logit; here every
    matrix keeps the scale of what it is given, so that a test of equality can fail.

    Args:
        make: Builds the model, for example ``lambda: LlavaForConditionalGeneration(config)``.
        seed: Of a private generator; the global one is left alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make().float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                fan_in = parameter[0].numel()
                parameter.normal_(0.0, fan_in**-0.5, generator=generator)
            else:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return model
