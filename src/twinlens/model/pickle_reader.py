"""Reads a pickle as data: which names it mentions and which values it holds, running nothing.

A pickle is a program for a small stack machine, and Python's own machine may import and
call whatever the program names. This one interprets the same opcodes (pickletools parses
them) but has no way to import or call: a name is a string, and what "calling" it means is
looked up in a table that the caller passes. A name outside that table ends the reading.
Knows nothing of tensors or files; torch_file.py passes the table for those.
"""

import io
import mmap
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from twinlens.errors import CheckpointMismatch

# A full training checkpoint of the largest CLIP (1,500 weights and two optimizer moments of
# each) takes about 150,000. One byte of pickle can ask for an object of 100: hence a limit.
MAX_OPERATIONS = 1_000_000
MAX_SHOWN_NAME = 120  # characters of a foreign name in a message

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
# Opcodes that carry their value with them.
LITERALS = frozenset(
    "BININT BININT1 BININT2 INT LONG LONG1 LONG4 BINFLOAT FLOAT BINUNICODE SHORT_BINUNICODE "
    "BINUNICODE8 UNICODE BINSTRING SHORT_BINSTRING STRING BINBYTES SHORT_BINBYTES BINBYTES8 "
    "BYTEARRAY8".split()
)
# TorchScript's classes: they exist only inside the archive, so that anything may be mentioned.
TORCHSCRIPT_PREFIX = "__torch__."


@dataclass(frozen=True)
class Name:
    """A class or function that the pickle mentions, never looked up."""

    text: str


@dataclass(eq=False)
class Node:
    """What would have been an instance of `name`: its arguments and attributes, inert."""

    name: str
    arguments: tuple[object, ...] = ()
    attributes: dict[str, object] = field(default_factory=dict)


# What "calling" a permitted name means; None leaves a Node.
Builders = Mapping[str, Callable[..., object] | None]


def read_pickle(
    stream: io.BytesIO | mmap.mmap,
    builders: Builders,
    persistent: Callable[[object], object],
    *,
    source: str,
) -> object:
    """The value of the pickle that starts at the stream's position; stops right behind it.

    The stream is memory or mapped: a file would allocate whatever a hostile length asks for.
    `persistent` turns the references to outside storage into values.
    Raises CheckpointMismatch, with `source` as the file's name, for a mention of any name
    outside `builders`, and for anything that is not a whole pickle.
    """
    machine = _Machine(builders, persistent, source)
    operations = pickletools.genops(stream)  # type: ignore[arg-type]
    try:
        for count, (opcode, argument, _) in enumerate(operations):
            if count >= MAX_OPERATIONS:
                raise CheckpointMismatch(
                    f"{source} holds a pickle of more than {MAX_OPERATIONS:,} operations, which "
                    f"is no list of weights. Use a file that holds only a state dict."
                )
            machine.step(opcode.name, argument)
        return machine.stack.pop()
    except CheckpointMismatch:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointMismatch(
            f"{source} is cut short or damaged: its pickle does not parse "
            f"({shown(error)}). Copy or download it again."
        ) from error


def shown(value: object) -> str:
    """Foreign text for a message: one line, no control characters, not endless."""
    text = str(value).encode("unicode_escape").decode("ascii")
    return text if len(text) <= MAX_SHOWN_NAME else text[:MAX_SHOWN_NAME] + "..."


class _Machine:
    """The stack machine; holds what the pickle has built so far."""

    def __init__(
        self, builders: Builders, persistent: Callable[[object], object], source: str
    ) -> None:
        self.stack: list[object] = []
        self._outer: list[list[object]] = []  # stacks put aside by MARK
        # A dictionary, not an array: Python's own reader allocates up to the largest number used.
        self._memo: dict[object, object] = {}
        self._builders = builders
        self._persistent = persistent
        self._source = source

    def step(self, operation: str, argument: object) -> None:
        stack = self.stack
        match operation:
            case _ if operation in LITERALS:
                stack.append(argument)
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self._memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(self._memo[argument])
            case "MARK":
                self._outer.append(stack)
                self.stack = []
            case "TUPLE":
                self._push(tuple(self._to_mark()))
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append(CONSTANTS[operation])
            case "BINPERSID":
                stack.append(self._persistent(stack.pop()))
            case "REDUCE" | "NEWOBJ":
                arguments = stack.pop()
                stack.append(self._apply(stack.pop(), arguments))
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                length = int(operation[-1])
                values = tuple(stack[-length:])
                if len(values) != length:
                    raise IndexError("stack underflow")
                del stack[-length:]
                stack.append(values)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST" | "EMPTY_SET":  # a set as a list: nothing here needs hashes
                stack.append([])
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self._set_items([key, value])
            case "SETITEMS":
                self._set_items(self._to_mark())
            case "DICT":
                items = self._to_mark()
                self._push({})
                self._set_items(items)
            case "APPEND":
                self._append([stack.pop()])
            case "APPENDS" | "ADDITEMS":
                self._append(self._to_mark())
            case "LIST" | "FROZENSET":
                self._push(self._to_mark())
            case "BUILD":
                self._build(stack.pop())
            case "GLOBAL":
                module, _, name = str(argument).partition(" ")
                stack.append(self._name(module, name))
            case "STACK_GLOBAL":
                name, module = str(stack.pop()), str(stack.pop())
                stack.append(self._name(module, name))
            case "INST":  # protocol 0's GLOBAL and call in one
                module, _, name = str(argument).partition(" ")
                arguments = tuple(self._to_mark())
                self._push(self._apply(self._name(module, name), arguments))
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._to_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _:
                raise ValueError(f"operation {operation} does not occur in weights")

    def _push(self, value: object) -> None:
        self.stack.append(value)

    def _to_mark(self) -> list[object]:
        values = self.stack
        self.stack = self._outer.pop()
        return values

    def _name(self, module: str, name: str) -> Name:
        text = f"{module}.{name}"
        if text not in self._builders and not text.startswith(TORCHSCRIPT_PREFIX):
            raise CheckpointMismatch(
                f"{self._source} asks Python to run '{shown(text)}', which weights do not need, so "
                f"it was refused and nothing was run. Use a safetensors file, or one that "
                f"holds only a state dict."
            )
        return Name(text)

    def _apply(self, function: object, arguments: object) -> object:
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise TypeError("a call of something that is not a name")
        if (build := self._builders.get(function.text)) is not None:
            return build(*arguments)
        return Node(function.text, arguments)

    def _set_items(self, items: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise TypeError("items set on something that is not a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_checked_key(key)] = value

    def _append(self, values: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise TypeError("items appended to something that is not a list")
        target.extend(values)

    def _build(self, state: object) -> None:
        """Attributes of a Node; on anything else (an OrderedDict's `_metadata`) they are lost."""
        target = self.stack[-1]
        if isinstance(target, Node) and isinstance(state, dict):
            target.attributes.update({str(key): value for key, value in state.items()})


def _checked_key(key: object) -> object:
    """Keys that hash at once: a tuple of tuples of tuples would take for ever."""
    parts = key if isinstance(key, tuple) else (key,)
    for part in parts:
        if part is not None and not isinstance(part, bool | int | float | str | bytes | Name):
            raise TypeError("a dictionary key that is neither text nor number")
    return key
