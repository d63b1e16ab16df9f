"""Grammars that an output must follow: compiled once, and then followed token by token.

Compiling and matching are llguidance's (extra ``grammar``). Compiled grammars are kept for the next request with
the same one; `GrammarCompiler.flush` forgets them all.
"""

from __future__ import annotations

import enum
import re
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from devicekit.contract.errors import DeviceKitError
from devicekit.text.deep_stack import with_deep_stack

if TYPE_CHECKING:
    import llguidance

_KEPT = 64  # compiled grammars
_KEPT_LENGTH = 8 << 20  # characters of their sources, together
# What a lexer may come to: 25 MB, half a second. By default it is four times that, for ten characters of a client.
_LEXER = 250_000
_ERROR_LENGTH = 500  # characters of a reason that may repeat the whole grammar
_ESCAPES = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|.)", re.DOTALL)
# A model may put spaces and line ends into its JSON, but not for ever.
_JSON_OPTIONS = {"whitespace_flexible": True, "whitespace_pattern": r"[ \t\r\n]{0,12}"}


class GrammarRefused(DeviceKitError):
    """A grammar makes no sense, or this engine cannot follow any."""


class GrammarKind(str, enum.Enum):
    """How a grammar is written."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    EBNF = "ebnf"  # rules with ::=, beginning at root; or a Lark grammar, beginning at start
    LARK = "grammar"  # Lark's, whatever its texts look like
    CHOICE = "choice"  # Lark's, with nothing but a terminal that is one of some texts


# Characters. Compiling takes time by the square of them, up to a second for these, and a stack as deep as they go;
# a choice takes neither.
_LONGEST = {
    GrammarKind.JSON_SCHEMA: 64 << 10,
    GrammarKind.REGEX: 16 << 10,
    GrammarKind.EBNF: 16 << 10,
    GrammarKind.LARK: 64 << 10,  # of tools, whose schemas are in it
}


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an output must follow from its first character to its last.

    Args:
        field: what whoever sent it calls it, for errors; empty: as its kind is called.
    """

    kind: GrammarKind
    source: str
    field: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        """What to call it."""
        return self.field or self.kind.value


