"""What the name of a repository suggests, for repositories that nothing better is known about."""

import re
from types import MappingProxyType

from trimtab.catalog.models import CheckpointQuantization

# Suffixes that publishers of quantized copies append, longest first where one contains another.
_SUFFIX = re.compile(
    r"[-_.](?:(?:gptq|awq|exl2|marlin|fp8|bnb|gguf|nf4)(?:[-_.]?(?:int|w)?[348](?:bit|bits)?)?(?:[-_.](?:g?\d+g?|dynamic|kv))*"
    r"|(?:int|w)[48](?:a(?:8|16))?|[48][-_]?bits?|quantized(?:[-_.]w[48]a(?:8|16))?|hf|fp16|bf16)$",
    re.IGNORECASE,
)

_BY_WORD: MappingProxyType[str, CheckpointQuantization] = MappingProxyType(
    {
        r"gptq": CheckpointQuantization(method="gptq", bits=4, group_size=128),
        r"awq": CheckpointQuantization(method="awq", bits=4, group_size=128, symmetric=False),
        r"exl2": CheckpointQuantization(method="exl2", bits=4),
        r"marlin": CheckpointQuantization(method="marlin", bits=4, group_size=128),
        r"w4a16": CheckpointQuantization(method="compressed-tensors", bits=4, group_size=128),
        r"w8a16": CheckpointQuantization(method="compressed-tensors", bits=8),
        r"w8a8": CheckpointQuantization(method="compressed-tensors", bits=8, activations=True),
        r"fp8": CheckpointQuantization(method="fp8", bits=8, weights="float", activations=True),
        r"bnb[-_.]?4|nf4": CheckpointQuantization(method="bitsandbytes", bits=4),
        r"bnb[-_.]?8": CheckpointQuantization(method="bitsandbytes", bits=8),
    }
)
_EIGHT_BITS = re.compile(r"int8|8[-_]?bit", re.IGNORECASE)


def base_name(repository: str) -> str:
    """The last part of a repository name in lower case, without suffixes that only tell a number format.

    `hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4` → `llama-3.1-8b-instruct`.
    """
    name = repository.rsplit("/", 1)[-1]
    while (stripped := _SUFFIX.sub("", name)) != name:
        name = stripped
    return name.lower().removeprefix("meta-")


def checkpoint_from_name(repository: str) -> CheckpointQuantization | None:
    """The number format that a repository's name tells; None when it tells none."""
    name = repository.rsplit("/", 1)[-1]
    for word, checkpoint in _BY_WORD.items():
        if re.search(rf"(?:^|[-_.])(?:{word})", name, re.IGNORECASE):
            if checkpoint.bits == 4 and checkpoint.method in ("gptq", "awq") and _EIGHT_BITS.search(name):
                return checkpoint.model_copy(update={"bits": 8})
            return checkpoint
    return None
