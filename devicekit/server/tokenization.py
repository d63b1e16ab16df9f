"""``/tokenize`` and ``/detokenize``: what the served model's tokenizer makes of texts and token ids."""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from devicekit.server.chat import ChatArguments, Message, render
from devicekit.server.endpoints import Arguments, Endpoint
from devicekit.server.errors import BadRequest
from devicekit.server.keys import Access
from devicekit.server.logprob_format import token_name
from devicekit.server.openai_format import need_tokenizer
from devicekit.server.serving import Serving
from devicekit.server.tools import Tool, ToolUse

_SHOWN = 5
_TokenId = Annotated[int, Field(strict=True, ge=0)]


class TokenizeArguments(Arguments):
    """Either ``prompt``, one text or several, or ``messages`` for the chat template."""

    needs = MappingProxyType(
        dict.fromkeys(
            ("tools", "add_generation_prompt", "continue_final_message", "chat_template_kwargs"), "messages"
        )
    )

    model: str | None = Field(default=None, description="any name is taken")
    prompt: str | list[str] | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    tools: list[Tool] | None = None
    add_special_tokens: bool = Field(
        default=True,
        description="of a prompt, as the tokenizer does by itself; a template writes them itself",
    )
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, object] | None = None
    return_token_strs: bool | None = None


class DetokenizeArguments(Arguments):
    """Token ids, of one text or of several."""

    model: str | None = Field(default=None, description="any name is taken")
    tokens: list[_TokenId] | list[list[_TokenId]]
    skip_special_tokens: bool = True


async def tokenize(serving: Serving, arguments: TokenizeArguments, request: Request) -> Response:
    """Token ids of texts."""
    vocabulary = need_tokenizer(serving)
    if (arguments.prompt is None) == (arguments.messages is None):
        raise BadRequest("Send either prompt or messages.")
    tokens: list[int] | list[list[int]]
    if arguments.messages is not None:
        length = sum(len(text) for message in arguments.messages for text in message.texts)
        chat = ChatArguments(
            messages=arguments.messages,
            chat_template_kwargs=arguments.chat_template_kwargs,
            add_generation_prompt=arguments.add_generation_prompt,
            continue_final_message=arguments.continue_final_message,
        )
        use = ToolUse.of(arguments.tools, None, None)
        tokens = await serving.compute(length, lambda: render(serving, chat, use))
    elif isinstance(arguments.prompt, str):
        (tokens,) = await serving.encode([arguments.prompt], arguments.add_special_tokens)
    else:
        tokens = await serving.encode(arguments.prompt or (), arguments.add_special_tokens)
    many = isinstance(arguments.prompt, list)
    parts = [one for one in tokens if isinstance(one, list)]
    flat = [one for one in tokens if isinstance(one, int)]
    document: dict[str, object] = {
        "tokens": tokens,
        "count": [*map(len, parts)] if many else len(flat),
        "max_model_len": serving.longest,
    }
    if arguments.return_token_strs:
        named = [[token_name(vocabulary, token) for token in part] for part in (parts if many else [flat])]
        document["token_strs"] = named if many else named[0]
    return JSONResponse(document)


async def detokenize(serving: Serving, arguments: DetokenizeArguments, request: Request) -> Response:
    """Texts of token ids."""
    vocabulary = need_tokenizer(serving)
    nested = [one for one in arguments.tokens if isinstance(one, list)]
    flat = [one for one in arguments.tokens if isinstance(one, int)]
    known = serving.engine.runner.limits.vocab_size
    if strangers := [one for part in nested or [flat] for one in part if one >= known][:_SHOWN]:
        raise BadRequest(f"tokens {strangers} are outside the vocabulary of {known}.")
    skip = arguments.skip_special_tokens
    text = await serving.compute(
        len(flat) + sum(map(len, nested)),
        lambda: [vocabulary.decode(one, skip_special_tokens=skip) for one in nested or [flat]],
    )
    found = text if nested else text[0]
    return JSONResponse({"text": found, "prompt": found})


ENDPOINTS = (
    Endpoint(
        "/tokenize",
        tokenize,
        TokenizeArguments,
        "Token ids of texts, or of what the chat template makes of messages.",
        access=Access.USER,
        aliases=("/v1/tokenize",),
    ),
    Endpoint(
        "/detokenize",
        detokenize,
        DetokenizeArguments,
        "Texts of token ids.",
        access=Access.USER,
        aliases=("/v1/detokenize",),
    ),
)
