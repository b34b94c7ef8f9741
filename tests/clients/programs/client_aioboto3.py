"""
aioboto3: boto3 for asyncio.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import aioboto3
from models import BROKEN, CLAUDE, EMBEDDINGS, REFUSED, SLOW, THROTTLED, UNKNOWN, WEATHER
from steps import KEY, PLAIN_URL, QUESTION, URL, described, run, step

MESSAGES = [{"role": "user", "content": [{"text": QUESTION}]}]

os.environ["AWS_MAX_ATTEMPTS"] = "1"


def signed(service: str = "bedrock-runtime", key: str = KEY) -> Any:
    session = aioboto3.Session(
        aws_access_key_id=key, aws_secret_access_key="anything", region_name="us-west-2"
    )
    return session.client(service, endpoint_url=f"{PLAIN_URL}/bedrock")


@step
async def converse() -> Any:
    # docs: signed
    session = aioboto3.Session(
        aws_access_key_id=KEY, aws_secret_access_key="anything", region_name="us-west-2"
    )
    async with session.client("bedrock-runtime", endpoint_url=f"{PLAIN_URL}/bedrock") as client:
        answer = await client.converse(modelId="my-claude", messages=MESSAGES)
    # docs: end
    return answer["output"]["message"]["content"][0]["text"]


@step
async def stream() -> Any:
    async with signed() as client:
        answer = await client.converse_stream(modelId=CLAUDE, messages=MESSAGES)
        events = [event async for event in answer["stream"]]
    deltas = [event["contentBlockDelta"] for event in events if "contentBlockDelta" in event]
    return {
        "pieces": [delta["delta"]["text"] for delta in deltas],
        "output": events[-1]["metadata"]["usage"]["outputTokens"],
    }


@step
async def together() -> Any:
    """A slow stream and others at the same time, by one client."""
    done = []

    async with signed() as client:

        async def one(model: str) -> None:
            answer = await client.converse_stream(modelId=model, messages=MESSAGES)
            async for _ in answer["stream"]:
                pass
            done.append(model)

        await asyncio.gather(*[one(model) for model in (SLOW, *[CLAUDE] * 20)])
    return done


@step
async def bearer() -> Any:
    os.environ["AWS_BEARER_TOKEN_BEDROCK"] = KEY
    session = aioboto3.Session(region_name="us-west-2")
    texts = []
    for url in (URL, PLAIN_URL):
        async with session.client("bedrock-runtime", endpoint_url=f"{url}/bedrock") as client:
            answer = await client.converse(modelId=CLAUDE, messages=MESSAGES)
            texts.append(answer["output"]["message"]["content"][0]["text"])
    del os.environ["AWS_BEARER_TOKEN_BEDROCK"]
    return texts


@step
async def tools() -> Any:
    tool = {"toolSpec": {"name": "get_weather", "inputSchema": {"json": WEATHER}}}
    choice = {"tool": {"name": "get_weather"}}
    async with signed() as client:
        answer = await client.converse(
            modelId=CLAUDE, messages=MESSAGES, toolConfig={"tools": [tool], "toolChoice": choice}
        )
    return answer["output"]["message"]["content"][0]["toolUse"]["input"]


@step
async def embeddings() -> Any:
    body = json.dumps({"inputText": QUESTION, "dimensions": 512})
    async with signed() as client:
        answer = await client.invoke_model(modelId=EMBEDDINGS, body=body)
        return len(json.loads(await answer["body"].read())["embedding"])


@step
async def invoke_agent() -> Any:
    async with signed("bedrock-agent-runtime") as client:
        answer = await client.invoke_agent(
            agentId="AGENTAGENT", agentAliasId="ALIASALIAS", sessionId="one", inputText=QUESTION
        )
        return [next(iter(event)) async for event in answer["completion"]]


@step
async def errors() -> Any:
    found = {}
    for model, key in ((REFUSED, KEY), (THROTTLED, KEY), (UNKNOWN, KEY), (CLAUDE, "sk-wrong")):
        async with signed(key=key) as client:
            try:
                await client.converse_stream(modelId=model, messages=MESSAGES)
            except Exception as error:
                found[model] = described(error)
    return found


@step
async def broken_stream() -> Any:
    events = []
    async with signed() as client:
        answer = await client.converse_stream(modelId=BROKEN, messages=MESSAGES)
        try:
            async for event in answer["stream"]:
                events.append(event)
        except Exception as error:
            return {"events": len(events), "error": described(error)}


run()
