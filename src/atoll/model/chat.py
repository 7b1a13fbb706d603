"""Policy: a conversation as the text a model is used to, for who serves one: by a Jinja template of the model's.

Nobody here wrote it, so it runs in a sandbox that reaches nothing, and on a budget: each turn of a loop, call, filter
and operation costs a step, and what it is given or makes costs by its size. A hostile template ends with an error, the
same on each machine.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from functools import wraps
from itertools import islice
from typing import Any, Final, TypeVar

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.nodes import EvalContext
from jinja2.runtime import Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from atoll.errors import InvalidData
from atoll.model.api import Message

T = TypeVar("T")

LARGEST_TEMPLATE: Final = 1 << 18
"""Characters; the longest in use have some 20,000."""
LARGEST_TEXT: Final = 1 << 23
"""Characters, of a result or of anything on the way."""
LARGEST_NUMBER: Final = 1 << 31
STEPS: Final = 1 << 18
"""Seconds at the very most. A conversation of a thousand messages takes some thousands."""
_OPERATORS: Final = frozenset({"+", "-", "*", "/", "//", "%", "**"})
_LISTS: Final = list | tuple | set | frozenset
_LOOKING: Final = {"length", "count", "first", "last", "attr", "default", "d"}
_PASSING_ON: Final = _LOOKING | {"list", "map", "select", "selectattr", "reject", "rejectattr", "reverse", "items"} | {
    "defined", "undefined", "none", "string", "mapping", "iterable", "sequence", "number", "true", "false", "boolean"
}  # fmt: skip
"""Filters and tests that don't go into what the elements hold."""
_FORBIDDEN_FILTERS: Final = {"random"} | {"batch", "center", "slice", "urlize", "wordwrap"}
"""The same conversation is the same text; and of the others no template has need: they make much of little."""
_METHODS: Final = """
    capitalize casefold center count endswith find format index isalnum isalpha isdecimal isdigit islower isnumeric
    isspace istitle isupper join ljust lower lstrip partition removeprefix removesuffix replace rfind rindex rjust
    rpartition rsplit rstrip split splitlines startswith strip swapcase title upper zfill
"""
"""Of texts. The others make bytes, or much of little; numbers need none."""
_LONGEST_SET: Final = 256
"""Characters to strip, each of which is looked for again and again."""
_MOST_DIGITS: Final = 16
_WIDE: Final = re.compile(r"\d{5}|\*")  # in a format: a width that makes much of little
_WIDTH_IN_WIDTH: Final = re.compile(r"\{[^}]*\{")


class ChatTemplate:
    """A template and the special tokens it may write: `api.Chat`."""

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        """`tokens`: by the name templates have for them, as `bos_token`. InvalidData for what is no template."""
        if len(source) > LARGEST_TEMPLATE:
            raise InvalidData(f"the chat template has {len(source)} characters; at most {LARGEST_TEMPLATE} are taken")
        self._tokens = dict(tokens)
        self._environment = _Sandbox()
        code = self._limited(lambda: self._compiled(source), "is no template")
        self._template = self._environment.template_class.from_code(
            self._environment, code, self._environment.make_globals(None)
        )

    def text(self, messages: Sequence[Message], *, tools: Sequence[Message] = (), now: datetime | None = None) -> str:
        """See `api.Chat`."""
        return self._limited(lambda: self._rendered(messages, tools, now), "fails")

    def _compiled(self, source: str) -> Any:
        return self._environment.compile(_Charging().visit(self._environment.parse(source)))

    def _rendered(self, messages: Sequence[Message], tools: Sequence[Message], now: datetime | None) -> str:
        # Clients send `"content": null`; templates test whether a key is there.
        known: dict[str, Any] = {
            **self._tokens,
            "messages": [_plain({key: value for key, value in m.items() if value is not None}) for m in messages],
            "tools": _plain(tools) or None,
            "documents": None,
            "add_generation_prompt": True,
        }
        if now is not None:
            known["strftime_now"] = now.strftime
        text: list[str] = []
        length = 0
        for piece in self._template.generate(known):
            text.append(piece)
            length += len(piece)
            _charge(piece)
            if length > LARGEST_TEXT:
                raise _TooMuch(f"more than {LARGEST_TEXT} characters")
        return "".join(text)

    def _limited(self, work: Callable[[], T], what: str) -> T:
        token = _steps_left.set([STEPS])
        try:
            return work()
        except _TooMuch as error:
            raise InvalidData(f"the chat template takes too much: {error}") from error
        except RecursionError as error:
            raise InvalidData(f"the chat template {what}: it is nested too deep") from error
        except (TemplateError, SyntaxError) as error:
            raise InvalidData(f"the chat template {what}: {error}") from error
        except Exception as error:  # whatever the template's expressions come to
            raise InvalidData(f"the chat template {what}: {type(error).__name__}: {error}") from error
        finally:
            _steps_left.reset(token)


