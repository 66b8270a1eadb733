"""What people, disks and other programs do to files: a drawn change of bytes, of JSON, of tensors, of words."""

import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

ODD: tuple[Callable[[], Any], ...] = (
    lambda: None,
    lambda: True,
    lambda: -1,
    lambda: 0,
    lambda: 7.5,
    lambda: 10**18,
    lambda: 10**4000,
    lambda: float("nan"),
    lambda: float("inf"),
    lambda: "",
    lambda: "x",
    lambda: "\ud800",
    lambda: "a\0b",
    lambda: "n" * 5000,
    lambda: "../../etc/passwd",
    lambda: [],
    lambda: {},
    lambda: [[]],
    lambda: ["x", None],
    lambda: {"x": 1},
)
"""Values that stand where another should."""


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to everything within a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at] * bool(at) + [place for key, part in inner for place in places(part, (*at, key))]


def json_value(draw: Random, value: Any) -> Any:
    """A JSON value with one place changed; the value is used up."""
    *way, last = draw.choice(places(value))
    holder = value
    for key in way:
        holder = holder[key]
    kind = draw.randrange(5)
    if kind == 0:
        del holder[last]
    elif kind == 1 and isinstance(holder, list):
        holder.append(holder[last])
    elif kind == 2 and isinstance(holder, dict):
        holder[f"{last}s"] = holder.pop(last)
    else:
        holder[last] = draw.choice(ODD)()
    return value


PUT = ("[" * 2000 + "]" * 2000, '{"a":' * 2000 + "1" + "}" * 2000, "9" * 5000, "1e999", "-", '"\\ud800"')
"""JSON that only a text can have: too deep, too long, too large, none."""


def json_text(draw: Random, value: Any) -> str:
    """JSON of a changed value, or with what only a text can have."""
    if draw.randrange(10):
        return as_json(json_value(draw, value))
    text = as_json(value)
    put = draw.choice(PUT)
    *way, last = draw.choice(places(value))
    holder = value
    for key in way:
        holder = holder[key]
    holder[last] = "PUT HERE"
    return as_json(value).replace('"PUT HERE"', put) if draw.randrange(5) else text[: draw.randrange(len(text))]


def as_json(value: Any) -> str:
    """As most programs write it, NaN included; numbers of any length."""
    return json.dumps(value)


def content(draw: Random, whole: bytes) -> bytes:
    """Bytes with some cut, flipped, repeated or overwritten."""
    changed = bytearray(whole)
    for _ in range(draw.choice([1, 1, 2, 8])):
        at = draw.randrange(len(changed)) if changed else 0
        kind = draw.randrange(5)
        if kind == 0:
            del changed[at:]
        elif kind == 1:
            del changed[at : at + draw.randrange(1, 64)]
        elif kind == 2:
            changed[at:at] = changed[at : at + draw.randrange(1, 64)]
        elif kind == 3 and changed:
            changed[at] ^= 1 << draw.randrange(8)
        else:
            changed[at : at + 4] = struct.pack("<I", draw.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, draw.randrange(2**32)]))
    return bytes(changed)


def safetensors(draw: Random, whole: bytes) -> bytes:
    """Tensors with one of them changed, or their bytes."""
    if not draw.randrange(4):
        return content(draw, whole)
    tensors = load(whole)
    name = draw.choice(sorted(tensors))
    changed = tensor(draw, tensors.pop(name))
    if changed is not None:
        tensors[draw.choice([name, name, name, f"{name}x", name.rpartition(".")[2], ""])] = changed
    return save(tensors)


def tensor(draw: Random, value: Tensor) -> Tensor | None:
    """Another tensor, or none."""
    return draw.choice(
        [
            lambda: None,
            lambda: torch.tensor(1.0),
            lambda: torch.zeros(0),
            lambda: value[:0].clone() if value.dim() else value,
            lambda: torch.cat([value, value]) if value.dim() else value,
            lambda: torch.cat([value, value], dim=-1) if value.dim() else value,
            lambda: value[..., :-1].clone() if value.dim() else value,
            lambda: value.unsqueeze(0).clone(),
            lambda: value.flatten().clone(),
            lambda: value.double(),
            lambda: value.half(),
            lambda: value.long(),
            lambda: torch.full_like(value, float("nan")) if value.is_floating_point() else value - 1,
            lambda: torch.full_like(value, float("-inf")) if value.is_floating_point() else value + 99,
            lambda: torch.zeros_like(value),
        ]
    )()


WORDS = (
    *("", " ", "-", "--", "-1", "0", "nan", "1e999", "9" * 5000, "x" * 300, "x" * 5000, "caf\udce9"),
    *("a/b", "/", ".", "..", "/dev/null", "mini", "meta", "cpu", "unike", "ft", "--json", "[" * 2000, "="),
    *("steps=", "steps=[1", "layers={}", "lr=1e999", "seed=" + "9" * 5000, "a=1"),
    *("\x1b[31m", "\u202e", "\U0001f600"),
)
"""Words of command lines that nobody expects."""


def words(draw: Random, line: list[str]) -> list[str]:
    """A command line with a word less, more or another."""
    changed = list(line)
    at = draw.randrange(len(changed))
    kind = draw.randrange(4)
    if kind == 0:
        del changed[at]
    elif kind == 1:
        changed.insert(at, draw.choice(changed))
    elif kind == 2:
        changed.insert(at, draw.choice(WORDS))
    else:
        changed[at] = draw.choice(WORDS)
    return [word.replace("\0", "") for word in changed]
