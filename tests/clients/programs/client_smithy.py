"""
The new AWS SDK for Python, generated from Smithy models.
"""

from __future__ import annotations

import json
from typing import Any

# docs: signed
from aws_sdk_bedrock_runtime.client import AsyncBedrockRuntimeClient
from aws_sdk_bedrock_runtime.config import AsyncBedrockRuntimeConfig
from aws_sdk_bedrock_runtime.models import (
    ContentBlockText,
    ConverseInput,
    ConverseStreamInput,
    InvokeModelInput,
    Message,
)

# docs: end
from models import BROKEN, CLAUDE, EMBEDDINGS, REFUSED, THROTTLED, UNKNOWN
from steps import KEY, PLAIN_URL, QUESTION, URL, described, run, step

MESSAGES = [Message(role="user", content=[ContentBlockText(QUESTION)])]


async def client_of(url: str = PLAIN_URL, key: str = KEY) -> AsyncBedrockRuntimeClient:
    config = await AsyncBedrockRuntimeConfig.resolve(
        endpoint_uri=f"{url}/bedrock",
        region="us-west-2",
        aws_access_key_id=key,
        aws_secret_access_key="anything",
        max_attempts=1,
    )
    return AsyncBedrockRuntimeClient(config)


@step
async def converse() -> Any:
    # docs: signed
    config = await AsyncBedrockRuntimeConfig.resolve(
        endpoint_uri=f"{PLAIN_URL}/bedrock",
        region="us-west-2",
        aws_access_key_id=KEY,
        aws_secret_access_key="anything",
    )
    client = AsyncBedrockRuntimeClient(config)
    message = Message(role="user", content=[ContentBlockText(QUESTION)])
    answer = await client.converse(ConverseInput(model_id="my-claude", messages=[message]))
    # docs: end
    return {"text": answer.output.value.content[0].value, "output": answer.usage.output_tokens}


@step
async def over_tls() -> Any:
    client = await client_of(URL)
    answer = await client.converse(ConverseInput(model_id=CLAUDE, messages=MESSAGES))
    return answer.output.value.content[0].value


@step
async def stream() -> Any:
    client = await client_of()
    answer = await client.converse_stream(ConverseStreamInput(model_id=CLAUDE, messages=MESSAGES))
    kinds, pieces = [], []
    async with answer as stream:
        async for event in stream.output_stream:
            kinds.append(type(event).__name__)
            if kinds[-1] == "ConverseStreamOutputContentBlockDelta":
                pieces.append(event.value.delta.value)
    return {"kinds": kinds, "pieces": pieces}


@step
async def embeddings() -> Any:
    client = await client_of()
    body = json.dumps({"inputText": QUESTION, "dimensions": 256}).encode()
    answer = await client.invoke_model(
        InvokeModelInput(model_id=EMBEDDINGS, body=body, content_type="application/json")
    )
    return len(json.loads(answer.body)["embedding"])


@step
async def errors() -> Any:
    found = {}
    for model, key in ((REFUSED, KEY), (THROTTLED, KEY), (UNKNOWN, KEY), (CLAUDE, "sk-wrong")):
        client = await client_of(key=key)
        try:
            await client.converse(ConverseInput(model_id=model, messages=MESSAGES))
        except Exception as error:
            found[model] = described(error)
    return found


@step
async def broken_stream() -> Any:
    client = await client_of()
    answer = await client.converse_stream(ConverseStreamInput(model_id=BROKEN, messages=MESSAGES))
    kinds = []
    try:
        async with answer as stream:
            async for event in stream.output_stream:
                kinds.append([type(event).__name__, str(getattr(event.value, "message", ""))])
    except Exception as error:
        return {"kinds": kinds, "error": described(error)}
    return {"kinds": kinds}


run()
