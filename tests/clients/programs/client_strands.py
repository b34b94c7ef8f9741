"""
Strands Agents: a model and an agent with a tool.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import boto3
from models import BROKEN, CLAUDE, REFUSED, THROTTLED, UNKNOWN
from pydantic import BaseModel
from steps import KEY, PLAIN_URL, QUESTION, URL, described, raised, run, step

# docs: bearer
from strands import Agent, tool
from strands.models import BedrockModel

# docs: end

os.environ["AWS_MAX_ATTEMPTS"] = "1"

# docs: bearer
model = BedrockModel(
    model_id="my-claude", endpoint_url=f"{URL}/bedrock", api_key=KEY, region_name="us-west-2"
)
# docs: end


# docs: signed
session = boto3.Session(
    aws_access_key_id=KEY, aws_secret_access_key="anything", region_name="us-west-2"
)
signed_model = BedrockModel(
    model_id="my-claude", endpoint_url=f"{PLAIN_URL}/bedrock", boto_session=session
)
# docs: end


def signed(model_id: str, key: str = KEY) -> BedrockModel:
    session = boto3.Session(
        aws_access_key_id=key, aws_secret_access_key="anything", region_name="us-west-2"
    )
    return BedrockModel(
        model_id=model_id, endpoint_url=f"{PLAIN_URL}/bedrock", boto_session=session
    )


def agent_of(model: Any, **options: Any) -> Agent:
    return Agent(model=model, callback_handler=None, retry_strategy=None, **options)


@tool
def get_weather(city: str, days: int) -> str:
    """Tell the weather.

    Args:
        city: Where.
        days: For how long.
    """
    return f"It rains in {city} for {days} days."


class Weather(BaseModel):
    """The weather of a city."""

    city: str
    days: int


@step
def agent() -> Any:
    # docs: call
    answer = Agent(model=model, callback_handler=None)(QUESTION)
    text = str(answer)
    # docs: end
    usage = answer.metrics.accumulated_usage
    return {"text": text.strip(), "output": usage["outputTokens"], "stop": answer.stop_reason}


@step
def plain() -> Any:
    """ConverseStream is what it takes by default; this is Converse."""
    other = signed(CLAUDE)
    other.update_config(streaming=False)
    return str(agent_of(other)(QUESTION)).strip()


@step
async def stream() -> Any:
    pieces = []
    async for event in agent_of(model).stream_async(QUESTION):
        if "data" in event:
            pieces.append(event["data"])
    return pieces


@step
def tools() -> Any:
    found = []
    for each in (model, signed_model):
        agent = agent_of(each, tools=[get_weather])
        answer = agent("Please call get_weather")
        blocks = [block for message in agent.messages for block in message["content"]]
        (use,) = (block["toolUse"] for block in blocks if "toolUse" in block)
        (result,) = (block["toolResult"] for block in blocks if "toolResult" in block)
        found.append(
            {
                "input": use["input"],
                "result": result["content"],
                "status": result["status"],
                "stop": answer.stop_reason,
            }
        )
    return found


@step
def structured() -> Any:
    answer = agent_of(model)(QUESTION, structured_output_model=Weather)
    return answer.structured_output.model_dump()


@step
def errors() -> Any:
    found = {
        each: raised(agent_of(signed(each)), QUESTION) for each in (REFUSED, THROTTLED, UNKNOWN)
    }
    found["wrong key"] = raised(agent_of(signed(CLAUDE, "sk-wrong")), QUESTION)
    return found


@step
def broken_stream() -> Any:
    pieces: list[str] = []

    async def read() -> None:
        async for event in agent_of(signed(BROKEN)).stream_async(QUESTION):
            if "data" in event:
                pieces.append(event["data"])

    try:
        asyncio.run(read())
    except Exception as error:
        return {"pieces": pieces, "error": described(error)}


run()
