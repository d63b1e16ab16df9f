"""The text of a request: decoded once, token by token, and used by everything that needs text.

`Vocabulary` is what decoding knows of a model's tokenizer. `RequestText` is the text of one request: decoded as
tokens come, cut at its stop strings, and given out as soon as it is final. Positions are characters of it.
"""

import devicekit.numpy_needed  # noqa: F401  # before whatever would fail without it
from devicekit.text.decoding import TokenDecoder
from devicekit.text.grammar import Grammar, GrammarCompiler, GrammarKind, GrammarMatcher, GrammarRefused
from devicekit.text.request_text import RequestText, TextOptions
from devicekit.text.stops import StopMatcher, StopStrings
from devicekit.text.tokenizer import TokenizerVocabulary
from devicekit.text.vocabulary import PlainVocabulary, Vocabulary, vocabulary_of

__all__ = [
    "Grammar",
    "GrammarCompiler",
    "GrammarKind",
    "GrammarMatcher",
    "GrammarRefused",
    "PlainVocabulary",
    "RequestText",
    "StopMatcher",
    "StopStrings",
    "TextOptions",
    "TokenDecoder",
    "TokenizerVocabulary",
    "Vocabulary",
    "vocabulary_of",
]
