"""
Anthropic's SDK for Python, in its two clients for Bedrock.
"""

from __future__ import annotations

import os
from typing import Any

# docs: bearer
from anthropic import AnthropicBedrock, AsyncAnthropicBedrock

# docs: end
from models import BROKEN, CLAUDE, REFUSED, THROTTLED, UNKNOWN, WEATHER
from steps import KEY, PLAIN_URL, QUESTION, URL, described, raised, run, step

MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]
TOOL: Any = {"name": "get_weather", "description": "Weather.", "input_schema": WEATHER}
ACCESS_KEY_ID, SECRET_ACCESS_KEY = os.environ["ACCESS_KEY_ID"], os.environ["SECRET_ACCESS_KEY"]

# docs: bearer
client = AnthropicBedrock(base_url=f"{URL}/bedrock", api_key=KEY, aws_region="us-west-2")
# docs: end
client = client.with_options(max_retries=0)


@step
def message() -> Any:
    # docs: call
    answer = client.messages.create(
        model="my-claude", max_tokens=100, messages=[{"role": "user", "content": QUESTION}]
    )
    text = answer.content[0].text
    # docs: end
    return {
        "text": text,
        "input": answer.usage.input_tokens,
        "output": answer.usage.output_tokens,
        "stop": answer.stop_reason,
    }


@step
def stream() -> Any:
    pieces = []
    # docs: stream
    with client.messages.stream(model="my-claude", max_tokens=100, messages=MESSAGES) as stream:
        for text in stream.text_stream:
            pieces.append(text)
    # docs: end
    last = stream.get_final_message()
    return {"pieces": pieces, "output": last.usage.output_tokens, "stop": last.stop_reason}


@step
def raw_stream() -> Any:
    told: Any = {"model": CLAUDE, "max_tokens": 100, "messages": MESSAGES}
    return [event.type for event in client.messages.create(stream=True, **told)]


@step
async def asynchronous() -> Any:
    other = AsyncAnthropicBedrock(
        base_url=f"{PLAIN_URL}/bedrock", api_key=KEY, aws_region="us-west-2", max_retries=0
    )
    told: Any = {"model": CLAUDE, "max_tokens": 100, "messages": MESSAGES}
    answer = await other.messages.create(**told)
    pieces = []
    async with other.messages.stream(**told) as stream:
        async for text in stream.text_stream:
            pieces.append(text)
    try:
        await other.messages.create(**{**told, "model": REFUSED})
    except Exception as error:
        return {"text": answer.content[0].text, "pieces": pieces, "error": described(error)}


@step
def signed() -> Any:
    texts = []
    told: Any = {"model": CLAUDE, "max_tokens": 100, "messages": MESSAGES}
    for url, name, secret in (
        (PLAIN_URL, KEY, "anything"),
        (URL, ACCESS_KEY_ID, SECRET_ACCESS_KEY),
    ):
        other = AnthropicBedrock(
            base_url=f"{url}/bedrock",
            aws_region="us-west-2",
            aws_access_key=name,
            aws_secret_key=secret,
        )
        texts.append(other.messages.create(**told).content[0].text)
        with other.messages.stream(**told) as stream:
            texts.append("".join(stream.text_stream))
    return texts


@step
def model_id() -> Any:
    """Its colon is sent as it is."""
    answer = client.messages.create(
        model="anthropic.claude-haiku-4-5-20251001-v1:0", max_tokens=9, messages=MESSAGES
    )
    return {"text": answer.content[0].text, "stop": answer.stop_reason}


@step
def tools() -> Any:
    asked: list[Any] = [{"role": "user", "content": "Please call get_weather"}]
    told: Any = {"model": CLAUDE, "max_tokens": 100, "tools": [TOOL]}
    first = client.messages.create(messages=asked, **told)
    (use,) = first.content
    with client.messages.stream(messages=asked, **told) as stream:
        (streamed,) = stream.get_final_message().content
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "It rains."}
    said = [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = client.messages.create(messages=[*asked, *said], **told)
    return {
        "stop": first.stop_reason,
        "name": use.name,
        "input": use.input,
        "streamed": streamed.input,
        "then": second.stop_reason,
    }


@step
def beta() -> Any:
    """A beta's name goes as a header and in the body."""
    answer = client.beta.messages.create(
        model=CLAUDE, max_tokens=100, messages=MESSAGES, betas=["context-1m-2025-08-07"]
    )
    return answer.content[0].text


@step
def errors() -> Any:
    stranger = client.with_options(api_key="sk-wrong")
    found = {}
    for model in (REFUSED, THROTTLED, BROKEN, UNKNOWN):
        told: Any = {"model": model, "max_tokens": 100, "messages": MESSAGES}
        found[model] = raised(client.messages.create, **told)
    told = {"model": CLAUDE, "max_tokens": 100, "messages": MESSAGES}
    found["wrong key"] = raised(stranger.messages.create, **told)
    return found


@step
def broken_stream() -> Any:
    told: Any = {"model": BROKEN, "max_tokens": 100, "messages": MESSAGES}
    events = []
    try:
        for event in client.messages.create(stream=True, **told):
            events.append(event.type)
    except Exception as error:
        return {"events": events, "error": described(error)}


run()
