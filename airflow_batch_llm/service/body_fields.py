"""Which fields a request's body may have: the engine would ignore one that it does not know in silence.

The engine's own description is asked first (a worker brings it along); these lists stand in where there is none. They
are those of vLLM 0.32's ``/openapi.json``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from airflow_batch_llm.models import CHAT_COMPLETIONS, COMPLETIONS, EMBEDDINGS, RESPONSES

HARMLESS: Final = frozenset(
    {
        *("metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier", "store"),
        *("stream", "stream_options", "user"),
    }
)
"""Fields of OpenAI's API that cannot change an answer, so that it does no harm if the engine ignores them."""

_ANY_ENDPOINT: Final = frozenset(
    {
        *("cache_salt", "mm_processor_kwargs", "model", "priority", "request_id"),
    }
)
_SAMPLING: Final = frozenset(
    {
        *("frequency_penalty", "ignore_eos", "include_stop_str_in_output", "kv_transfer_params", "logit_bias", "min_p"),
        *("presence_penalty", "repetition_penalty", "return_mm_kwargs", "seed", "skip_special_tokens", "stop"),
        *("stop_token_ids", "structured_outputs", "temperature", "top_k", "top_p", "vllm_xargs", "watermarking"),
    }
)
_COMPLETION: Final = frozenset(
    {
        *("add_special_tokens", "allowed_token_ids", "bad_words", "echo", "ec_transfer_params", "length_penalty"),
        *("logprob_token_ids", "logprobs", "max_tokens", "min_tokens", "n", "prompt_logprobs", "repetition_detection"),
        *("response_format", "return_token_ids", "return_token_offsets", "return_tokens_as_token_ids"),
        *("spaces_between_special_tokens", "thinking_token_budget", "truncate_prompt_tokens", "truncation_side"),
        *("use_beam_search", "session_id"),
    }
)
_CHAT_INPUT: Final = frozenset(
    {
        *("add_generation_prompt", "add_special_tokens", "chat_template", "chat_template_kwargs"),
        *("continue_final_message", "media_io_kwargs", "messages"),
    }
)
_BUILT_IN: Final = {
    CHAT_COMPLETIONS: _ANY_ENDPOINT
    | _SAMPLING
    | _COMPLETION
    | _CHAT_INPUT
    | {
        *("documents", "include_reasoning", "max_completion_tokens", "parallel_tool_calls", "reasoning_effort"),
        *("return_prompt_text", "tool_choice", "tools", "top_logprobs"),
    },
    COMPLETIONS: _ANY_ENDPOINT | _SAMPLING | _COMPLETION | {"prompt", "prompt_embeds", "suffix"},
    EMBEDDINGS: _ANY_ENDPOINT
    | _CHAT_INPUT
    | {
        *("dimensions", "embed_dtype", "encoding_format", "endianness", "input", "padding", "truncate_prompt_tokens"),
        *("truncation_side", "use_activation"),
    },
    RESPONSES: _ANY_ENDPOINT
    | _SAMPLING
    | {
        *("background", "chat_template_kwargs", "include", "include_reasoning", "input", "instructions"),
        *("max_output_tokens", "max_tool_calls", "parallel_tool_calls", "previous_response_id", "prompt", "reasoning"),
        *("session_id", "text", "tool_choice", "tools", "top_logprobs", "truncation"),
    },
}


def known_fields(endpoint: str, described: Iterable[str] | None) -> frozenset[str]:
    """The fields that a body for ``endpoint`` may have; ``described`` is what its engine says of itself."""
    fields = _BUILT_IN[endpoint] if described is None else frozenset(described)
    return fields | HARMLESS | {"model"}
