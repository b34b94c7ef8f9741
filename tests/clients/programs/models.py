"""
The models that the gateway of these tests knows, by what goes wrong with each.

What goes wrong goes wrong by the name of a model, so that no test has to prepare anything;
:mod:`tests.clients.gateway` sees to it.
"""

CLAUDE = "my-claude"
"""A name of ``config.yaml``, as the next three."""

NOVA = "my-nova"
EMBEDDINGS = "my-embeddings"
"""Titan's."""

COHERE_EMBEDDINGS = "my-cohere-embeddings"

REFUSED = "anthropic.claude-3-haiku-20240307-v1:0"
"""Bedrock answers 400, ``ValidationException``."""

THROTTLED = "anthropic.claude-3-sonnet-20240229-v1:0"
"""Bedrock answers 429, ``ThrottlingException``."""

BROKEN = "anthropic.claude-3-5-sonnet-20240620-v1:0"
"""
Streams end with a ``modelStreamErrorException`` after some events; what is no stream is
refused with the same, status 424.
"""

SLOW = "anthropic.claude-3-opus-20240229-v1:0"
"""An event every 100 ms; what is no stream takes 800 ms."""

UNKNOWN = "no-such-model"
"""The gateway itself answers 404, ``ResourceNotFoundException``."""

RERANK_ARN = "arn:aws:bedrock:us-west-2::foundation-model/cohere.rerank-v3-5:0"

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "unit": {"enum": ["celsius", "kelvin"]},
        "days": {"type": "integer", "minimum": 2},
    },
    "required": ["city", "unit", "days"],
}
"""What the tool ``get_weather`` wants; the sandbox gives ``sandbox``, ``celsius`` and 2."""