class GrammarMatcher:
    """How far one output has come in its grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, give_up: Callable[[], None]) -> None:
        self._matcher = matcher
        self._give_up = give_up

    def fill(self, mask: npt.NDArray[np.int32]) -> None:
        """Set the bits ([1, vocabulary / 32]) of the tokens that may come next: end tokens where none can."""
        from llguidance import numpy as masks

        masks.fill_next_token_bitmask(self._matcher, mask, 0)

    def require(self) -> None:
        """Do nothing where the output may go on, or may end here.

        Raises:
            GrammarRefused: nothing can follow and it is not fulfilled, or it is too much to follow.
        """
        if self._matcher.is_error():
            self._give_up()
            raise GrammarRefused(
                f"The output cannot follow its grammar any further: {_reason(self._matcher)}."
            )

    def advance(self, token: int) -> bool:
        """Take the next token; returns whether nothing may follow it any more.

        Raises:
            GrammarRefused: this token must not come here, or as `require`.
        """
        taken = self._matcher.consume_token(token)
        self.require()
        if not taken:
            raise GrammarRefused(f"The output left its grammar: token {token} does not follow.")
        return bool(self._matcher.is_stopped())


class GrammarCompiler:
    """Compiles grammars for one tokenizer. Safe from any thread.

    Args:
        tokenizer: of transformers, over the tokenizers library.
        vocab_size: of the model, which may have more tokens than the tokenizer.
        end_tokens: that may come when the grammar is fulfilled.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, end_tokens: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._ends = [token for token in end_tokens if token < vocab_size]
        self._lock = threading.Lock()
        self._known: llguidance.LLTokenizer | None = None
        self._cache: OrderedDict[Grammar, llguidance.LLMatcher] = OrderedDict()
        self.hits = self.misses = 0

    def __len__(self) -> int:
        return len(self._cache)

    @property
    def mask_width(self) -> int:
        """32-bit words in a mask."""
        return -(-self._vocab_size // 32)

    def matcher(self, grammar: Grammar) -> GrammarMatcher:
        """A matcher at the beginning of a grammar, which is compiled unless it is known.

        Raises:
            GrammarRefused: the grammar is not sound, or there is nothing here that could follow one.
        """
        with self._lock:
            found = self._cache.get(grammar)
            if found is not None:
                self._cache.move_to_end(grammar)
                self.hits += 1
        if found is None:
            found = self._compile(grammar)
            with self._lock:
                self.misses += 1
                self._cache[grammar] = found
                while len(self._cache) > _KEPT or sum(len(one.source) for one in self._cache) > _KEPT_LENGTH:
                    self._cache.popitem(last=False)
        return GrammarMatcher(found.deep_copy(), lambda: self._forget(grammar))

    def _forget(self, grammar: Grammar) -> None:
        """Drop what was compiled of a grammar that failed: it takes memory."""
        with self._lock:
            self._cache.pop(grammar, None)

    def flush(self) -> None:
        """Forget every compiled grammar. Outputs that follow one go on."""
        with self._lock:
            self._cache.clear()

    def _compile(self, grammar: Grammar) -> llguidance.LLMatcher:
        size, most = len(grammar.source), _LONGEST.get(grammar.kind)
        if most is not None and size > most:
            raise GrammarRefused(_refusal(grammar, f"it has {size} characters, and {most} are the most"))
        try:
            import llguidance
        except ImportError as error:
            raise GrammarRefused(
                f"Structured output needs a package that is not installed ({error}); get it with: "
                "pip install 'devicekit[grammar]'"
            ) from error
        tokens = self._tokens(llguidance)
        return with_deep_stack(lambda: self._compiled(tokens, grammar))

    def _compiled(self, tokens: llguidance.LLTokenizer, grammar: Grammar) -> llguidance.LLMatcher:
        import llguidance

        try:
            source = _translate(llguidance, grammar)
        except Exception as error:  # what a grammar's text can be wrong in is the library's to say
            raise GrammarRefused(_refusal(grammar, str(error))) from error
        limits = llguidance.LLParserLimits(initial_lexer_fuel=_LEXER)
        matcher = llguidance.LLMatcher(tokens, source, log_level=0, limits=limits)
        beginning = matcher.deep_copy()
        if not matcher.is_error():  # some that are sound have no first token
            GrammarMatcher(beginning, _nothing).fill(np.zeros((1, self.mask_width), np.int32))
        if beginning.is_error():
            raise GrammarRefused(_refusal(grammar, _reason(beginning)))
        return matcher

    def _tokens(self, library: Any) -> llguidance.LLTokenizer:
        with self._lock:
            if self._known is None:
                fast = getattr(self._tokenizer, "backend_tokenizer", None)
                if fast is None:
                    raise GrammarRefused(
                        "Structured output needs a tokenizer of the tokenizers library (tokenizer.json)."
                    )
                ends = self._ends or [self._vocab_size - 1]
                self._known = library.LLTokenizer(fast.to_str(), n_vocab=self._vocab_size, eos_token=ends)
            return self._known


def _nothing() -> None:
    """Nothing is kept yet."""


def _translate(library: Any, grammar: Grammar) -> str:
    """A grammar in the form that the library takes."""
    source: str
    if grammar.kind is GrammarKind.JSON_SCHEMA:
        source = library.LLMatcher.grammar_from_json_schema(grammar.source, defaults=_JSON_OPTIONS)
    elif grammar.kind is GrammarKind.REGEX:
        source = library.LLMatcher.grammar_from_regex(grammar.source)
    else:
        from llguidance.gbnf_to_lark import gbnf_to_lark

        text = grammar.source
        if grammar.kind is GrammarKind.EBNF and "::=" in text:
            text = gbnf_to_lark(_ESCAPES.sub(_spelled, text))
        source = library.LLMatcher.grammar_from_lark(text)
    return source


def _spelled(escape: re.Match[str]) -> str:
    """A character for its number, which the library writes wrongly. Any other escape as it is."""
    number = int(escape[1] or escape[2] or "110000", 16)
    if number > sys.maxunicode or 0xD800 <= number < 0xE000:
        return escape[0]
    return chr(number) if number > 0x7F else f"\\x{number:02x}"


def _reason(matcher: llguidance.LLMatcher) -> str:
    """Why a matcher goes no further, in a line. The library adds its whole state."""
    reason = str(matcher.get_error()).partition("\n<state>")[0].strip()
    if reason == "NoExtensionBias":
        reason = "no token of this model can come next"
    return reason[:_ERROR_LENGTH].rstrip(".")


def _refusal(grammar: Grammar, reason: str) -> str:
    return f"This {grammar.name} cannot be followed: {reason.strip()[:_ERROR_LENGTH]}"