class _TooMuch(Exception):
    """The budget is used up."""


_steps_left: ContextVar[list[int]] = ContextVar("steps_left")


def _charge(*values: object) -> None:
    """A step, and one for each 256 characters and each element of what is in `values`, down to the last."""
    _step(1)
    for value in values:
        _glance(value)
        if isinstance(value, Mapping):
            _charge(*value.keys(), *value.values())
        elif isinstance(value, _LISTS):
            _charge(*value)


def _glance(value: object) -> None:
    """The same, but for what is in the elements: where they are only passed on."""
    if isinstance(value, str):
        if len(value) > LARGEST_TEXT:
            raise _TooMuch(f"a text of more than {LARGEST_TEXT} characters")
        _step(len(value) >> 8)
    elif isinstance(value, int):
        if abs(value) > LARGEST_NUMBER:
            raise _TooMuch(f"numbers beyond {LARGEST_NUMBER}")
    elif isinstance(value, Mapping | _LISTS):
        _step(len(value))


def _step(count: int) -> None:
    left = _steps_left.get()
    left[0] -= count
    if left[0] < 0:
        raise _TooMuch(f"more than {STEPS} steps")


def _charged(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter or test, on the budget."""

    @wraps(function)
    def limited(*args: Any, **named: Any) -> Any:
        _step(1)
        if name not in _PASSING_ON:
            _charge(*args, *named.values())
        if name == "format":
            _check_format(args[0])
            _check_length(str(args[0]).count("%"), _length((args[1:], named)))
        if name == "join":  # after what Jinja puts first
            args = (args[0], _turns(args[1]), *args[2:])
        _check_widths((*args, *named.values()))
        _check_growth(name, [arg for arg in args if not isinstance(arg, EvalContext | _Sandbox)], named)
        result = function(*args, **named)
        if name not in _LOOKING:
            _glance(result)
        return result

    return limited


def _check_format(pattern: object) -> None:
    if isinstance(pattern, str) and _WIDE.search(pattern):
        raise SecurityError(f"the format {pattern[:40]!r} is not taken here")


def _check_growth(name: str, args: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Nothing is asked for that is much longer than what it is made of, or takes far longer. `args`: the text first."""
    first, others = args[0] if args else "", [*args[1:], *named.values()]
    texts = [value for value in others if isinstance(value, str)]
    if name == "replace" and len(texts) > 1:
        text, (a, b) = str(first), texts[:2]
        _check_length(max(text.count(a) * len(b), text.count(b) * len(a)), 1)
    elif name == "join":
        _check_length(len(first) if hasattr(first, "__len__") else 0, max(map(len, texts), default=0))
    elif name == "indent":
        widths = [len(value) if isinstance(value, str) else int(value) for value in others if value is not None]
        _check_length(len(str(first).splitlines()) + 1, max(widths, default=4))
    elif name in ("strip", "lstrip", "rstrip", "trim") and max(map(len, texts), default=0) > _LONGEST_SET:
        raise _TooMuch(f"more than {_LONGEST_SET} characters to strip")
    elif name == "round" and any(isinstance(value, int) and abs(value) > _MOST_DIGITS for value in others):
        raise _TooMuch(f"more than {_MOST_DIGITS} digits")
    elif name == "sum" and any(isinstance(value, _LISTS) for value in others):
        raise SecurityError("sums of lists are not taken here")


def _check_length(times: int, length: int) -> None:
    if times * length > LARGEST_TEXT:
        raise _TooMuch(f"a text of more than {LARGEST_TEXT} characters")


def _length(value: Any) -> int:
    """Characters that it takes to write, with few escapes; paid for before."""
    if isinstance(value, Mapping):
        return sum(2 + _length(key) + _length(inner) for key, inner in value.items())
    if isinstance(value, _LISTS):
        return sum(2 + _length(inner) for inner in value)
    return len(value) if isinstance(value, str) else 32


def _check_widths(values: Sequence[object]) -> None:
    """Nothing is asked to be filled up to a great width."""
    for value in values:
        if isinstance(value, int) and abs(value) > LARGEST_TEXT:
            raise _TooMuch(f"a width of {value}")


def _turns(items: Any) -> Any:
    """What a loop goes through, paid for before the first turn."""
    if isinstance(items, Undefined | Mapping | str):
        _step(len(items))  # an undefined one is empty, and says so itself if it is strict
        return items
    taken = list(islice(items, _steps_left.get()[0] + 1))
    _step(len(taken))
    return taken


def _joined(parts: list[Any]) -> str:
    """`~`: texts one after the other."""
    return "".join(map(str, parts))


def _same(value: Any) -> Any:
    return value


class _Charging(NodeTransformer):
    """Puts what Jinja doesn't let an environment see through filters, where the budget is."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "turns of a loop")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "joined")

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _filtered(node.expr, "same")
        for operand in node.ops:
            operand.expr = _filtered(operand.expr, "same")
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "same") if isinstance(node.arg, nodes.Slice) else node

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.Node:
        self.generic_visit(node)
        if node.filter is None:
            node.filter = nodes.Filter(None, "same", [], [], None, None, lineno=node.lineno)
        return node


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Sandbox(ImmutableSandboxedEnvironment):
    """As the tools that templates are written for set theirs up, with a budget."""

    intercepted_binops = _OPERATORS

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols], finalize=_output)
        kept: dict[str, Any] = {name: f for name, f in self.filters.items() if name not in _FORBIDDEN_FILTERS}
        kept |= {"tojson": _to_json, "joined": _joined, "same": _same}
        self.filters = {name: _charged(name, f) for name, f in kept.items()} | {"turns of a loop": _turns}
        tests: dict[str, Any] = self.tests
        self.tests = {name: _charged(name, f) for name, f in tests.items()}
        self.globals = {
            "range": self.globals["range"],
            "dict": _new_dict,
            "namespace": Namespace,
            "raise_exception": _raise,
        }

    def call(self, context: Any, obj: Any, /, *args: Any, **named: Any) -> Any:
        _step(1)
        if (owner := getattr(obj, "__self__", None)) is not None:  # a method, which may compare or write its arguments
            _charge(owner, *args, *named.values())
            name = getattr(obj, "__name__", "")
            if isinstance(owner, int | float) or (isinstance(owner, str) and name not in _METHODS.split()):
                raise SecurityError(f"the method {name!r} is not taken here")
            if isinstance(owner, str) and name == "join" and args:
                args = (_turns(args[0]), *args[1:])
                _check_growth(name, [args[0], owner], {})
            elif isinstance(owner, str):
                _check_growth(name, [owner, *args], named)
        _check_widths((*args, *named.values()))
        result = super().call(context, obj, *args, **named)
        _glance(result)
        return result

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        for value in (left, right):
            _glance(value)
        if operator == "**":
            raise SecurityError("powers are not taken here")
        if operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, str | list | tuple) and isinstance(times, int) and len(many) * times > LARGEST_TEXT:
                    raise _TooMuch(f"{times} times something")
        if operator == "%" and isinstance(left, str):
            _charge(right)
            _check_format(left)
            _check_length(left.count("%"), _length(right))
        result = super().call_binop(context, operator, left, right)
        _glance(result)
        return result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        found = super().wrap_str_format(value)
        if found is None:
            return None
        _check_format(pattern := value.__self__)
        if _WIDTH_IN_WIDTH.search(pattern):
            raise SecurityError(f"the format {pattern[:40]!r} is not taken here")

        @wraps(found)
        def bounded(*args: Any, **named: Any) -> str:
            _charge(args, named)
            _check_length(pattern.count("{"), _length((args, named)))
            return found(*args, **named)

        return bounded


def _output(value: Any) -> Any:
    """What a template writes; called when it is compiled, too."""
    _charge(value)
    return value


def _new_dict(*args: Any, **named: Any) -> dict[Any, Any]:
    return dict(*args, **named)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Without the escapes for HTML of Jinja's own."""
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys, check_circular=False
    )
    if max(map(len, separators or ()), default=0) > _LONGEST_SET or len(str(indent)) > _LONGEST_SET:
        raise _TooMuch(f"more than {_LONGEST_SET} characters between values")
    parts, length = [], 0
    for part in encoder.iterencode(value):  # with an indent piece by piece
        parts.append(part)
        length += len(part)
        _check_length(length, 1)
    return "".join(parts)


def _plain(value: Any) -> Any:
    """A copy of lists, dicts, texts, numbers; nothing with methods that a template could call to effect."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, str):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Sequence):
        return [_plain(inner) for inner in value]
    return f"<{type(value).__name__}>"
